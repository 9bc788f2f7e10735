"""`sharelock concepts`: splits and audits from lists, what they say and store, and their pages."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import support
from nouns import write_wordnet
from pages import Page
from sharelock_ray import cli
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.pairing import Removed
from sharelock_ray.features.writer import EncodedChunk
from sharelock_ray.workflows.concepts import report

Run = Callable[..., Any]


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    folder = tmp_path / "wordnet"
    write_wordnet(folder)
    return folder


@pytest.fixture
def run(wordnet: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `sharelock concepts`; the printed text, or the object of `--json`."""

    def run(*arguments: str) -> Any:
        cli.main(["concepts", *arguments, "--wordnet", str(wordnet)])
        out = capsys.readouterr().out
        return json.loads(out.splitlines()[-1]) if "--json" in arguments else out

    return run


@pytest.fixture
def refused(wordnet: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that is wrong; its line."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["concepts", *arguments, "--wordnet", str(wordnet)])
        assert ended.value.code == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        return line

    return run


class TestAudit:
    def test_of_a_pair_is_said_in_sentences(self, run):
        out = run("audit", "dog", "puppy")
        assert "Trained on dog, tested on puppy: not zero-shot. puppy (n" in out
        assert "note: homographs by string" in out

    def test_of_lists_counts_by_rule(self, run):
        found = run("audit", "dog,bird", "puppy,crane,cat", "--json")
        assert (found["strictly_unseen"], found["by_rule"]) == (1, {"hyponym": 2})

    def test_takes_the_rules_from_options(self, run):
        assert run("audit", "dog", "Airedale", "--hyponyms", "1", "--json")["by_rule"] == {}
        assert run("audit", "puppy", "terrier", "--siblings", "--json")["by_rule"] == {"sibling": 1}
        assert run("audit", "dog", "flag", "--no-parts", "--json")["by_rule"] == {}
        assert run("audit", "machine", "crane", "--homographs", "sense", "--json")["by_rule"] == {}

    def test_names_of_other_languages_come_from_a_table(self, run, tmp_path):
        (tmp_path / "names.csv").write_text("concept,language,name\npuppy,de,Welpe\ndog,en,hound\n")
        arguments = ("--names", str(tmp_path / "names.csv"), "--json")
        assert run("audit", "Welpe", "puppy", "--seen-language", "de", *arguments)["by_rule"] == {"translation": 1}
        (tmp_path / "classes.txt").write_text("hound\n")
        assert run("audit", str(tmp_path / "classes.txt"), "dog", *arguments)["by_rule"] == {"shared_name": 1}

    def test_estimates_residual_leakage_from_accuracies(self, run, tmp_path):
        content = {"records": [{"per_class": {"puppy": 0.9, "cat": 0.5, "goose": 0.4}}]}
        (tmp_path / "evaluation.json").write_text(json.dumps(content))
        place = f"{tmp_path}/evaluation.json#records/0/per_class"
        found = run("audit", "dog", "puppy,cat,goose", "--accuracy", place, "--json")["residual"]
        assert [(each["distance"], each["classes"]) for each in found["by_distance"]] == [(1, 1), (2, 1), (3, 1)]
        assert "accuracy per step to the nearest seen concept: -25.0 points" in run(
            "audit", "dog", "puppy,cat,goose", "--accuracy", place
        )

    def test_of_many_concepts_shows_the_first(self, run):
        out = run("audit", "dog", ",".join(f"name {i}" for i in range(30)))
        assert "20 of 30: --output writes all" in out

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (["dog", "none.txt"], "no concepts at none.txt: check the path"),
            (["dog", "n00000001"], "WordNet has no noun n00000001; the nearest is"),
            (["dog,dog", "cat"], "the list has concepts more than once (dog)"),
            (["", "cat"], "the list has no concepts"),
            (["dog", "cat", "--hyponyms", "-1"], "Invalid value for '--hyponyms'"),
            (["dog", "cat", "--names", "none.csv"], "no table of names at none.csv"),
            (["dog", "cat", "--accuracy", "none.json"], "no accuracies at none.json"),
            (["dog", "cat", "--output", "audit.txt"], "the output audit.txt must end in .json"),
        ],
    )
    def test_what_is_wrong_is_one_line(self, arguments, line, refused):
        assert line in refused("audit", *arguments)

    def test_accuracies_of_another_form_are_one_line(self, refused, tmp_path):
        (tmp_path / "list.json").write_text("[1]")
        for place in ("list.json", "list.json#0", "list.json#1", "list.json#x"):
            assert "is no JSON object of accuracies" in refused(
                "audit", "dog", "cat", "--accuracy", f"{tmp_path}/{place}"
            )


