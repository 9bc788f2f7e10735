"""Class prompts are a source of texts: one sample a class, in the order of labels."""

import pytest

import support
from sharelock_ray.sources.folders import ClassFolderSource
from sharelock_ray.sources.parquet import ParquetSource
from sharelock_ray.sources.prompts import PromptSource, prompts_of
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
