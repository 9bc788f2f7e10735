"""The stages of a run on tiny encoders: each works alone, continues, and refuses what does not belong together."""

import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import support
from sharelock_ray import cli, storage
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.recipe.load import read_recipe
from sharelock_ray.recipe.schema import DataSpec, EvaluationSpec, Recipe, TranslationsSpec
from sharelock_ray.sources.folders import ClassFolderSource
from sharelock_ray.sources.webdataset import WebDatasetSource
from sharelock_ray.workflows.audit import audit
from sharelock_ray.workflows.demo import demo
from sharelock_ray.workflows.evaluate import evaluate
from sharelock_ray.workflows.extract import extract
from sharelock_ray.workflows.inputs import Inputs
from sharelock_ray.workflows.report import report
from sharelock_ray.workflows.train import train

# Of the 64 classes of the built-in data in the default template.
PROMPTS = "prompts-be31d86e"

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, models: Path, local_ray: None) -> Recipe:
    """A finished run."""
    recipe = read_recipe(str(support.write_recipe(tmp_path_factory.mktemp("run") / "tiny.yaml", models)))
    demo(recipe)
    return recipe


def changed(recipe: Recipe, **fields: object) -> Recipe:
    return recipe.model_copy(update=fields)


class TestDemo:
    def test_leaves_results_of_every_stage(self, recipe: Recipe) -> None:
        assert {"recipe.yaml", "audit.json", "training.json", "evaluation.json", "report.html", "best", "last"} <= {
            path.name for path in Path(recipe.output).iterdir()
        }
        summary = report(recipe)
        present, every, found = summary.records
        assert (present.result.candidates, every.result.candidates, found.result.images) == (16, 64, 32)
        assert {(record.dataset, record.split) for record in summary.records} == {("shapes", "test")}
        assert [(m.split, m.modality, m.rows, m.rejects) for m in summary.features] == [
            ("train", "vision", 239, 1),
            ("train", "language", 239, 1),
            ("test", "vision", 32, 0),
            ("test", "language", 32, 0),
            (PROMPTS, "language", 64, 0),
        ]
        extracted = {f"extract {split}" for split in ("train", "test", PROMPTS)}
        assert set(summary.seconds) == {"data", *extracted, "audit", "train", "evaluate"}

    def test_done_work_is_left_alone_and_said(self, recipe: Recipe, said: io.StringIO) -> None:
        kept = {p: p.stat().st_mtime_ns for p in Path(recipe.output).rglob("*") if p.suffix != ".html" and p.is_file()}
        del kept[Path(recipe.output) / "recipe.yaml"]
        # As after a kill between a manifest and the removal of what was staged.
        manifest = next(Path(recipe.output).rglob("manifest.json"))
        (manifest.parent / "staging" / "00000").mkdir(parents=True)
        demo(recipe)
        assert not (manifest.parent / "staging").exists()
        lines = said.getvalue().splitlines()
        assert [line.partition(":")[0] for line in lines] == [
            "extract train",
            "extract test",
            f"extract {PROMPTS}",
            "audit",
            "train",
            "evaluate",
        ]
        assert all("already done" in line for line in lines)
        assert {path: path.stat().st_mtime_ns for path in kept} == kept

    def test_ones_own_tars_are_scored_by_retrieval(self, tmp_path: Path, models: Path) -> None:
        urls = support.write_pairs(tmp_path / "mine", shards=2, samples=40)
        path = support.write_recipe(tmp_path / "tiny.yaml", models, data={"dataset": "mine", "train": {"urls": urls}})
        (record,) = demo(read_recipe(str(path))).records
        assert (record.task, record.split) == ("retrieval", "validation")
        assert set(record.result.image_to_text) == {1, 5, 10}