class TestSplit:
    def test_removes_related_concepts_and_says_why(self, run):
        out = run("split", "dog", "puppy,cat,crane")
        assert "puppy: puppy (n" in out
        assert "is a hyponym of dog" in out

    def test_is_stored_as_it_is_printed(self, run, tmp_path):
        path = tmp_path / "new" / "split.json"
        found = run("split", "dog,cat,crane,machine,goose", "--fraction", "0.4", "--output", str(path), "--json")
        stored = json.loads(path.read_text())
        assert {"hash": found["hash"], **stored} == found
        assert (stored["schema_version"], stored["fraction"], stored["seed"]) == (3, 0.4, 0)

    def test_may_remove_seen_concepts(self, run):
        found = run("split", "dog,cat", "puppy,crane", "--remove", "seen", "--json")
        assert [each["name"] for each in found["seen"]] == ["cat"]

    def test_that_leaves_too_few_is_refused(self, refused):
        assert "leaves 1 unseen and 1 seen concepts" in refused("split", "dog", "puppy,cat")


class TestCaptions:
    @pytest.fixture
    def corpus(self, tmp_path) -> str:
        texts = ("a puppy runs", "geese fly", "a red barn", "two <b>cats</b>", "dogs and cats")
        keys = [f"00/{row}" for row in range(len(texts))]
        columns = {"key": keys, "caption_id": pa.array([0, 1, 0, 0, 0], pa.int32()), "text": texts}
        (tmp_path / "corpus").mkdir()
        for part in range(len(texts)):
            pq.write_table(pa.table(columns)[part : part + 1], tmp_path / "corpus" / f"{part}.parquet")
        return f"{tmp_path}/corpus/*.parquet"

    def test_of_a_split_that_name_unseen_concepts_are_removed(self, run, corpus, tmp_path):
        arguments = (
            "split",
            "dog,goose",
            "--fraction",
            "1",
            "--captions",
            corpus,
            "--output",
            str(tmp_path / "s.json"),
        )
        found = run(*arguments, "--json")
        captions = found["captions"]
        assert (found["seen"], captions["captions"], captions["named"]) == ([], 5, 3)
        table = Removed.of(f"{tmp_path}/{captions['removed']}").table()
        assert table.to_pylist() == [{"key": f"00/{row}", "caption_id": at} for row, at in ((0, 0), (1, 1), (4, 0))]
        assert run(*arguments, "--json") == found
        out = run(*arguments)
        assert "removed captions" in out
        assert captions["removed"] in out

    def test_of_the_training_are_audited(self, run, corpus):
        found = run("audit", "dog,crane", "--captions", corpus, "--json")
        assert (found["strictly_unseen"], found["by_rule"]) == (1, {"form": 1, "hypernym": 1})
        out = run("audit", "dog,crane", "--captions", corpus)
        assert "Trained on 5 captions, tested on dog: not zero-shot." in out
        assert "Trained on cat and 5 captions" in run("audit", "cat", "dog", "--captions", corpus)

    def test_are_on_the_page(self, run, corpus, tmp_path):
        path = str(tmp_path / "audit.json")
        run("audit", "cat,crane", "--captions", corpus, "--output", path)
        content = Path(report(path)).read_text()
        for text in ("2 of 5 captions of *.parquet name an unseen concept", 'says "two <b>cats</b>"'):
            assert text in Page(content).text
        assert "<b>cats" not in content

    @pytest.mark.slow
    @pytest.mark.usefixtures("local_ray")
    def test_through_ray_are_the_same(self, run, corpus, monkeypatch):
        arguments = ("split", "dog,goose,cat", "--fraction", "1", "--captions", corpus, "--json")
        here = run(*arguments)
        monkeypatch.setenv("RAY_ADDRESS", "local")
        assert run(*arguments) == here

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (
                ["audit", "dog"],
                "an audit needs what was trained on and what is tested: add a second list, or --captions",
            ),
            (["audit", "dog", "--captions", "none.txt"], "no list at"),
            (["split", "dog", "--fraction", "1", "--captions", "none.txt"], "leaves 1 unseen and 0 seen concepts"),
            (["split", "dog", "--fraction", "1"], "there are no seen concepts: give at least one"),
            (["split", "dog,n00000001", "cat"], "WordNet has no noun n00000001"),
            (["split", "dog", ""], "the list has no concepts"),
        ],
    )
    def test_what_is_wrong_is_one_line(self, arguments, line, refused):
        assert line in refused(*arguments)

    def test_a_concept_outside_wordnet_is_kept_by_its_names(self, run, corpus):
        found = run("audit", "barn owl,red barn", "--captions", corpus, "--json")
        assert found["by_rule"] == {"form": 1}
        assert "2 concepts are not in WordNet (barn owl, red barn): kept by the names alone" in found["notes"]


