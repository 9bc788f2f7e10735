"""Class prompts are a source of texts: one sample a class, in the order of labels."""

import pytest

import support
from sharelock_ray.sources.folders import ClassFolderSource
from sharelock_ray.sources.parquet import ParquetSource
from sharelock_ray.sources.prompts import PromptSource
from sharelock_ray.sources.sample import CAPTIONS, IMAGES, LABELS, Source, change
from sharelock_ray.sources.table import TableSource
from sharelock_ray.sources.texts import TextSource
from sharelock_ray.sources.webdataset import WebDatasetSource


def test_keys_sort_as_labels_do_and_captions_are_the_templates() -> None:
    prompts = tuple((f"a {label}", f"the {label}") for label in range(250))
    source = PromptSource(prompts=prompts)
    samples = support.read_source(source)
    assert [sample.captions for sample in samples] == list(prompts)
    keys = [sample.key for sample in samples]
    assert keys == sorted(keys)
    assert keys[:2] == ["classes-00000/000000000", "classes-00000/000000001"]
    assert [len(list(source.keys_of(shard))) for shard in source.shards()] == [100, 100, 50]
    assert [key for shard in source.shards() for key in source.keys_of(shard)] == keys


def test_other_prompts_are_another_version() -> None:
    shard = PromptSource(prompts=(("a cat",),)).shards()[0]
    assert change(PromptSource(prompts=(("a cat",),)), shard) is None
    assert change(PromptSource(prompts=(("a dog",),)), shard) is not None


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
        (PromptSource(prompts=()), {CAPTIONS}),
    ],
)
def test_a_source_says_what_it_provides(source: Source, provides: set[str]) -> None:
    assert source.provides == provides
