"""Benchmarks of a recipe: their features are made once, what is known is not scored again, and each mistake is one
line."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import support
from sharelock_ray.demo.scenes import write_scenes
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.names import digest
from sharelock_ray.recipe.load import parse_recipe, read_recipe
from sharelock_ray.recipe.schema import DataSpec, Recipe
from sharelock_ray.sources.webdataset import WebDatasetSource
from sharelock_ray.workflows import extract
from sharelock_ray.workflows.audit import audit
from sharelock_ray.workflows.compare import compare
from sharelock_ray.workflows.evaluate import Evaluation, evaluate
from sharelock_ray.workflows.inputs import Split
from sharelock_ray.workflows.report import report

COLOURS = {"blue": (30, 30, 200), "green": (30, 200, 30), "red": (200, 30, 30)}
NAMES = {"en": ["blue", "green", "red"], "de": ["a", "small", "circle"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Recipe:
    """A run without an evaluation."""
    folder = tmp_path_factory.mktemp("run")
    data = {"dataset": "mine", "train": {"urls": support.write_pairs(folder / "data", shards=2, samples=40)}}
    recipe = read_recipe(str(support.write_recipe(folder / "tiny.yaml", models, data=data)))
    support.extracted_alone(recipe)
    support.trained_alone(recipe, Path(recipe.output))
    return recipe


@pytest.fixture
def recipe(trained: Recipe, tmp_path: Path) -> Recipe:
    """The run, in a folder of its own."""
    output = shutil.copytree(trained.output, tmp_path / "run")
    return trained.model_copy(update={"output": str(output)})


@pytest.fixture
def extracted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is extracted from now on, in this process: split, modality and data set."""
    made: list[str] = []

    def alone(recipe: Recipe, splits: list[Split]) -> None:
        made.extend(f"{split.title} {encoder.modality}" for split in splits for encoder in split.encoders)
        support.extract_alone(recipe, splits)

    monkeypatch.setattr(extract, "extract_splits", alone)
    return made


def with_benchmarks(recipe: Recipe, **benchmarks: dict[str, Any]) -> Recipe:
    """The recipe with benchmarks by name; `own_x` is the file x.yaml in the folder above the run's."""
    folder = Path(recipe.output).parent
    named = {
        str(folder / f"{name[4:]}.yaml") if name.startswith("own_") else name: of for name, of in benchmarks.items()
    }
    content = recipe.model_dump(mode="json")
    content["evaluation"]["benchmarks"] = named
    return parse_recipe(content, "here")


def write(path: Path, **content: Any) -> None:
    path.write_text(yaml.safe_dump({"images": [{"format": "class_folders", "path": "folder://"}], **content}))


def with_images(folder: Path, count: int = 2) -> str:
    """A class folder for each colour."""
    for name, colour in COLOURS.items():
        for i in range(count):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{i}.jpg").write_bytes(support.jpeg(colour, seed=i))
    return str(folder)


@pytest.fixture
def colours(tmp_path: Path) -> dict[str, Any]:
    """Classification in two languages."""
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    write(
        tmp_path / "colours.yaml",
        title="Colours",
        task="zero_shot_classification",
        classes=f"{tmp_path}/names.json#{{language}}",
        templates=["a {}", "the {}"],
        languages=["de", "en"],
        metrics={"top_1": None},
        size=7,
    )
    return {"folder": with_images(tmp_path / "colours")}