class TestReport:
    def test_of_a_split_lists_what_was_removed(self, run, tmp_path):
        path = str(tmp_path / "split.json")
        found = run("split", "dog", "puppy,cat,<b>crane", "--output", path, "--json")
        content = Path(report(path)).read_text()
        page = Page(content)
        for text in ("Split of concepts", found["hash"], "is a hyponym of dog", "cat, <b>crane", "1 concept is not in"):
            assert text in page.text
        assert "<b>crane" not in content

    def test_of_an_audit_shows_distances_and_residual_leakage(self, run, tmp_path):
        (tmp_path / "accuracy.json").write_text('{"puppy": 0.9, "cat": 0.5, "goose": 0.4}')
        path = str(tmp_path / "audit.json")
        accuracy = ("--accuracy", str(tmp_path / "accuracy.json"))
        run("audit", "dog", "puppy,cat,goose", "--output", path, *accuracy)
        page = Page(Path(report(path)).read_text())
        assert any(tag == "svg" for tag, _ in page.tags)
        for text in ("Audit of concepts", "2 (66.7%)", "Each step changes the accuracy by -25.0 points"):
            assert text in page.text

    def test_the_command_names_the_page(self, run, tmp_path, capsys):
        path = str(tmp_path / "split.json")
        run("split", "dog", "cat,crane", "--output", path)
        cli.main(["concepts", "report", path])
        assert capsys.readouterr().out == f"report: {tmp_path}/split.html\n"

    def test_without_a_document_is_one_line(self, tmp_path):
        with pytest.raises(RequestError, match="no split or audit of concepts at"):
            report(str(tmp_path / "none.json"))
        (tmp_path / "other.json").write_text('{"records": []}')
        with pytest.raises(RunError, match=r"other\.json is damaged .* make it again with `sharelock concepts`"):
            report(str(tmp_path / "other.json"))


TEXTS = LanguageSpec(name="plane", model="none", stored_dtype="float32")
IMAGES = VisionSpec(name="signal", model="resnet18.a1_in1k", stored_dtype="float32")
ANGLES = {"dog": 0, "hound": 10, "cat": 60, "crane": 120, "goose": 128, "machine": 200}


def names_set(folder: Path, spec: LanguageSpec = TEXTS) -> str:
    radians = np.deg2rad(list(ANGLES.values()))
    columns = {"key": sorted(ANGLES), "caption_id": [0] * len(ANGLES), "text": list(ANGLES)}
    vectors = np.stack([np.cos(radians), np.sin(radians)], 1).astype(np.float32)
    return support.write_parts(str(folder), spec, [[EncodedChunk(columns, vectors)]])


