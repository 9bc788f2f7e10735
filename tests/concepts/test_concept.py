"""Lists of concepts: names, wnids or both; and their names in other languages."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharelock_ray.concepts.concept import Concept, concepts_of, read_concepts, read_names, with_names
from sharelock_ray.errors import RequestError


class TestAName:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("killer+whale", "killer whale"),
            ("access_road", "access road"),
            ("001.Black_footed_Albatross", "Black footed Albatross"),
            ("6\tpersian+cat", "persian cat"),
            ("100 m sprint", "100 m sprint"),
            ("3D", "3D"),
        ],
    )
    def test_is_words_as_data_sets_write_them(self, name, words):
        assert Concept(name=name).words == words

    def test_is_shown_with_its_wnid(self):
        assert str(Concept(name="crane", wnid="n02012849")) == "crane (n02012849)"
        assert str(Concept(name="crane")) == "crane"

    def test_is_among_all_names_by_language(self):
        dog = Concept(name="Hund", language="de", names={"en": ("dog",), "de": ("Köter",)})
        assert dog.all_names() == {"de": ("Hund", "Köter"), "en": ("dog",)}


class TestAList:
    def test_of_names_wnids_or_both(self, wordnet, wnids, tmp_path: Path):
        path = tmp_path / "classes.txt"
        path.write_text(f"sea_dog\n{wnids['dog']}\n{wnids['goose']} goose, solan\n{wnids['crane']}\tcrane\n")
        assert read_concepts(str(path), wordnet) == [
            Concept(name="sea_dog"),
            Concept(name="dog", wnid=wnids["dog"]),
            Concept(name="goose", wnid=wnids["goose"]),
            Concept(name="crane", wnid=wnids["crane"]),
        ]

    def test_in_json(self, wordnet, wnids, tmp_path: Path):
        path = tmp_path / "classes.json"
        path.write_text(json.dumps({"seen": [[wnids["dog"], "hound"], "cat"]}))
        assert list(map(str, read_concepts(f"{path}#seen", wordnet))) == [f"hound ({wnids['dog']})", "cat"]

    def test_in_another_language(self, wordnet):
        assert concepts_of(["Hund"], "here", wordnet, "de") == [Concept(name="Hund", language="de")]

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ([], "here has no concepts: give at least one"),
            (["dog", ""], "here, entry 2: '' is no name and no wnid"),
            ([7], "here, entry 1: 7 is no name and no wnid"),
            (["sea_dog", "cat", "Sea dog"], r"here has concepts more than once \(sea dog\): give each once"),
        ],
    )
    def test_that_is_wrong_is_one_line(self, entries, message, wordnet):
        with pytest.raises(RequestError, match=message):
            concepts_of(entries, "here", wordnet)

    def test_an_unknown_wnid_is_told_with_the_nearest(self, wordnet, wnids):
        unknown = wnids["dog"][:-1] + "x"
        assert concepts_of([unknown], "here", wordnet) == [Concept(name=unknown)]
        unknown = f"n{int(wnids['dog'][1:]) + 1:08d}"
        with pytest.raises(RequestError, match=rf"entry 1: WordNet has no noun {unknown}; the nearest is \w+ \(n"):
            concepts_of([unknown], "here", wordnet)

    def test_of_homographs_needs_wnids(self, wordnet, wnids):
        both = [f"{wnids['crane']} crane", f"{wnids['lifting crane']} crane"]
        assert len(concepts_of(both, "here", wordnet)) == 2
        with pytest.raises(RequestError, match="give each once, or with its wnid"):
            concepts_of(["crane", "crane"], "here", wordnet)


class TestATableOfNames:
    ROWS = (("dog", "de", "Hund"), ("dog", "de", "Köter"), ("Sea-dog", "de", "Seebär"))

    def written(self, path: Path) -> str:
        columns = zip(*self.ROWS, strict=True)
        table = pa.table(dict(zip(("concept", "language", "name"), map(list, columns), strict=True)))
        pq.write_table(table, path) if path.suffix == ".parquet" else pa.csv.write_csv(table, path)
        return str(path)

    @pytest.mark.parametrize("name", ["names.csv", "names.parquet"])
    def test_is_csv_or_parquet(self, name, tmp_path):
        found = read_names(self.written(tmp_path / name))
        assert found == {"dog": {"de": ("Hund", "Köter")}, "sea dog": {"de": ("Seebär",)}}

    def test_names_concepts_by_name_or_wnid(self, wnids):
        names = {"dog": {"de": ("Hund",)}, wnids["cat"]: {"de": ("Katze",)}}
        dog, cat, bird = with_names(
            [Concept(name="dog"), Concept(name="a cat", wnid=wnids["cat"]), Concept(name="bird")], names
        )
        assert (dog.names, cat.names, bird.names) == ({"de": ("Hund",)}, {"de": ("Katze",)}, {})

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("concept,name\ndog,Hund\n", "is no .csv or Parquet table with the columns concept, language, name"),
            ("concept,language,name\ndog,de,\n", "row 1 needs a concept, a language and a name"),
        ],
    )
    def test_that_is_wrong_is_one_line(self, content, message, tmp_path):
        path = tmp_path / "names.csv"
        path.write_text(content)
        with pytest.raises(RequestError, match=message):
            read_names(str(path))
        with pytest.raises(RequestError, match="no table of names at"):
            read_names(str(tmp_path / "none.csv"))
