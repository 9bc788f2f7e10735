"""Texts of benchmarks are sources of captions, named by their content."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import support
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.benchmark import Benchmark, read_benchmark
from sharelock_ray.evaluation.texts import texts_of


def benchmark(**fields: Any) -> Benchmark:
    images = [{"format": "class_folders", "path": "folder://"}]
    return Benchmark.model_validate({"title": "Mine", "images": images, "metrics": {"top_1": None}, **fields})


def test_class_prompts_have_a_key_per_class_and_a_caption_per_template() -> None:
    fields = {"task": "zero_shot_classification", "classes": ["cat", "dog"], "templates": ["a {}", "{c}s"]}
    ((language, name, source),) = texts_of(benchmark(**fields), ["en"], "nowhere")
    assert (language, name.partition("-")[0]) == ("en", "prompts")
    assert source is not None
    assert [each.captions for each in support.read_source(source)] == [("a cat", "cats"), ("a dog", "dogs")]


def test_equal_texts_have_one_name() -> None:
    names = {
        name: next(texts_of(read_benchmark(name), ["en"], "nowhere"))[1]
        for name in ("imagenet-1k", "imagenet-v2", "imagenet-real", "imagenet-1k-simple", "imagenet-a")
    }
    assert len(set(names.values())) == 3
    assert names["imagenet-1k"] == names["imagenet-v2"] == names["imagenet-real"]


def test_each_language_has_its_own_captions(tmp_path: Path) -> None:
    rows = {"key": ["0/1", "0/1", "0/2"], "language": ["en", "de", "de"], "caption": ["one", "eins", "zwei"]}
    pq.write_table(pa.table(rows), tmp_path / "captions.parquet")
    fields = {"task": "retrieval", "translations": "folder://captions.parquet", "languages": ["en", "de", "fr"]}
    found = {language: source for language, _, source in texts_of(benchmark(**fields), ["en", "de"], str(tmp_path))}
    read = {name: [(each.key, each.captions) for each in support.read_source(of)] for name, of in found.items() if of}
    assert read == {"en": [("en/0/1", ("one",))], "de": [("de/0/1", ("eins",)), ("de/0/2", ("zwei",))]}
    with pytest.raises(RequestError, match="has no captions in fr"):
        list(texts_of(benchmark(**fields), ["fr"], str(tmp_path)))


def test_examples_are_in_order(tmp_path: Path) -> None:
    lines = [{"images": ["x.jpg"], "captions": [f"true {i}", f"false {i}"]} for i in range(12)]
    (tmp_path / "choices.jsonl").write_text("\n".join(map(json.dumps, lines)))
    choices = {"file": "folder://choices.jsonl", "images": "images", "captions": "captions"}
    ((_, _, source),) = texts_of(
        benchmark(task="one_image_many_captions", choices=choices, metrics={"text": 0.5}), ["en"], str(tmp_path)
    )
    assert source is not None
    read = support.read_source(source)
    assert [each.captions[0] for each in read] == [f"true {i}" for i in range(12)]
    assert [each.key for each in read] == sorted(each.key for each in read)


def test_captions_in_the_source_of_the_images_are_no_other_source() -> None:
    assert list(texts_of(benchmark(task="retrieval"), ["en"], "nowhere")) == [("en", "", None)]