def image_set(folder: Path, values: np.ndarray, labels: list[int]) -> str:
    keys = [f"{folder.name}/{i:04d}" for i in range(len(values))]
    chunk = EncodedChunk({"key": keys, "label": labels}, values.astype(np.float32))
    return support.write_parts(str(folder), IMAGES, [[chunk]])


@pytest.fixture
def threshold(run: Run, tmp_path: Path) -> str:
    (tmp_path / "pairs.tsv").write_text("dog\thound\t9\ncrane\tgoose\t8\ndog\tcat\t4\ncat\tmachine\t1\n")
    path = str(tmp_path / "threshold.json")
    cli.main(
        ["concepts", "threshold", str(tmp_path / "pairs.tsv"), "--encoder", names_set(tmp_path / "n"), "--output", path]
    )
    return path


class TestSimilarNames:
    def test_a_threshold_is_chosen_stored_and_shown(self, threshold, capsys):
        assert "highest F1" in capsys.readouterr().out
        chosen = json.loads(Path(threshold).read_text())["chosen"]
        assert (chosen["labelled"], chosen["positives"], chosen["pairs"]) == (4, 2, "pairs.tsv")
        page = Page(Path(report(threshold)).read_text())
        assert any(tag == "svg" for tag, _ in page.tags)
        assert "precision of a random order" in page.text

    def test_are_evidence_in_audits_and_splits(self, run, threshold, tmp_path):
        options = ("--similarity", threshold, "--name-features", str(tmp_path / "n"), "--homographs", "sense")
        found = run("audit", "dog,machine", "hound,goose", *options, "--output", str(tmp_path / "a.json"), "--json")
        assert found["by_rule"] == {"similarity": 1}
        assert found["similarity"]["threshold"] == pytest.approx(np.cos(np.deg2rad(10)), abs=1e-4)
        assert "have a cosine of 0.985 by plane-" in Page(Path(report(str(tmp_path / "a.json"))).read_text()).text
        made = run("split", "dog", "hound,goose,machine", *options, "--json")
        assert [each["concept"]["name"] for each in made["removed"]] == ["hound"]
        assert made["similarity"] == found["similarity"]

    def test_of_another_encoder_are_refused(self, threshold, refused, tmp_path):
        other = names_set(tmp_path / "o", TEXTS.model_copy(update={"pooling": "mean"}))
        line = refused("audit", "dog", "hound", "--similarity", threshold, "--name-features", other)
        assert "whose cosines do not compare" in line

    @pytest.mark.parametrize("encoder", ["nothing", "dinov2-s"])
    def test_need_a_language_encoder(self, encoder, tmp_path, capsys):
        (tmp_path / "pairs.tsv").write_text("dog\thound\t9\n")
        with pytest.raises(SystemExit):
            cli.main(["concepts", "threshold", str(tmp_path / "pairs.tsv"), "--encoder", encoder])
        assert f"{encoder} is no language encoder: give a preset" in capsys.readouterr().err


