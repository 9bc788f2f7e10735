"""What the Debian packages with pictures hold: each picture with its captions, and what is left out and why.

Names of pictures are paths without dots, since a sample's name ends at the first one.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sharelock_ray.demo.drawing import Drawing, Emoji, ImageFile, is_one_glyph

MAX_SHARED = 10
"""A title of more pictures than this is the name of a collection ("Lemon SVG theme"), and describes none of them."""
_KEYWORDS = 2
# Words of the collection's upkeep, and hexadecimal marks of its database.
_NO_KEYWORD = re.compile(
    r"0x.*|[\W\d]*|.*_member|.*rollandin|activities|appicon|hash|icons?|magick|menu|=?signs?|signs_and_symbols|theme|"
    r"unsorted|various"
)
_CONTRIBUTOR = re.compile(r"^Clipart by .*? - ")
# A drawing and its copy in black and white, or the second of two, show the same.
_VARIANT = frozenset({"a", "an", "and", "b", "bw", "of", "the", "w"})
_DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}"
_SKIN_TONES = re.compile("[\U0001f3fb-\U0001f3ff]")
_FIRST_PICTURE = "\u00a9"
"""Characters before this one are ASCII, which a font draws as text."""
_INHERITED = "↑↑↑"
"""CLDR's mark for a name that is that of another language."""
_ALPHABETS = ("symbols", "alphabets")
MIN_CLASS = 10
"""Pictures of a folder that counts as a class."""


@dataclass(frozen=True)
class Picture:
    """A picture that can be drawn.

    Args:
        name: unique in its catalogue, and the name of its sample.
        captions: texts by language; that of "en" is the caption of the sample.
        subject: what it shows, as a normalised text; pictures of one subject belong to one split.
        notes: more about it, as JSON values.
        folder: the topic, for catalogues with classes.
    """

    name: str
    drawing: Drawing
    captions: dict[str, str]
    subject: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    folder: str = ""


@dataclass(frozen=True)
class Catalogue:
    """Pictures sorted by name, and the number of those left out, by reason."""

    pictures: list[Picture]
    left_out: dict[str, int]


def clip_art(folder: Path) -> Catalogue:
    """The SVG files below `folder` whose metadata (Dublin Core) have a title of their own.

    A caption is the title and two keywords: "Owl on Branch, owl, animal".
    """
    described: dict[Path, tuple[str, list[str]]] = {}
    left_out: Counter[str] = Counter()
    for path in sorted(folder.rglob("*.svg")):
        try:
            described[path] = _title_and_keywords(path)
        except ElementTree.ParseError:
            left_out["no XML"] += 1
    shared = Counter(title for title, _ in described.values())
    pictures = []
    for path, (title, keywords) in described.items():
        if not title:
            left_out["no title"] += 1
        elif shared[title] > MAX_SHARED:
            left_out["the title of a collection"] += 1
        else:
            caption = ", ".join([title, *keywords[:_KEYWORDS]])
            notes = {"title": title, "keywords": keywords}
            name = f"clipart/{_name(path.relative_to(folder))}"
            pictures.append(Picture(name, ImageFile(str(path)), {"en": caption}, _subject(title), notes))
    return Catalogue(pictures, dict(left_out))


def _title_and_keywords(path: Path) -> tuple[str, list[str]]:
    """Both are empty where the file has no such metadata."""
    # The file's own; its author and publisher have titles too.
    work = next((each for each in ElementTree.parse(path).iter() if each.tag.endswith("}Work")), None)
    if work is None:
        return "", []
    title = _CONTRIBUTOR.sub("", _words(work.findtext(f"{_DUBLIN_CORE}title")))
    subject = work.find(f"{_DUBLIN_CORE}subject")
    listed = [] if subject is None else [each.text for each in subject.iter() if each.tag.endswith("}li")]
    raw = (" ".join((text or "").split()) for text in listed)
    keywords = (_words(text) for text in raw if text and not _NO_KEYWORD.fullmatch(text.lower()))
    return title, [word for word in dict.fromkeys(keywords) if word.lower() != title.lower()]


def _words(text: str | None) -> str:
    return " ".join((text or "").replace("_", " ").split())


def _subject(title: str) -> str:
    """`title` without case, numbers, and marks of a variant."""
    return " ".join(word for word in re.findall(r"[^\W\d]+", title.lower()) if word not in _VARIANT)


def emoji(cldr: Path, font: Path) -> Catalogue:
    """The emoji with an English name that a colour font draws as one picture, without those of a skin tone.

    Args:
        cldr: folder with CLDR's `annotations` and `annotationsDerived`.
        font: Noto Color Emoji.
    """
    names: dict[str, dict[str, str]] = {}
    for language in ["en", *sorted({path.stem for path in cldr.glob("annotations*/*.xml")} - {"en", "root"})]:
        for text, name in _names(cldr, language):
            # Names without an English one are of characters that are no emoji.
            if language == "en" or text in names:
                names.setdefault(text, {})[language] = name
    pictures = []
    left_out: Counter[str] = Counter()
    for text, captions in sorted(names.items()):
        if _SKIN_TONES.search(text):
            left_out["a skin tone"] += 1
        elif text < _FIRST_PICTURE or not is_one_glyph(text, str(font)):
            left_out["not in the font"] += 1
        else:
            name = "emoji/" + "-".join(f"{ord(character):x}" for character in text)
            title = captions["en"]
            pictures.append(Picture(name, Emoji(text, str(font)), captions, _subject(title), {"title": title}))
    return Catalogue(pictures, dict(left_out))


def _names(cldr: Path, language: str) -> Iterator[tuple[str, str]]:
    for path in (cldr / folder / f"{language}.xml" for folder in ("annotations", "annotationsDerived")):
        for each in ElementTree.parse(path).iter("annotation") if path.exists() else ():
            if each.get("type") == "tts" and each.text and each.text != _INHERITED:
                yield each.get("cp", ""), each.text


def stamps(folder: Path) -> Catalogue:
    """Tux Paint's stamps: a picture (PNG, or else SVG) beside a text with its description in many languages.

    The first line of a text is English; each other one is `language.utf8=…`. Letters and numbers are left out. `folder`
    of a picture is its topmost folder.
    """
    pictures = []
    left_out: Counter[str] = Counter()
    for text in sorted(folder.rglob("*.txt")):
        path = text.relative_to(folder)
        image = next((each for each in map(text.with_suffix, (".png", ".svg")) if each.exists()), None)
        captions = _descriptions(text.read_text(encoding="utf-8", errors="replace"))
        if path.parts[: len(_ALPHABETS)] == _ALPHABETS:
            left_out["a letter or a number"] += 1
        elif image is None:
            left_out["no picture"] += 1
        elif "en" not in captions:
            left_out["no caption"] += 1
        else:
            pictures.append(Picture(_name(path), ImageFile(str(image)), captions, folder=path.parts[0]))
    return Catalogue(pictures, dict(left_out))


def class_names(pictures: list[Picture]) -> list[str]:
    """The folders with at least `MIN_CLASS` of the pictures, sorted."""
    counts = Counter(picture.folder for picture in pictures)
    return sorted(name for name, count in counts.items() if count >= MIN_CLASS)


def _descriptions(text: str) -> dict[str, str]:
    english, *others = text.split("\n")
    found = {"en": english} | {
        language: rest for language, mark, rest in (line.partition(".utf8=") for line in others) if mark
    }
    stripped = {language.strip(): " ".join(caption.split()) for language, caption in found.items()}
    return {language: caption for language, caption in stripped.items() if caption}


def _name(path: Path) -> str:
    return str(path.with_suffix("")).replace(".", "-")