@pytest.fixture
def captions(tmp_path: Path) -> dict[str, Any]:
    """Retrieval by captions in two languages; one image has two."""
    folder = Path(with_images(tmp_path / "captioned", count=1))
    rows = [(f"{name}/0.jpg", language, f"a {name}") for name in COLOURS for language in ("en", "ja")]
    rows.append(("red/0.jpg", "en", "the red"))
    columns = dict(zip(("key", "language", "caption"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), folder / "captions.parquet")
    write(
        tmp_path / "captions.yaml",
        title="Captions",
        task="retrieval",
        translations="folder://captions.parquet",
        languages=["en", "ja"],
        metrics={"text_to_image": None},
    )
    return {"folder": str(folder)}


@pytest.fixture
def swaps(tmp_path: Path) -> dict[str, Any]:
    """Two images, two captions."""
    folder = Path(with_images(tmp_path / "swaps", count=1))
    pairs = [("red", "blue"), ("green", "red"), ("blue", "absent")]
    lines = [{"images": [f"{a}/0.jpg", f"{b}/0.jpg"], "captions": [f"a {a}", f"a {b}"], "tag": a} for a, b in pairs]
    (folder / "choices.jsonl").write_text("\n".join(map(json.dumps, lines)))
    write(
        tmp_path / "swaps.yaml",
        title="Swaps",
        task="two_images_two_captions",
        choices={"file": "folder://choices.jsonl", "images": "images", "captions": "captions", "kind": "tag"},
        metrics={"group": 1 / 6},
    )
    return {"folder": str(folder)}


@pytest.fixture
def learnt(tmp_path: Path) -> dict[str, Any]:
    """The classes of two of three colours, with training images, and both tasks of frozen features."""
    for part, count in (("val", 3), ("train", 6)):
        with_images(tmp_path / "learnt" / part, count)
    write(
        tmp_path / "learnt.yaml",
        title="Learnt",
        task="zero_shot_classification",
        images=[{"format": "class_folders", "path": "folder://val"}],
        train_images=[{"urls": "folder://train/*.tar"}, {"format": "class_folders", "path": "folder://train"}],
        classes=["navy", "lime", "crimson"],
        folders=["blue", "green", "red"],
        mask=["navy", "crimson"],
        templates=["a {}"],
        metrics={"top_1": 0.5},
    )
    return {"folder": str(tmp_path / "learnt"), "frozen": ["nearest_neighbours", "linear_probe"]}


def of_benchmarks(evaluation: Evaluation) -> dict[tuple[str, str], Any]:
    return {(r.benchmark.name, r.benchmark.part): r for r in evaluation.records if r.benchmark}


def samples(recipe: Recipe, name: str) -> pa.Table:
    return pq.read_table(Path(recipe.output) / "evaluation" / f"{name}.parquet")


class TestClassification:
    def test_has_a_record_and_samples_in_each_language(
        self, recipe: Recipe, colours: dict[str, Any], extracted: list[str]
    ) -> None:
        own = with_benchmarks(recipe, own_colours={**colours, "languages": "all"})
        found = of_benchmarks(evaluate(own))
        assert list(found) == [("colours", "de"), ("colours", "en")]
        # Images of a benchmark are seen by vision encoders alone.
        assert extracted == ["colours test vision", "colours de texts language", "colours en texts language"]
        record = found["colours", "de"]
        assert (record.task, record.result.images, record.result.candidates) == ("zero_shot_classification", 6, 3)
        asked = record.benchmark
        assert asked.class_digest == digest(NAMES["de"])
        assert asked.template_digest == digest(["a {}", "the {}"])
        assert asked.ties == "strict"
        assert asked.images.path.startswith("colours/test/vision/tiny-resnet-")
        assert asked.texts.path.startswith("texts/prompts-")
        assert asked.preprocessing["interpolation"]
        assert "torch" in record.software
        assert record.notes == ("colours (de): 6 of 7 are scored",)
        rows = samples(own, "colours-de")
        assert rows.column_names == ["key", "label", "predicted", "rank", "tied"]
        assert rows["key"][0].as_py() == "blue/0.jpg"
        assert rows["label"].to_pylist() == [0, 0, 1, 1, 2, 2]
        right = np.array(rows["rank"]) == 0
        assert right.mean() == record.result.top_1.value
        assert ((np.array(rows["predicted"]) == np.array(rows["label"])) == right).all()
        assert json.loads(rows.schema.metadata[b"benchmark"]) == asked.model_dump(mode="json")

    def test_is_in_english_if_no_language_is_named(
        self, recipe: Recipe, colours: dict[str, Any], extracted: list[str]
    ) -> None:
        assert list(of_benchmarks(evaluate(with_benchmarks(recipe, own_colours=colours)))) == [("colours", "en")]

    def test_of_images_with_several_labels_takes_any(
        self, recipe: Recipe, tmp_path: Path, extracted: list[str]
    ) -> None:
        folder = Path(with_images(tmp_path / "any", count=1))
        for name in COLOURS:
            (folder / name / "0.jpg").rename(folder / name / f"{name}.jpg")
        (folder / "labels.json").write_text(json.dumps({"blue.jpg": [0, 1, 2], "red.jpg": [2]}))
        fields = {"classes": NAMES["en"], "templates": ["a {}"], "image_labels": "folder://labels.json"}
        write(tmp_path / "any.yaml", title="Any", task="zero_shot_classification", metrics={"top_1": None}, **fields)
        write(
            tmp_path / "all.yaml",
            title="All",
            task="multi_label_classification",
            metrics={"mean_average_precision": None},
            **fields,
        )
        places = {"own_any": {"folder": str(folder)}, "own_all": {"folder": str(folder)}}
        own = with_benchmarks(recipe, **places)
        found = of_benchmarks(evaluate(own))
        one, several = found["any", "en"], found["all", "en"]
        assert (one.task, one.result.images, one.result.chance) == ("any_label_classification", 2, pytest.approx(2 / 3))
        rows = {row["key"]: row for row in samples(own, "any-en").to_pylist()}
        assert rows["blue/blue.jpg"]["label"] == [0, 1, 2]
        assert rows["blue/blue.jpg"]["rank"] == 0
        assert (several.task, several.result.images) == ("multi_label_classification", 2)
        assert len(samples(own, "all-en")["score"][0]) == 3


class TestFrozen:
    """Tasks of the frozen vision features, by training images."""

    def test_each_is_a_record_with_samples_that_names_no_model(
        self, recipe: Recipe, learnt: dict[str, Any], extracted: list[str]
    ) -> None:
        own = with_benchmarks(recipe, own_learnt=learnt)
        found = of_benchmarks(evaluate(own))
        assert extracted == ["learnt test vision", "learnt train vision", "learnt en texts language"]
        assert list(found) == [("learnt", "en"), ("learnt", "nearest_neighbours"), ("learnt", "linear_probe")]
        near, probe = found["learnt", "nearest_neighbours"], found["learnt", "linear_probe"]
        assert (near.result.neighbours, near.result.temperature) == (12, 0.07)
        assert (probe.result.seed, probe.result.penalty) == (0, pytest.approx(0.01))
        for record in (near, probe):
            asked, result = record.benchmark, record.result
            # Images of other classes than those of the mask neither count nor vote.
            assert (result.images, result.training_images, result.candidates, result.chance) == (6, 12, 2, 0.5)
            assert result.per_class.keys() == {"navy", "crimson"}
            assert (asked.model, asked.texts, asked.language, asked.template_digest) == (None,) * 4
            assert asked.class_digest == digest(["navy", "crimson"])
            assert asked.training_images.path.startswith("learnt/train/vision/tiny-resnet-")
            assert (record.model_step, record.dataset, record.split) == (None, "learnt", "test")
            rows = samples(own, f"learnt-{record.task}")
            right = np.array(rows["rank"]) == 0
            assert right.mean() == result.top_1.value == 1
            assert rows["label"].to_pylist() == rows["predicted"].to_pylist() == [0, 0, 0, 1, 1, 1]
            assert json.loads(rows.schema.metadata[b"benchmark"]) == asked.model_dump(mode="json")

    def test_tars_are_read_too(self, recipe: Recipe, learnt: dict[str, Any], extracted: list[str]) -> None:
        folder = Path(learnt["folder"]) / "train"
        members = {f"{i}.jpg": support.jpeg(list(COLOURS.values())[i % 3], seed=i) for i in range(9)}
        members["9.jpg"] = b"no image"
        labels = {f"{i}.cls": str(i % 3).encode() for i in range(10)}
        support.write_tar(folder / "0.tar", dict(sorted((members | labels).items())))
        path = Path(recipe.output).parent / "learnt.yaml"
        content = yaml.safe_load(path.read_text())
        del content["mask"]
        path.write_text(yaml.safe_dump(content))
        found = of_benchmarks(evaluate(with_benchmarks(recipe, own_learnt=learnt)))["learnt", "linear_probe"]
        assert (found.result.training_images, found.result.candidates, found.result.top_1.value) == (9, 3, 1)
        assert found.notes == ("1 training images of learnt could not be read and do not count",)

    def test_is_known_to_a_later_model_of_the_same_encoder_and_in_any_language(
        self, recipe: Recipe, colours: dict[str, Any], tmp_path: Path, extracted: list[str]
    ) -> None:
        content = yaml.safe_load((tmp_path / "colours.yaml").read_text())
        layout = {"format": "class_folders", "path": with_images(tmp_path / "elsewhere")}
        (tmp_path / "colours.yaml").write_text(yaml.safe_dump(content | {"train_images": [layout]}))
        asked = {**colours, "frozen": ["nearest_neighbours"]}
        first = of_benchmarks(evaluate(with_benchmarks(recipe, own_colours=asked)))
        support.trained_alone(recipe, tmp_path / "other", seed=1)
        shutil.rmtree(Path(recipe.output) / "best")
        shutil.copytree(tmp_path / "other" / "best", Path(recipe.output) / "best")
        extracted.clear()
        written = Path(recipe.output) / "evaluation" / "colours-nearest_neighbours.parquet"
        before = written.stat().st_mtime_ns
        again = of_benchmarks(evaluate(with_benchmarks(recipe, own_colours={**asked, "languages": ["de"]})))
        place = ("colours", "nearest_neighbours")
        assert again[place] == first[place]
        assert ("colours", "en") not in again
        assert written.stat().st_mtime_ns == before
        assert extracted == ["colours de texts language"]

    def test_of_another_vision_encoder_is_dropped_with_the_model(
        self, recipe: Recipe, learnt: dict[str, Any], extracted: list[str]
    ) -> None:
        found = evaluate(with_benchmarks(recipe, own_learnt=learnt))
        path = Path(recipe.output) / "evaluation.json"
        encoder = Path(found.records[-1].benchmark.images.path).name
        path.write_text(path.read_text().replace(encoder, "other-01234567").replace(found.request.model, "another"))
        assert of_benchmarks(evaluate(with_benchmarks(recipe))) == {}

    def test_are_shown(self, recipe: Recipe, learnt: dict[str, Any], extracted: list[str], said: io.StringIO) -> None:
        own = with_benchmarks(recipe, own_learnt=learnt)
        evaluate(own)
        assert "evaluate learnt: linear probe, top-1 100.0% of 6 images" in said.getvalue().splitlines()
        summary = report(own)
        rows = dict(summary.rows())
        assert rows["learnt linear probe, top-1"].startswith("100.0% (95 % interval")
        assert "learnt k-nearest-neighbour classification, top-1" in rows
        page = Path(summary.page).read_text()
        assert "<td>learnt</td><td></td><td>linear probe, top-1</td>" in page
        # They are of no language, so they are in no heat map.
        assert summary.heat_maps == []
        titles = {measure.title for measure in compare([recipe.output]).groups}
        assert {"learnt: nearest neighbours, top-1", "learnt: linear probe, top-1"} <= titles


class TestRetrieval:
    def test_counts_the_captions_of_each_language(
        self, recipe: Recipe, captions: dict[str, Any], extracted: list[str]
    ) -> None:
        own = with_benchmarks(recipe, own_captions={**captions, "languages": ["ja", "en"]})
        found = of_benchmarks(evaluate(own))
        english = found["captions", "en"].result
        assert (english.images, english.texts, found["captions", "ja"].result.texts) == (3, 4, 3)
        assert english.chance_text_to_image[1] == pytest.approx(1 / 3)
        assert english.chance_image_to_text[1] == pytest.approx((1 / 4 + 1 / 4 + 2 / 4) / 3)
        rows = samples(own, "captions-en").to_pylist()
        assert [row["direction"] for row in rows] == ["image_to_text"] * 3 + ["text_to_image"] * 4
        assert [row["text"] for row in rows] == [None] * 3 + ["a blue", "a green", "a red", "the red"]
        hits = [row["rank"] == 0 for row in rows if row["direction"] == "text_to_image"]
        assert np.mean(hits) == english.text_to_image[1].value

    def test_of_a_source_with_captions_needs_no_other_texts(
        self, recipe: Recipe, tmp_path: Path, extracted: list[str]
    ) -> None:
        support.write_pairs(tmp_path / "pairs", shards=1, samples=6)
        write(
            tmp_path / "pairs.yaml",
            title="Pairs",
            task="retrieval",
            images=[{"urls": "folder://*.tar"}],
            metrics={"text_to_image": None},
        )
        found = of_benchmarks(evaluate(with_benchmarks(recipe, own_pairs={"folder": str(tmp_path / "pairs")})))
        assert extracted == ["pairs test vision", "pairs test language"]
        assert found["pairs", "en"].result.images == 6


class TestCompositional:
    def test_scores_the_examples_that_have_their_images(
        self, recipe: Recipe, swaps: dict[str, Any], extracted: list[str]
    ) -> None:
        own = with_benchmarks(recipe, own_swaps=swaps)
        record = of_benchmarks(evaluate(own))["swaps", "en"]
        assert (record.result.total.samples, list(record.result.by_kind)) == (2, ["red", "green"])
        assert record.notes == ("1 of 3 examples of swaps lack an image",)
        rows = samples(own, "swaps-en")
        assert rows["key"].to_pylist()[0] == ["red/0.jpg", "blue/0.jpg"]
        assert np.mean(rows["group"].to_pylist()) == record.result.total.group.value

    def test_attributes_of_images_and_captions_give_a_ceiling(self, recipe: Recipe, extracted: list[str]) -> None:
        folder = Path(recipe.output).parent / "scenes"
        write_scenes(str(folder), seed=0, train_images=2, test_images_per_class=1, image_size=32, shards=1, choices=8)
        names = ("scenes-swap", "scenes-replace")
        found = of_benchmarks(evaluate(with_benchmarks(recipe, **{name: {"folder": str(folder)} for name in names})))
        for name, measure in zip(names, ("group", "text"), strict=True):
            record = found[name, "en"]
            limit = record.result.ceiling
            assert limit.measure == measure
            assert limit.total.samples == record.result.total.samples
            assert limit.total.model == getattr(record.result.total, measure)
            assert {kind: loss.samples for kind, loss in limit.by_kind.items()} == dict.fromkeys(
                record.result.by_kind, 8
            )
            rows = samples(recipe, f"{name}-en")
            assert np.mean(rows["both_probes"].to_pylist()) == limit.total.both.value
        before = found[names[0], "en"]
        # Another table is another question; one without these images has no answer.
        table = pq.read_table(folder / "attributes.parquet")
        renamed = pa.array([key and f"other/{key}" for key in table["image"].to_pylist()], pa.string())
        pq.write_table(table.set_column(0, "image", renamed), folder / "attributes.parquet")
        after = of_benchmarks(evaluate(with_benchmarks(recipe, **{names[0]: {"folder": str(folder)}})))[names[0], "en"]
        assert after.benchmark.truth_digest != before.benchmark.truth_digest
        assert (after.result.ceiling, after.result.total) == (None, before.result.total)
        assert "no example has attributes of its images and captions" in after.notes[0]
        # The recipe may name a table of one's own.
        own = {"folder": str(folder), "attributes": str(folder / "own.parquet")}
        pq.write_table(table, own["attributes"])
        again = of_benchmarks(evaluate(with_benchmarks(recipe, **{names[0]: own})))[names[0], "en"]
        assert again.result == before.result

    def test_attributes_of_another_task_are_one_line(self, recipe: Recipe, colours: dict[str, Any]) -> None:
        with pytest.raises(RequestError, match="colours has no examples of compositional choice"):
            evaluate(with_benchmarks(recipe, own_colours={**colours, "attributes": "a.parquet"}))


class TestEvaluate:
    def test_does_what_is_missing_in_any_order(
        self,
        recipe: Recipe,
        colours: dict[str, Any],
        swaps: dict[str, Any],
        extracted: list[str],
        said: io.StringIO,
    ) -> None:
        first = evaluate(with_benchmarks(recipe, own_swaps=swaps))
        assert evaluate(with_benchmarks(recipe, own_swaps=swaps)) == first
        assert said.getvalue().splitlines()[-1] == "evaluate: already done"
        extracted.clear()
        kept = {p: p.stat().st_mtime_ns for p in Path(recipe.output).rglob("*.parquet")}
        # What the recipe does not name now stays.
        found = of_benchmarks(evaluate(with_benchmarks(recipe, own_colours=colours)))
        assert extracted == ["colours test vision", "colours en texts language"]
        assert list(found) == [("swaps", "en"), ("colours", "en")]
        # A further language is embedded and scored alone.
        extracted.clear()
        more = with_benchmarks(recipe, own_swaps=swaps, own_colours={**colours, "languages": ["en", "de"]})
        assert len(of_benchmarks(evaluate(more))) == 3
        assert extracted == ["colours de texts language"]
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        # The run's own split was scored once.
        assert evaluate(more).records[0] == first.records[0]

    def test_needs_neither_the_images_nor_features_of_the_training(
        self, recipe: Recipe, colours: dict[str, Any], extracted: list[str]
    ) -> None:
        shutil.rmtree(Path(recipe.output) / "features" / "mine")
        data = DataSpec(dataset="mine", train=WebDatasetSource(urls="nowhere/*.tar"))
        own = with_benchmarks(recipe.model_copy(update={"data": data}), own_colours=colours)
        first = evaluate(own)
        assert first.notes == ("the train split is left out: it has no features",)
        assert list(of_benchmarks(first)) == [("colours", "en")]
        assert ("note", first.notes[0]) in report(own).rows()
        # Features outlive the images of a benchmark too.
        shutil.rmtree(colours["folder"])
        (Path(recipe.output) / "evaluation" / "colours-en.parquet").unlink()
        assert of_benchmarks(evaluate(own)) == of_benchmarks(first)

    def test_of_other_names_or_rules_is_another_request(
        self, recipe: Recipe, colours: dict[str, Any], tmp_path: Path, extracted: list[str]
    ) -> None:
        own = with_benchmarks(recipe, own_colours=colours)
        evaluate(own)
        extracted.clear()
        rule = evaluate(with_benchmarks(recipe, own_colours={**colours, "ties": "first_index"}))
        assert of_benchmarks(rule)["colours", "en"].result.ties == "first_index"
        assert extracted == []
        (tmp_path / "names.json").write_text(json.dumps({**NAMES, "en": ["red", "red", "blue"]}))
        changed = of_benchmarks(evaluate(own))
        assert changed["colours", "en"].result.candidates == 2
        assert "2 of 3 classes share their name" in changed["colours", "en"].notes[0]

    def test_of_another_model_keeps_nothing(
        self, recipe: Recipe, colours: dict[str, Any], swaps: dict[str, Any], extracted: list[str]
    ) -> None:
        evaluate(with_benchmarks(recipe, own_swaps=swaps))
        extracted.clear()
        own = with_benchmarks(recipe, own_colours=colours)
        support.trained_alone(own, Path(recipe.output) / "other", seed=1)
        shutil.rmtree(Path(recipe.output) / "best")
        shutil.copytree(Path(recipe.output) / "other" / "best", Path(recipe.output) / "best")
        assert list(of_benchmarks(evaluate(own))) == [("colours", "en")]

    def test_two_models_are_compared_in_pairs_on_every_benchmark_and_the_split(
        self,
        recipe: Recipe,
        colours: dict[str, Any],
        captions: dict[str, Any],
        swaps: dict[str, Any],
        tmp_path: Path,
        extracted: list[str],
    ) -> None:
        own = with_benchmarks(recipe, own_colours=colours, own_captions=captions, own_swaps=swaps)
        evaluate(own)
        other = shutil.copytree(recipe.output, tmp_path / "other")
        shutil.rmtree(other / "best")
        shutil.move(support.trained_alone(own, tmp_path / "training", seed=1).best, other / "best")
        evaluate(own.model_copy(update={"output": str(other)}))
        found = compare([recipe.output, str(other)])
        assert not [note for note in found.notes if "pairs" in note]
        assert {each.measure.dataset for each in found.paired} == {"mine", "colours", "captions", "swaps"}
        assert len(found.paired) == 2 + 1 + 2 + 3 == len(found.main)
        for each in found.paired:
            first, second = (score.value for score in found.main[each.measure])
            assert each.difference.value == pytest.approx(second - first)

    def test_texts_that_benchmarks_share_are_embedded_once(
        self, recipe: Recipe, colours: dict[str, Any], tmp_path: Path, extracted: list[str]
    ) -> None:
        shutil.copy(tmp_path / "colours.yaml", tmp_path / "again.yaml")
        same = yaml.safe_load((tmp_path / "colours.yaml").read_text()) | {"images_of": "colours"}
        (tmp_path / "same.yaml").write_text(yaml.safe_dump(same))
        found = evaluate(with_benchmarks(recipe, own_colours=colours, own_again=colours, own_same=colours))
        assert extracted == ["colours test vision", "colours en texts language", "again test vision"]
        assert len(of_benchmarks(found)) == 3


def test_the_report_shows_them(
    recipe: Recipe, colours: dict[str, Any], swaps: dict[str, Any], captions: dict[str, Any], extracted: list[str]
) -> None:
    own = with_benchmarks(recipe, own_colours=colours, own_swaps=swaps, own_captions=captions)
    evaluate(own)
    summary = report(own)
    rows = dict(summary.rows())
    assert rows["colours (en) top-1"].endswith("chance 33.3%) of 6 images")
    recalls = {name for name in rows if name.startswith("captions")}
    assert recalls == {"captions (en) image to text recall@1", "captions (en) text to image recall@1"}
    assert {"swaps (en) text score", "swaps (en) image score", "swaps (en) group score"} <= rows.keys()
    # Their features are not listed: many languages have many.
    assert {m.dataset for m in summary.features} == {"mine"}
    records = summary.as_json()["evaluation"]["records"]
    assert [each["benchmark"]["name"] for each in records if each["benchmark"]] == ["colours", "swaps", "captions"]
    page = Path(summary.page).read_text()
    assert "<h2>Benchmarks</h2>" in page
    assert "group score" in page
    assert "text to image recall@10" in page


def test_an_audit_covers_them(recipe: Recipe, colours: dict[str, Any], extracted: list[str]) -> None:
    own = with_benchmarks(recipe, own_colours=colours)
    assert len(audit(own)) == 2
    evaluate(own)
    assert [found.problems for found in audit(own)] == [[]] * 4


def test_a_benchmark_is_named_on_the_command_line_too(tmp_path: Path, models: Path) -> None:
    path = str(support.write_recipe(tmp_path / "tiny.yaml", models))
    found = read_recipe(path, ["evaluation.benchmarks.stl10.folder=images"]).evaluation.benchmarks
    assert found["stl10"].folder == str(Path("images").absolute())


class TestMistakes:
    def test_an_unknown_name_gets_the_nearest(self, recipe: Recipe) -> None:
        with pytest.raises(RequestError, match=r"there is no benchmark 'stl11': did you mean `stl10`\?"):
            with_benchmarks(recipe, stl11={"folder": "x"})

    def test_an_unknown_language_gets_the_nearest(self, recipe: Recipe, colours: dict[str, Any]) -> None:
        with pytest.raises(RequestError, match=r"Colours has no texts in 'dee': did you mean `de`\?"):
            evaluate(with_benchmarks(recipe, own_colours={**colours, "languages": ["dee"]}))

    def test_absent_images_are_one_line_before_anything_is_extracted(
        self, recipe: Recipe, colours: dict[str, Any], swaps: dict[str, Any], tmp_path: Path, extracted: list[str]
    ) -> None:
        own = with_benchmarks(recipe, own_swaps=swaps, own_colours={"folder": str(tmp_path / "nowhere")})
        with pytest.raises(RequestError, match=r"there are no images of Colours in .*/nowhere: they are exp") as error:
            evaluate(own)
        assert "\n" not in str(error.value)
        assert not (Path(recipe.output) / "features" / "swaps").exists()

    def test_absent_training_images_are_one_line_before_anything_is_extracted(
        self, recipe: Recipe, learnt: dict[str, Any], extracted: list[str]
    ) -> None:
        shutil.rmtree(Path(learnt["folder"]) / "train")
        with pytest.raises(RequestError, match=r"no training images of Learnt in .* or .*/train/<class>/<im") as error:
            evaluate(with_benchmarks(recipe, own_learnt=learnt))
        assert "\n" not in str(error.value)
        assert not (Path(recipe.output) / "features" / "learnt").exists()

    def test_frozen_features_need_training_images_and_one_label_per_image(
        self, recipe: Recipe, colours: dict[str, Any], swaps: dict[str, Any], extracted: list[str]
    ) -> None:
        for name, of, why in (
            ("colours", colours, "Colours names no `train_images`"),
            ("swaps", swaps, "Swaps is no classification with one label per image"),
        ):
            asked = with_benchmarks(recipe, **{f"own_{name}": {**of, "frozen": ["linear_probe"]}})
            with pytest.raises(RequestError, match=f"{why}, which `frozen` needs: take `frozen` away"):
                evaluate(asked)
        assert extracted == []

    def test_an_unknown_task_of_frozen_features_is_one_line(self, recipe: Recipe, learnt: dict[str, Any]) -> None:
        with pytest.raises(RequestError, match=r"frozen.*nearest_neighbours.*\(it is 'knn'\)"):
            with_benchmarks(recipe, own_learnt={**learnt, "frozen": ["knn"]})

    def test_training_images_of_other_classes_are_refused(
        self, recipe: Recipe, learnt: dict[str, Any], extracted: list[str]
    ) -> None:
        path = Path(recipe.output).parent / "learnt.yaml"
        content = yaml.safe_load(path.read_text())
        del content["folders"], content["mask"]
        path.write_text(yaml.safe_dump(content))
        train = Path(learnt["folder"]) / "train"
        (train / "green").rename(train / "grey")
        with pytest.raises(
            RequestError, match=r"images of learnt are in other class folders than its images \(green\)"
        ):
            evaluate(with_benchmarks(recipe, own_learnt=learnt))

    def test_other_training_images_than_those_of_the_features_are_refused(
        self, recipe: Recipe, learnt: dict[str, Any], extracted: list[str]
    ) -> None:
        evaluate(with_benchmarks(recipe, own_learnt=learnt))
        with_images(Path(learnt["folder"]) / "train", count=7)
        with pytest.raises(RequestError, match=r"learnt/train/.* made from other inputs"):
            evaluate(with_benchmarks(recipe, own_learnt={**learnt, "ties": "first_index"}))

    def test_too_few_training_images_are_one_line(
        self, recipe: Recipe, learnt: dict[str, Any], extracted: list[str]
    ) -> None:
        train = Path(learnt["folder"]) / "train"
        shutil.rmtree(train / "blue")
        for path in sorted((train / "red").iterdir())[1:]:
            path.unlink()
        with pytest.raises(RequestError, match="learnt has 1 training image of its classes: give at least 2"):
            evaluate(with_benchmarks(recipe, own_learnt=learnt))

    def test_other_images_than_those_of_the_features_are_refused(
        self, recipe: Recipe, colours: dict[str, Any], extracted: list[str]
    ) -> None:
        evaluate(with_benchmarks(recipe, own_colours=colours))
        with_images(Path(colours["folder"]), count=3)
        with pytest.raises(RequestError, match=r"made from other inputs .* \(blue is of another size\)"):
            evaluate(with_benchmarks(recipe, own_colours={**colours, "languages": ["de"]}))

    def test_a_wrong_field_is_one_line(self, recipe: Recipe) -> None:
        with pytest.raises(RequestError, match=r"did you mean `folder`\?"):
            with_benchmarks(recipe, stl10={"folders": "x"})

    def test_a_file_of_the_name_of_another_is_refused(
        self, recipe: Recipe, colours: dict[str, Any], tmp_path: Path
    ) -> None:
        (tmp_path / "more").mkdir()
        shutil.copy(tmp_path / "colours.yaml", tmp_path / "more" / "colours.yaml")
        own = with_benchmarks(recipe, **{"own_colours": colours, "own_more/colours": colours})
        with pytest.raises(RequestError, match="'colours' is that of another benchmark of the recipe"):
            evaluate(own)
