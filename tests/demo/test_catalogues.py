"""What the packages hold: titles and keywords, names in many languages, and what is left out and why."""

from pathlib import Path

import matplotlib
import pytest

from sharelock_ray.demo.catalogues import MAX_SHARED, Picture, class_names, clip_art, emoji, stamps
from sharelock_ray.demo.drawing import Emoji, ImageFile

FONT = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
METADATA = """<svg xmlns="http://www.w3.org/2000/svg"><metadata><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:cc="http://web.resource.org/cc/"
 xmlns:dc="http://purl.org/dc/elements/1.1/"><cc:Work>
 <dc:creator><cc:Agent><dc:title>A. Painter</dc:title></cc:Agent></dc:creator>{title}
 <dc:subject><rdf:Bag>{keywords}</rdf:Bag></dc:subject></cc:Work></rdf:RDF></metadata></svg>"""


def art(path: Path, title: str | None, *keywords: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        METADATA.format(
            title="" if title is None else f"<dc:title>{title}</dc:title>",
            keywords="".join(f"<rdf:li>{word}</rdf:li>" for word in keywords),
        )
    )


class TestClipArt:
    def test_a_caption_is_the_title_and_two_keywords(self, tmp_path):
        art(tmp_path / "animals" / "owl_01.svg", "Owl  on_Branch", "owl", "", "animal", "bird")
        (picture,) = clip_art(tmp_path).pictures
        assert picture == Picture(
            "clipart/animals/owl_01",
            ImageFile(str(tmp_path / "animals" / "owl_01.svg")),
            {"en": "Owl on Branch, owl, animal"},
            "owl on branch",
            {"title": "Owl on Branch", "keywords": ["owl", "animal", "bird"]},
        )

    @pytest.mark.parametrize("word", ["0x9c7e034", "hash", "unsorted", "united_nations_member", "Owl", "11"])
    def test_words_of_upkeep_and_the_title_are_no_keywords(self, word, tmp_path):
        art(tmp_path / "owl.svg", "owl", word, "bird")
        assert clip_art(tmp_path).pictures[0].captions == {"en": "owl, bird"}

    def test_a_contributor_before_the_title_is_left_out(self, tmp_path):
        art(tmp_path / "bee.svg", "Clipart by N. B. - bee")
        assert clip_art(tmp_path).pictures[0].captions == {"en": "bee"}

    @pytest.mark.parametrize("title", ["Apple (B and W)", "apple 2", "The Apple", "apple_bw"])
    def test_variants_have_one_subject(self, title, tmp_path):
        art(tmp_path / "a.svg", title)
        assert clip_art(tmp_path).pictures[0].subject == "apple"

    def test_a_title_of_many_pictures_describes_none(self, tmp_path):
        for i in range(MAX_SHARED + 1):
            art(tmp_path / f"icon{i}.svg", "A theme")
        for i in range(MAX_SHARED):
            art(tmp_path / f"cloud{i}.svg", "Cloud")
        found = clip_art(tmp_path)
        assert {picture.captions["en"] for picture in found.pictures} == {"Cloud"}
        assert found.left_out == {"the title of a collection": MAX_SHARED + 1}

    def test_files_without_a_title_or_metadata_or_xml_are_counted(self, tmp_path):
        art(tmp_path / "a.svg", None)
        art(tmp_path / "b.svg", "  ")
        (tmp_path / "c.svg").write_text("<svg/>")
        (tmp_path / "d.svg").write_text("<svg")
        (tmp_path / "e.svg").write_bytes(b"")
        assert clip_art(tmp_path).left_out == {"no XML": 2, "no title": 3}

    def test_dots_in_names_are_replaced_since_a_samples_name_ends_at_one(self, tmp_path):
        art(tmp_path / "v1.2" / "a.b.svg", "Bee")
        assert clip_art(tmp_path).pictures[0].name == "clipart/v1-2/a-b"


def names(folder: Path, language: str, **names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = (
        f'<annotation cp="{text}">a | b</annotation><annotation cp="{text}" type="tts">{name}</annotation>'
        for text, name in names.items()
    )
    (folder / f"{language}.xml").write_text(f"<ldml><annotations>{''.join(lines)}</annotations></ldml>")


class TestEmoji:
    def test_it_has_its_names_in_all_languages(self, tmp_path):
        names(tmp_path / "annotations", "en", **{"😀": "grinning face"})
        names(tmp_path / "annotations", "de", **{"😀": "grinsendes Gesicht", "😁": "ohne englischen Namen"})
        names(tmp_path / "annotations", "en_AU", **{"😀": "↑↑↑"})
        names(tmp_path / "annotationsDerived", "fr", **{"😀": "visage rieur"})
        (picture,) = emoji(tmp_path, FONT).pictures
        assert picture.name == "emoji/1f600"
        assert picture.drawing == Emoji("😀", str(FONT))
        assert picture.captions == {"en": "grinning face", "de": "grinsendes Gesicht", "fr": "visage rieur"}

    def test_skin_tones_and_what_is_no_picture_of_the_font_are_counted(self, tmp_path):
        names(tmp_path / "annotations", "en", **{"😀": "face", "👍🏽": "thumb", "{": "bracket", "😀😀": "two"})
        found = emoji(tmp_path, FONT)
        assert [picture.captions["en"] for picture in found.pictures] == ["face"]
        assert found.left_out == {"a skin tone": 1, "not in the font": 2}


def stamp(path: Path, text: str, ending: str = ".png") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".txt").write_text(text)
    if ending:
        path.with_suffix(ending).touch()


class TestStamps:
    def test_the_first_line_is_english_and_the_others_name_their_language(self, tmp_path):
        stamp(
            tmp_path / "animals/birds/owl.x", "An owl.\nde.utf8=Eine  Eule. \npt_BR.utf8=Uma coruja.\nodd\nfr.utf8=\n"
        )
        (picture,) = stamps(tmp_path).pictures
        assert (picture.name, picture.folder) == ("animals/birds/owl", "animals")
        assert picture.captions == {"en": "An owl.", "de": "Eine Eule.", "pt_BR": "Uma coruja."}

    def test_png_is_preferred_to_svg(self, tmp_path):
        stamp(tmp_path / "food/a.x", "A.", ".svg")
        stamp(tmp_path / "food/b.x", "B.", ".svg")
        stamp(tmp_path / "food/b.x", "B.")
        drawings = [picture.drawing for picture in stamps(tmp_path).pictures]
        assert drawings == [ImageFile(str(tmp_path / "food/a.svg")), ImageFile(str(tmp_path / "food/b.png"))]

    def test_letters_and_what_has_no_picture_or_caption_are_counted(self, tmp_path):
        stamp(tmp_path / "symbols/alphabets/english/a.x", "The letter A.")
        stamp(tmp_path / "food/b.x", "A pie.", "")
        stamp(tmp_path / "food/c.x", " \nde.utf8=Ein Kuchen.")
        assert stamps(tmp_path).left_out == {"a letter or a number": 1, "no caption": 1, "no picture": 1}

    def test_a_folder_of_ten_pictures_is_a_class(self):
        pictures = [
            Picture(f"{folder}/{i}", ImageFile(""), {"en": ""}, folder=folder)
            for folder, count in (("town", 11), ("food", 10), ("medical", 9))
            for i in range(count)
        ]
        assert class_names(pictures) == ["food", "town"]
