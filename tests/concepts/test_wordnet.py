"""WordNet's database files are read as wndb(5WN) describes them, and damaged ones end in one line."""

from pathlib import Path

import pytest

from nouns import write_wordnet
from sharelock_ray.concepts import wordnet as module
from sharelock_ray.concepts.wordnet import WordNet, open_wordnet, plain
from sharelock_ray.errors import RequestError


class TestASynset:
    def test_has_words_and_a_definition(self, wordnet, wnids):
        dog = wordnet[wnids["dog"]]
        assert dog.lemmas == ("dog", "domestic dog")
        assert dog.definition == "what dog is"
        assert str(dog) == f"dog ({wnids['dog']})"

    def test_refers_to_others_and_to_no_verbs(self, wordnet, wnids):
        dog = wordnet[wnids["dog"]]
        assert dog.hypernyms == (wnids["animal"],)
        assert dog.hyponyms == tuple(wnids[name] for name in ("puppy", "terrier", "laika"))
        assert (dog.parts, dog.wholes) == ((wnids["flag"],), ())
        assert wordnet[wnids["flag"]].wholes == (wnids["dog"],)

    def test_may_be_an_instance(self, wordnet, wnids):
        assert wordnet[wnids["laika"]].hypernyms == (wnids["dog"],)

    def test_its_id_is_its_place_in_the_file(self, nouns, wnids):
        data = (nouns[0] / "data.noun").read_bytes()
        for wnid in wnids.values():
            assert data[int(wnid[1:]) :].startswith(wnid[1:].encode())

    def test_another_id_is_not_there(self, wordnet):
        assert "n00000000" not in wordnet


class TestSenses:
    def test_are_in_the_order_of_the_index(self, wordnet, wnids):
        assert wordnet.senses("crane") == (wnids["crane"], wnids["lifting crane"])

    @pytest.mark.parametrize("name", ["Airedale_Terrier", "AIREDALE-TERRIER", " Airedale  terrier "])
    def test_case_hyphens_and_spaces_do_not_count(self, name, wordnet, wnids):
        assert wordnet.senses(name) == (wnids["airedale"],)

    @pytest.mark.parametrize(("name", "noun"), [("geese", "goose"), ("puppies", "puppy"), ("sea dogs", "sea dog")])
    def test_of_a_plural_are_those_of_its_singular(self, name, noun, wordnet, wnids):
        assert wordnet.senses(name) == (wnids[noun],)

    def test_there_may_be_none(self, wordnet):
        assert wordnet.senses("unicorn") == ()

    def test_plain_names_are_equal_if_they_are_written_alike(self):
        assert plain("Black-footed_Albatross") == plain(" black footed  albatross") == "black footed albatross"


def test_exceptions_are_read_by_part_of_speech(wordnet):
    assert wordnet.exceptions == {"geese": ("goose",), "sea wolves": ("sea wolf",)}
    assert wordnet.exceptions_of("verb") == {"ran": ("run",)}


class TestDamaged:
    def refused(self, folder: Path) -> str:
        with pytest.raises(RequestError) as error:
            WordNet(folder).senses("dog")
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_a_missing_file_is_named(self, tmp_path):
        write_wordnet(tmp_path)
        (tmp_path / "index.noun").unlink()
        assert "index.noun" in self.refused(tmp_path)

    def test_a_file_that_is_cut_short(self, tmp_path):
        write_wordnet(tmp_path)
        data = tmp_path / "data.noun"
        data.write_bytes(data.read_bytes()[:-40])
        assert "data.noun is damaged (its end is missing)" in self.refused(tmp_path)

    def test_a_file_without_its_last_synsets(self, tmp_path):
        write_wordnet(tmp_path)
        data = tmp_path / "data.noun"
        lines = data.read_bytes().splitlines(keepends=True)
        data.write_bytes(b"".join(lines[:5]))
        assert "which is missing" in self.refused(tmp_path)

    def test_a_file_whose_bytes_moved(self, tmp_path):
        wnids = write_wordnet(tmp_path)
        data = tmp_path / "data.noun"
        data.write_bytes(data.read_bytes().replace(b"\n", b"\r\n"))
        assert f"data.noun is damaged (at byte {int(wnids['animal'][1:]) + 1}" in self.refused(tmp_path)

    def test_an_index_of_another_file(self, tmp_path):
        write_wordnet(tmp_path)
        index = tmp_path / "index.noun"
        index.write_text(index.read_text().replace("n 1 0 1 0 0", "n 1 0 1 0 1"))
        assert "index.noun is damaged (near" in self.refused(tmp_path)

    def test_another_version_has_other_ids(self, tmp_path):
        write_wordnet(tmp_path)
        data = tmp_path / "data.noun"
        data.write_bytes(data.read_bytes().replace(b"WordNet 3.0", b"WordNet 3.1"))
        assert "has WordNet 3.1, whose ids are not ImageNet's" in self.refused(tmp_path)


class TestOpen:
    def test_a_folder_that_is_given(self, nouns, wnids):
        assert open_wordnet(str(nouns[0])).senses("dog") == (wnids["dog"],)

    def test_a_folder_that_is_missing_is_one_line(self, tmp_path):
        with pytest.raises(RequestError, match=r"no folder of WordNet 3\.0 at .*: check the path"):
            open_wordnet(str(tmp_path / "none"))

    def test_that_of_the_system(self, nouns, wnids, monkeypatch):
        monkeypatch.setattr(module, "INSTALLED", nouns[0])
        assert open_wordnet().senses("dog") == (wnids["dog"],)

    def test_without_any_the_line_says_what_to_do(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "INSTALLED", tmp_path)
        monkeypatch.setenv("SHARELOCK_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("PATH", "")
        with pytest.raises(RequestError, match=r"Debian's wordnet-base 1:3\.0-37 is missing .* --wordnet FOLDER"):
            open_wordnet()
