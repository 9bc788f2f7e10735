"""The command as a person runs it, in a process of its own: exit codes, clean output, interruption and continuation."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

import support
from sharelock_ray import cli
from sharelock_ray.features.manifest import read_manifest


def sharelock(*arguments: str) -> tuple[int, str, str]:
    process = support.start(*arguments)
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.fixture
def recipe(tmp_path: Path, models: Path) -> Path:
    return support.write_recipe(tmp_path / "tiny.yaml", models)


class TestRequests:
    def test_help_lists_the_verbs(self) -> None:
        code, out, _ = sharelock("--help")
        assert code == 0
        verbs = "demo doctor extract audit train tune evaluate compare concepts benchmarks report classify"
        for verb in verbs.split():
            assert verb in out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["extract", "nowhere.yaml"], "no recipe at nowhere.yaml"),
            (["extract", "demo", "--set", "alignmnt.steps=1"], "did you mean `alignment`?"),
            (["train", "demo", "--set", "output=nowhere"], "does not exist: run `sharelock extract`"),
            (["train", "demo", "--set", "output=/dev/null"], "does not exist: run `sharelock extract`"),
            (["rejects", "list", "demo", "--set", "output=/dev/null"], "does not exist: run `sharelock extract`"),
            (["tune", "small", "--set", "output=/dev/null"], "recipe.yaml cannot be written (File exists)"),
            (
                ["extract", "demo", "--set", "operations.extraction.min_actors=9"],
                "`min_actors` 9 exceeds `max_actors` 1: raise `max_actors` too",
            ),
            (["report", "/dev/null/a.yaml"], "no recipe at /dev/null/a.yaml"),
            (["report", "."], ". holds no study: run `sharelock tune`"),
            (["compare", "."], ". holds no evaluation: run `sharelock evaluate`"),
            (["concepts", "audit", "dog", "cat", "--wordnet", "nowhere"], "no folder of WordNet 3.0 at nowhere"),
            (["compare"], "Missing argument 'RUN"),
            (["tune", "small"], "the recipe has no study: add `tuning`"),
            (["dance"], "No such command 'dance'"),
            (["extract"], "Missing argument 'RECIPE'"),
            (["language-score", "demo", "--text", "nowhere.txt"], "no text at"),
            (["classify", "x.jpg", "--labels", "a", "--model", "nowhere"], "give at least two"),
            (["classify", "x.jpg", "--labels", "a,b", "--model", "nowhere"], "nowhere holds no trained model"),
            (["classify", "x.jpg", "--labels", "a,b, a", "--model", "nowhere"], "the label 'a' is given 2 times"),
            (["classify", "x.jpg", "--labels", "a,\udcff", "--model", "nowhere"], "not valid Unicode: see '\\udcff'"),
            (["classify", "x.jpg", "--labels-file", "nowhere.txt", "--model", "a"], "no labels at nowhere.txt"),
            (["classify", "x.jpg", "--labels-file", ".", "--model", "a"], "no labels at ."),
        ],
    )
    def test_a_wrong_request_is_one_line_and_code_2(
        self,
        arguments: list[str],
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (2, "")
        assert message in err
        assert len(err.splitlines()) == 1

    def test_labels_in_another_encoding_are_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        labels = tmp_path / "labels.txt"
        labels.write_bytes("dog\ncafé".encode("latin-1"))
        with pytest.raises(SystemExit):
            cli.main(["classify", "x.jpg", "--labels-file", str(labels), "--model", "nowhere"])
        said = capsys.readouterr().err
        assert said.startswith(f"sharelock: {labels}")
        assert "UTF-8" in said
        assert said.count("\n") == 1

    def test_an_output_that_cannot_be_written_is_one_line(self) -> None:
        code, _, err = sharelock("extract", "demo", "--set", "output=/proc/nope")
        assert code == 2
        assert err.splitlines()[-1].startswith("sharelock: /proc/nope/data/shapes.begun.json cannot be written")
        assert "Traceback" not in err

    def test_reading_a_request_costs_neither_ray_nor_torch_nor_touches_rays_environment(self) -> None:
        code = "import os, sys, sharelock_ray.cli\n"
        code += "print({'ray', 'torch'} & set(sys.modules), 'RAY_AUTH_TOKEN' in os.environ)"
        done = subprocess.run([sys.executable, "-c", code], env=support.alone(), capture_output=True, text=True)
        assert done.stdout == "set() False\n", done.stderr

    def test_no_cluster_at_an_address_is_one_line(self, recipe: Path) -> None:
        code, _, err = sharelock("extract", str(recipe), "--address", "127.0.0.1:1")
        assert code == 2
        assert err.startswith("sharelock: no Ray cluster answers at 127.0.0.1:1")
        assert len(err.splitlines()) == 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """The folder of a run, verb after verb."""
    recipe = support.write_recipe(tmp_path_factory.mktemp("undisturbed") / "tiny.yaml", models)
    for verb in ("extract", "audit", "train", "evaluate", "report"):
        code, out, err = sharelock(verb, str(recipe), "--json")
        assert code == 0, err
        assert "Traceback" not in err
        assert not [line for line in err.splitlines() if "ray" in line.lower().replace("sharelock_ray", "")]
        result = json.loads(out.splitlines()[-1])
    assert result["evaluation"]["records"][0]["result"]["candidates"] == 16
    return recipe.parent / "run"


def narrow() -> bytes:
    """A PNG of 1 x 4,000,000 pixels, which would be 100 megapixels at the size that the encoder takes."""
    buffer = io.BytesIO()
    Image.new("1", (1, 4_000_000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.slow
class TestRuns:
    def test_verbs_work_one_after_another_and_end_in_a_model(self, undisturbed: Path, tmp_path: Path) -> None:
        image = tmp_path / "image.jpg"
        image.write_bytes(support.jpeg())
        arguments = ["--labels", "red circle, blue square", "--model", str(undisturbed / "best")]
        code, out, _ = sharelock("classify", str(image), *arguments, "--json")
        ranked = json.loads(out)["labels"]
        assert code == 0
        assert {each["label"] for each in ranked} == {"red circle", "blue square"}
        assert ranked[0]["probability"] >= ranked[1]["probability"]

    def test_labels_are_taken_from_each_option(
        self, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        image, labels = tmp_path / "image.jpg", tmp_path / "labels.txt"
        image.write_bytes(support.jpeg())
        # As an editor of another system leaves it.
        labels.write_bytes(b"\xef\xbb\xbfa green star\r\n\r\na star\xe2\x80\xa8of two lines\r\n")
        given = ["--label", "red, and a circle", "--label", "{c}", "--labels-file", str(labels), "--labels", "a,b"]
        cli.main(["classify", str(image), *given, "--model", str(undisturbed / "best"), "--json"])
        ranked = json.loads(capsys.readouterr().out)["labels"]
        expected = {"a", "b", "red, and a circle", "{c}", "a green star", "a star\u2028of two lines"}
        assert {each["label"] for each in ranked} == expected

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            (
                "truncated.jpg",
                support.jpeg(size=(200, 100))[:2000],
                "truncated.jpg cannot be decoded: image file is trunc",
            ),
            (
                "rendered.eps",
                b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
                "cannot identify 47 bytes as an image",
            ),
            ("narrow.png", narrow(), "does not fit"),
            ("folder", None, "cannot be read: Is a directory"),
            ("absent.jpg", None, "no image at"),
        ],
        ids=["truncated", "EPS", "narrow", "folder", "absent"],
    )
    def test_what_is_no_picture_is_one_line(
        self,
        name: str,
        content: bytes | None,
        message: str,
        undisturbed: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        image = tmp_path / name
        if content is not None:
            image.write_bytes(content)
        elif name == "folder":
            image.mkdir()
        with pytest.raises(SystemExit) as ended:
            cli.main(["classify", str(image), "--labels", "a,b", "--model", str(undisturbed / "best")])
        _, err = capsys.readouterr()
        assert (ended.value.code, len(err.splitlines())) == (2, 1)
        assert message in err

    def test_killed_and_interrupted_a_run_ends_as_if_undisturbed(
        self, recipe: Path, tmp_path: Path, undisturbed: Path
    ) -> None:
        run = tmp_path / "run"
        moments: list[tuple[Callable[[subprocess.Popen[str]], None], Callable[[], bool]]] = [
            (support.kill, lambda: any(run.rglob("staging/0000*/*.arrow"))),
            (interrupt, lambda: any(run.rglob("manifest.json"))),
            (interrupt, lambda: (run / "ray").exists()),
            (support.kill, lambda: (run / "last" / "checkpoint.json").exists()),
        ]
        for stop, moment in moments:
            process = support.start("demo", str(recipe))
            support.wait_for(moment, process)
            stop(process)
        assert not (run / "evaluation.json").exists()
        code, _, err = sharelock("demo", str(recipe))
        assert code == 0, err
        parts = list(undisturbed.rglob("*.parquet"))
        assert parts
        for part in parts:
            twin = run / part.relative_to(undisturbed)
            if part.parent.name == "rejects":
                ours, theirs = (pq.read_table(path).drop_columns("source") for path in (twin, part))
                assert ours == theirs
            elif part.parent.name == "evaluation":
                # Their metadata has the digest of the checkpoint, which names the run.
                assert pq.read_table(twin) == pq.read_table(part)
            else:
                assert twin.read_bytes() == part.read_bytes()
        for name in ("metrics.jsonl", "evaluation.json"):
            ours, theirs = (json_lines(folder / name) for folder in (run, undisturbed))
            assert ours == theirs
        for manifest in run.rglob("manifest.json"):
            assert not (manifest.parent / "staging").exists()
            read_manifest(str(manifest.parent))


def interrupt(process: subprocess.Popen[str]) -> None:
    """Ctrl-C, after which the command ends cleanly."""
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "sharelock: interrupted: run the same command again to continue"
    assert "Traceback" not in err


def json_lines(path: Path) -> list[object]:
    """The content without what names the run or the time."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return json.loads(path.read_text())["records"]