class TestVisualTwins:
    @pytest.fixture
    def images(self, tmp_path: Path) -> tuple[str, ...]:
        generator = np.random.default_rng(1)
        centres = 3 * generator.normal(size=(5, 32))
        values = np.repeat(centres, 20, 0) + generator.normal(size=(100, 32)) + 20
        seen = image_set(tmp_path / "seen", values[:40], [0] * 20 + [1] * 20)
        # The cat looks like the dog, and two images of the crane are also in the training.
        unseen = values[40:]
        unseen[:20] = centres[0] + generator.normal(size=(20, 32)) + 20
        unseen[[25, 27]] = values[[3, 30]]
        return seen, image_set(tmp_path / "unseen", unseen, np.repeat([0, 1, 2], 20).tolist())

    def test_are_evidence_and_images_are_removed_by_key(self, run, images, tmp_path):
        seen, unseen = images
        options = ("--seen-images", seen, "--unseen-images", unseen, "--duplicates", "0.99", "--twin-quantile", "0")
        path = str(tmp_path / "split.json")
        made = run("split", "dog,flag", "cat,crane,goose", *options, "--output", path, "--json")
        assert [each["concept"]["name"] for each in made["removed"]] == ["cat"]
        assert made["removed"][0]["evidence"][0]["rule"] == "class_prototype"
        duplicates = made["twins"]["duplicates"]
        assert [each["key"] for each in duplicates["images"]] == ["unseen/0025", "unseen/0027"]
        assert duplicates["images"][0]["evidence"]["seen"] == "seen/0003 (dog)"
        text = Page(Path(report(path)).read_text()).text
        for said in (
            "Visual twins",
            "unseen/0025 (crane) is a near duplicate of seen/0003 (dog)",
            "halves of one class",
        ):
            assert said in text
        out = run("audit", "dog,flag", "cat,crane,goose", *options)
        assert "near duplicates of seen images: 2 of 60" in out

    def test_of_one_list_are_told_apart_by_label(self, run, images):
        seen, _ = images
        found = run(
            "audit",
            "dog",
            "machine",
            "--seen-images",
            seen,
            "--unseen-images",
            seen,
            "--image-classes",
            "dog,machine",
            "--json",
        )
        assert found["twins"]["duplicates"]["compared"] == [20, 20]
        assert found["twins"]["prototypes"]["classes"] == 2

    def test_classes_of_the_encoders_own_training_are_said_apart(self, run, tmp_path):
        (tmp_path / "classes.txt").write_text("dog\n")
        out = run("audit", "machine", "puppy", "--pretraining", str(tmp_path / "classes.txt"))
        assert (
            "zero-shot for the alignment, but not for the vision encoder. the vision encoder was trained on dog" in out
        )

    def test_what_is_missing_is_one_line(self, refused, images):
        seen, _ = images
        assert "add --unseen-images" in refused("audit", "dog,cat", "crane", "--seen-images", seen)
        assert "--pretraining auto is by the model" in refused("audit", "dog", "cat", "--pretraining", "auto")
        assert "distances by names need --similarity" in refused("audit", "dog", "cat", "--distance", "names")


class TestAccuraciesOfSamples:
    @pytest.fixture
    def samples(self, tmp_path: Path) -> str:
        sets = ["present"] * 6 + ["all"] * 6
        table = pa.table(
            {"candidate_set": sets, "label": [0, 0, 1, 1, 2, 2] * 2, "rank": [0, 0, 0, 1, 1, 2, 1, 1, 1, 1, 1, 1]}
        )
        pq.write_table(table, tmp_path / "samples.parquet")
        return str(tmp_path / "samples.parquet")

    def test_are_counted_by_class(self, run, samples):
        found = run("audit", "dog", "puppy,cat,goose", "--accuracy", f"{samples}#present", "--json")["residual"]
        assert [each["accuracy"]["value"] for each in found["by_distance"]] == [1, 0.5, 0]
        assert found["images"] == 6
        assert "Nearer classes do better" in found["statement"] or "It is not shown" in found["statement"]

    def test_of_distances_by_names(self, run, samples, threshold, tmp_path):
        options = ("--similarity", threshold, "--name-features", str(tmp_path / "n"), "--distance", "names")
        found = run("audit", "dog", "cat,crane,goose", "--accuracy", f"{samples}#present", *options, "--json")[
            "residual"
        ]
        assert found["distance"] == "names"
        assert [each["distance"] for each in found["by_distance"]] == pytest.approx(
            1 - np.cos(np.deg2rad([60, 120, 128])), abs=1e-4
        )

    def test_that_do_not_fit_are_one_line(self, refused, samples):
        assert "has several sets of candidates: add one" in refused("audit", "dog", "cat,goose", "--accuracy", samples)
        assert "has no set of candidates 'x'" in refused("audit", "dog", "cat", "--accuracy", f"{samples}#x")
        assert "has the label 2, but there are 2 unseen" in refused(
            "audit", "dog", "cat,goose", "--accuracy", f"{samples}#all"
        )
        assert "no samples of an evaluation at none" in refused("audit", "dog", "cat", "--accuracy", "none.parquet")