class TestFeaturesOfAnotherRun:
    def test_are_used_as_they_are(self, recipe: Recipe, tmp_path: Path, said: io.StringIO) -> None:
        kept = {p: p.stat().st_mtime_ns for p in Path(recipe.output).rglob("*") if p.is_file()}
        alignment = recipe.alignment.model_copy(update={"seed": 7})
        other = changed(recipe, output=str(tmp_path / "other"), features_of=recipe.output, alignment=alignment)
        summary = demo(other)
        lines = said.getvalue().splitlines()
        assert [line for line in lines if line.startswith("extract")] == [
            "extract train: already done",
            "extract test: already done",
            f"extract {PROMPTS}: already done",
        ]
        assert len(summary.records) == 3
        assert summary.training != report(recipe).training
        names = {path.name for path in (tmp_path / "other").iterdir()}
        assert {"recipe.yaml", "audit.json", "training.json", "report.html"} <= names
        assert not {"features", "data"} & names
        kept.pop(Path(recipe.output) / "report.html")
        assert {path: path.stat().st_mtime_ns for path in kept} == kept

    def test_leave_the_recipe_of_what_is_trained_on_them(self, recipe: Recipe, tmp_path: Path) -> None:
        alignment = recipe.alignment.model_copy(update={"seed": 8, "steps": 2})
        other = changed(recipe, output=str(tmp_path), features_of=recipe.output, alignment=alignment)
        train(other)
        assert read_recipe(str(tmp_path / "recipe.yaml")) == other
        with pytest.raises(RequestError, match="steps: 2 there, 3 now"):
            train(changed(other, alignment=alignment.model_copy(update={"steps": 3})))
        assert read_recipe(str(tmp_path / "recipe.yaml")) == other


class TestEvaluation:
    def test_of_class_folders_is_zero_shot_only_and_follows_the_class_names(
        self, recipe: Recipe, tmp_path: Path, said: io.StringIO
    ) -> None:
        output = shutil.copytree(recipe.output, tmp_path / "run")
        shutil.rmtree(output / "features" / "shapes" / "test")
        for name, colour in (("blue", (30, 30, 200)), ("red", (200, 30, 30))):
            for i in range(3):
                storage.write_bytes(str(tmp_path / "test" / name / f"{i}.jpg"), support.jpeg(colour, seed=i))
        classes = tmp_path / "classes.txt"
        classes.write_text("blue circle\nred circle\n")
        test = ClassFolderSource(path=str(tmp_path / "test"))
        data = DataSpec(dataset="shapes", train=recipe.splits["train"], test=test, classes=str(classes))
        own = changed(recipe, output=str(output), data=data)
        extract(own)
        evaluation = evaluate(own)
        (record,) = evaluation.records
        assert (record.task, record.result.images, record.result.candidates) == ("zero_shot_classification", 6, 2)
        note = "retrieval is left out: no image of the test split has a caption"
        assert f"evaluate: zero-shot classification of 6 images of the test split\nevaluate: {note}" in said.getvalue()
        # Class folders have nothing for language encoders, which run over the prompts alone.
        assert [(m.split, m.modality, m.rows) for m in report(own).features if m.split != "train"] == [
            ("test", "vision", 6),
            (Inputs(own).prompts.name, "language", 2),
        ]
        summary = report(own)
        assert ("note", note) in summary.rows()
        # The page is a view of what is stored: it has its pictures when the data is gone.
        shutil.move(tmp_path / "test", tmp_path / "away")
        page = Path(report(own).page).read_text()
        shutil.move(tmp_path / "away", tmp_path / "test")
        assert note in page
        assert page.count("<figure><img") == 6
        # Other names are another evaluation.
        assert evaluate(own) == evaluation
        classes.write_text("red circle\nred circle\n")
        assert evaluate(own).records[0].result.candidates == 1

    def test_of_translations_has_a_record_for_each_language(
        self, recipe: Recipe, tmp_path: Path, said: io.StringIO
    ) -> None:
        keys = Inputs(recipe).open("test", recipe.vision).keys.tolist()
        rows = [(key, language, f"{language} {key}") for key in keys[:8] for language in ("fr", "de", "ja")]
        table = dict(zip(("key", "language", "caption"), map(list, zip(*rows, strict=True)), strict=True))
        pq.write_table(pa.table(table), tmp_path / "captions.parquet")
        spec = recipe.evaluation.model_copy(
            update={"translations": TranslationsSpec(table=str(tmp_path / "captions.parquet"), languages=("ja", "de"))}
        )
        output = shutil.copytree(recipe.output, tmp_path / "run")
        own = changed(recipe, output=str(output), evaluation=spec)
        evaluation = evaluate(own)
        found = [(r.language, r.result.images) for r in evaluation.records if r.task == "retrieval"]
        assert found == [(None, 32), ("de", 8), ("ja", 8)]
        assert [name for name, _ in report(own).rows() if "recall@10" in name] == ["de: recall@10", "ja: recall@10"]
        said.truncate(0)
        assert evaluate(own) == evaluation
        assert "evaluate: already done" in said.getvalue()

    def test_of_an_earlier_version_is_already_done(self, recipe: Recipe, tmp_path: Path, said: io.StringIO) -> None:
        output = shutil.copytree(recipe.output, tmp_path / "run")
        path = str(output / "evaluation.json")
        stored = storage.read_json(path)
        present, every, found = stored.pop("records")
        for record in (present, every):
            del record["result"]["candidate_set"]
        del stored["schema_version"], stored["notes"], stored["request"]["classes"]
        stored["result"] = {
            "split": "test",
            "model_step": present["model_step"],
            "templates": present["templates"],
            "zero_shot": {"among_present": present["result"], "among_all": every["result"]},
            "retrieval": found["result"],
            "examples": present["examples"],
        }
        storage.write_json(path, stored)
        own = changed(recipe, output=str(output), features_of=recipe.output)
        assert [record.result for record in evaluate(own).records] == [r.result for r in report(recipe).records]
        assert said.getvalue() == "evaluate: already done\n"


