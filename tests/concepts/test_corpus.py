"""Corpora of captions: from a language set or from files, with the keys that extraction gives."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharelock_ray.concepts.corpus import SCHEMA, open_corpus
from sharelock_ray.errors import RequestError
from support import write_feature_sets, write_tar


def rows(place: Path | str) -> list[tuple]:
    tables = [part.read() for part in open_corpus(str(place)).parts]
    assert all(table.schema.names == SCHEMA.names for table in tables)
    return [tuple(row.values()) for row in pa.concat_tables(tables).to_pylist()]


def test_a_language_set_is_read_part_by_part(tmp_path):
    _, language = write_feature_sets(tmp_path, 5, parts=(1, 2))
    corpus = open_corpus(language)
    assert (len(corpus.parts), corpus.captions) == (2, 5)
    assert rows(language)[-1] == ("00000/000004", 0, "text 4")


def test_a_text_file_has_a_caption_per_line(tmp_path):
    (tmp_path / "some.txt").write_text("a dog\n\na cat\n")
    assert rows(tmp_path / "some.txt") == [("some-00000/000000000", 0, "a dog"), ("some-00000/000000002", 0, "a cat")]


def test_tables_and_tars_have_the_keys_of_an_extraction(tmp_path):
    (tmp_path / "some.csv").write_text("key,caption\nx,a dog\n")
    write_tar(tmp_path / "00.tar", {"x.jpg": b"", "x.0.txt": b"a dog", "x.1.txt": b"a cat"})
    assert rows(tmp_path / "some.csv") == [("some-00000/x", 0, "a dog")]
    assert [row[1:] for row in rows(tmp_path / "*.tar")] == [(0, "a dog"), (1, "a cat")]


def test_parquet_has_the_columns_of_a_set_or_texts_by_image(tmp_path):
    pq.write_table(pa.table({"key": ["00/x"], "caption_id": [3], "text": ["a dog"]}), tmp_path / "set.parquet")
    texts = {"key": ["x", None], "captions": [["a dog", "a cat"], ["an eft"]]}
    pq.write_table(pa.table(texts), tmp_path / "raw.parquet")
    assert rows(tmp_path / "set.parquet") == [("00/x", 3, "a dog")]
    assert rows(tmp_path / "r*.parquet") == [
        ("raw/x", 0, "a dog"),
        ("raw/x", 1, "a cat"),
        ("raw/000000001", 0, "an eft"),
    ]


def test_what_is_no_corpus_is_one_line(tmp_path):
    vision, _ = write_feature_sets(tmp_path, 5)
    pq.write_table(pa.table({"caption_ids": [1]}), tmp_path / "none.parquet")
    for place, message in (
        (vision, "is a vision set"),
        (tmp_path, "is no language set"),
        (tmp_path / "missing.txt", "no list at"),
        (tmp_path / "missing*.parquet", "no Parquet file matches"),
        (tmp_path / "none.parquet", "has no captions: name a column text; the columns are caption_ids"),
    ):
        with pytest.raises(RequestError, match=message):
            rows(place)
