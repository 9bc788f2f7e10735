"""Texts of classes are a source: prompts or descriptions, one sample a class, in the order of labels."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import support
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.folders import ClassFolderSource
from sharelock_ray.sources.parquet import ParquetSource
from sharelock_ray.sources.prompts import ClassTextSource, PromptSource, prompts_of
from sharelock_ray.sources.sample import CAPTIONS, IMAGES, LABELS, Source, change
from sharelock_ray.sources.table import TableSource
from sharelock_ray.sources.texts import TextSource
from sharelock_ray.sources.webdataset import WebDatasetSource


def test_keys_sort_as_labels_do_and_captions_are_the_templates() -> None:
    source = PromptSource(names=tuple(map(str, range(250))), templates=("a {}", "the {}"))
    samples = support.read_source(source)
    assert [sample.captions for sample in samples] == [(f"a {label}", f"the {label}") for label in range(250)]
    keys = [sample.key for sample in samples]
    assert keys == sorted(keys)
    assert keys[:2] == ["classes-00000/000000000", "classes-00000/000000001"]
    assert [len(list(source.keys_of(shard))) for shard in source.shards()] == [100, 100, 50]
    assert [key for shard in source.shards() for key in source.keys_of(shard)] == keys


def test_a_name_is_put_in_as_it_is() -> None:
    assert prompts_of("set {}: {a}", ["a {}.", "{}"]) == ["a set {}: {a}.", "set {}: {a}"]


def test_other_prompts_are_another_version() -> None:
    shard = PromptSource(names=("cat",), templates=("a {}",)).shards()[0]
    assert change(PromptSource(names=("cat",), templates=("a {}",)), shard) is None
    assert change(PromptSource(names=("dog",), templates=("a {}",)), shard) is not None


DESCRIPTIONS = {
    "cat": ["A small animal, kept as a pet.", "It purrs."],
    "dog": ["It barks,\nand fetches."],
    "cow": ["Moo."],
}


def written(folder: Path, name: str) -> str:
    """The descriptions in a file of the kind of `name`."""
    path = folder / name
    rows = [{"class": of, "text": text} for of, texts in DESCRIPTIONS.items() for text in texts]
    if name.endswith("json"):
        path.write_text(json.dumps(DESCRIPTIONS | {"dog": DESCRIPTIONS["dog"][0]}))
    elif name.endswith("csv"):
        path.write_text("class,text\n" + "".join(f'{row["class"]},"{row["text"]}"\n' for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize("name", ["texts.json", "texts.csv", "texts.parquet"])
def test_descriptions_of_a_file_are_in_the_order_of_the_classes(tmp_path: Path, name: str) -> None:
    source = ClassTextSource.of_file(written(tmp_path, name), ["dog", "cat"])
    samples = support.read_source(source)
    assert [sample.captions for sample in samples] == [tuple(DESCRIPTIONS["dog"]), tuple(DESCRIPTIONS["cat"])]
    assert [sample.key for sample in samples] == ["classes-00000/000000000", "classes-00000/000000001"]
    assert source.provides == {CAPTIONS}


def test_many_classes_are_many_shards() -> None:
    source = ClassTextSource(texts=tuple((f"text {label}",) * (1 + label % 3) for label in range(250)))
    assert [len(list(source.keys_of(shard))) for shard in source.shards()] == [100, 100, 50]
    assert [len(sample.captions) for sample in support.read_source(source)] == [1 + label % 3 for label in range(250)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", '{"cat": "Purrs.", "dog": [" "]}', "has no text for 1 of 2 classes (dog): add them"),
        ("t.json", "{", "is not JSON"),
        ("t.json", '["cat", "dog"]', "is no JSON object of texts by class name"),
        ("t.json", '{"cat": "Purrs.", "dog": [1]}', "dog has neither a text nor a list of texts"),
        ("t.csv", "name,text\ncat,Purrs.\n", "is no table with the columns class and text"),
        ("t.csv", "class,text\ncat,Purrs.\n", "has no text for 1 of 2 classes (dog): add them"),
        ("t.parquet", "text", "is no table with the columns class and text"),
        ("missing.json", None, "missing.json"),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_line(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(RequestError) as error:
        ClassTextSource.of_file(str(tmp_path / name), ["cat", "dog"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "provides"),
    [
        (WebDatasetSource(urls="*.tar"), {IMAGES, CAPTIONS, LABELS}),
        (ParquetSource(urls="*.parquet"), {IMAGES, CAPTIONS, LABELS}),
        (ParquetSource(urls="*.parquet", caption=""), {IMAGES, LABELS}),
        (TableSource(path="x.csv"), {IMAGES, CAPTIONS}),
        (TableSource(path="x.csv", caption_column="", label_column="class"), {IMAGES, LABELS}),
        (TextSource(path="x.txt"), {CAPTIONS}),
        (ClassFolderSource(path="x"), {IMAGES, LABELS}),
        (PromptSource(names=(), templates=()), {CAPTIONS}),
    ],
)
def test_a_source_says_what_it_provides(source: Source, provides: set[str]) -> None:
    assert source.provides == provides