class TestAlone:
    def test_training_wants_features(self, recipe: Recipe, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="does not exist: run `sharelock extract`"):
            train(changed(recipe, output=str(tmp_path)))

    def test_evaluation_wants_a_model(self, recipe: Recipe, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="no trained model"):
            evaluate(changed(recipe, output=str(tmp_path)))

    def test_report_wants_an_evaluation(self, recipe: Recipe, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="no finished training"):
            report(changed(recipe, output=str(tmp_path)))

    def test_features_of_another_encoder_are_refused(self, recipe: Recipe, models: Path) -> None:
        other = changed(recipe, encoders=(recipe.vision, support.tiny_language(models, "encoder")))
        support.extracted_alone(other)
        with pytest.raises(RequestError, match=r"was made by tiny-encoder-.* but .* was trained on tiny-decoder-"):
            evaluate(other)

    def test_labels_without_a_name_are_refused(self, recipe: Recipe, tmp_path: Path) -> None:
        classes = tmp_path / "classes.txt"
        classes.write_text("red circle\nred square\n")
        test = WebDatasetSource(urls=f"{recipe.output}/data/test/*.tar")
        data = DataSpec(dataset="shapes", train=recipe.splits["train"], test=test, classes=str(classes))
        with pytest.raises(RequestError, match="but 2 classes are named"):
            evaluate(changed(recipe, data=data, evaluation=EvaluationSpec(recall_at=(2,))))

    def test_an_empty_source_is_refused(self, tmp_path: Path, models: Path) -> None:
        data = {"dataset": "none", "train": {"urls": str(tmp_path / "*.tar")}}
        with pytest.raises(RequestError, match="no tar matches"):
            extract(read_recipe(str(support.write_recipe(tmp_path / "tiny.yaml", models, data=data))))

    def test_weights_of_another_model_are_one_line(self, recipe: Recipe, tmp_path: Path) -> None:
        wrong = recipe.vision.model_copy(update={"model": "test_convnext2"})
        with pytest.raises(RequestError, match="does not hold weights of test_convnext2") as error:
            extract(changed(recipe, encoders=(wrong, recipe.language), output=str(tmp_path)))
        assert "\n" not in str(error.value)

    def test_other_inputs_than_those_of_a_complete_set_are_refused(
        self, tmp_path: Path, models: Path, said: io.StringIO
    ) -> None:
        urls = support.write_pairs(tmp_path / "mine", shards=2, samples=4, bad=True)
        sound = support.write_tar(tmp_path / "mine" / "sound.tar", {"0.jpg": support.jpeg(), "0.txt": b"a red circle"})
        data = {"dataset": "mine", "train": {"urls": urls}}
        recipe = read_recipe(str(support.write_recipe(tmp_path / "tiny.yaml", models, data=data)))
        extract(recipe)
        kept = sound.read_bytes()
        more = support.write_tar(tmp_path / "mine" / "more.tar", {"0.jpg": support.jpeg()})
        with pytest.raises(RequestError, match=r"made from other inputs .* \(more is new\): restore them, set another"):
            extract(recipe)
        more.unlink()
        sound.unlink()
        with pytest.raises(RequestError, match=r"\(sound is gone\)"):
            extract(recipe)
        sound.write_bytes(kept + bytes(10240))
        with pytest.raises(RequestError, match=r"\(sound is of another size\)"):
            extract(recipe)
        sound.write_bytes(kept)
        said.truncate(0)
        extract(recipe)
        # What was rejected may be mended; and the sets outlive their inputs.
        support.write_pairs(tmp_path / "mine", shards=2, samples=4)
        extract(recipe)
        shutil.rmtree(tmp_path / "mine")
        extract(recipe)
        assert said.getvalue().count("extract train: already done") == 3

    def test_an_audit_finds_what_was_damaged_or_changed_since_the_last(
        self, tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        urls = support.write_pairs(tmp_path / "mine", shards=1, samples=4)
        data = {"dataset": "mine", "train": {"urls": urls}}
        path = str(support.write_recipe(tmp_path / "tiny.yaml", models, data=data))
        recipe = read_recipe(path)
        support.extracted_alone(recipe)
        vision = Inputs(recipe).open("train", recipe.vision)
        part = Path(vision.uri) / "part-00000.parquet"
        assert [found.problems for found in audit(recipe)] == [[], []]
        # Neither a part nor the inputs are what they were when the sets were found sound.
        part.write_bytes(part.read_bytes()[:-1] + b"x")
        support.write_pairs(tmp_path / "mine", shards=1, samples=5)
        damaged, language = audit(recipe)
        assert damaged.problems[0] == "part-00000.parquet is not what the manifest says (SHA-256 differs)"
        assert language.problems == [
            "the input shard 00000 is of another size",
            "input '00000/0004' is in neither rows nor rejects",
        ]
        # The command says all of every set, and ends with 1.
        with pytest.raises(SystemExit) as ended:
            cli.main(["audit", path, "--json"])
        told = json.loads(capsys.readouterr().out.splitlines()[-1])["audits"]
        assert [each["problems"] for each in told] == [damaged.problems, language.problems]
        with pytest.raises(SystemExit):
            cli.main(["audit", path])
        assert f"{language.uri}: {language.problems[0]}" in capsys.readouterr().out.splitlines()
        assert ended.value.code == 1
        # What was once found sound, and is not any more, is no demo's already done.
        support.write_pairs(tmp_path / "mine", shards=1, samples=4)
        with pytest.raises(RunError, match="is not what the manifest says"):
            demo(recipe)

    def test_tars_without_a_single_pair_are_found_by_the_audit_and_refused_by_training(
        self, tmp_path: Path, models: Path
    ) -> None:
        members = {"0.jpg": support.jpeg(), "1.txt": b"a red circle"}
        support.write_tar(tmp_path / "00000.tar", members)
        support.write_tar(tmp_path / "00001.tar", {})
        data = {"dataset": "mine", "train": {"urls": str(tmp_path / "*.tar")}}
        recipe = read_recipe(str(support.write_recipe(tmp_path / "tiny.yaml", models, data=data)))
        support.extracted_alone(recipe)
        problem = "no key is also in the sets of the other modality"
        assert [(found.matched, found.problems) for found in audit(recipe)] == [(0, [problem])] * 2
        with pytest.raises(RequestError, match="no pair to train on: no key of "):
            train(recipe)
