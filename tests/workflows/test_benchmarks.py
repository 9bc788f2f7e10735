"""`sharelock benchmarks`: what there is, what is here, and what is missing."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sharelock_ray import cli
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.benchmark import read_benchmark, shipped
from sharelock_ray.evaluation.names import digest
from sharelock_ray.workflows.benchmarks import BenchmarkState, benchmarks, folders_of, texts


def states(**folders: str) -> dict[str, BenchmarkState]:
    return {each.name: each for each in benchmarks(folders)}


def own(tmp_path: Path, **fields: Any) -> str:
    """A user's benchmark."""
    defaults = {
        "title": "Pets",
        "task": "zero_shot_classification",
        "images": [{"format": "class_folders", "path": "folder://val"}],
        "classes": ["cat", "cat", "dog"],
        "templates": ["a {}."],
        "metrics": {"top_1": 0.5},
    }
    path = tmp_path / "pets.yaml"
    path.write_text(yaml.safe_dump(defaults | fields))
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    cli.main(["benchmarks", *arguments])
    return capsys.readouterr().out


class TestListing:
    def test_it_lists_every_shipped_one_with_what_it_is(self) -> None:
        found = states()
        assert sorted(found) == shipped()
        imagenet = found["imagenet-1k"]
        assert (imagenet.task, imagenet.languages, imagenet.size) == ("zero_shot_classification", ("en",), 50_000)
        assert (imagenet.names, imagenet.images) == ("here", "")
        assert (found["dtd"].names, found["winoground"].names) == ("in its folder", "")

    def test_a_folder_has_the_images_or_says_where_they_are_expected(self, tmp_path: Path) -> None:
        path = own(tmp_path)
        assert states(**{path: str(tmp_path)})[path].images.startswith(f"there are no images of Pets in {tmp_path}")
        (tmp_path / "val" / "cat").mkdir(parents=True)
        assert states(**{path: str(tmp_path)})[path].images.startswith("there are no images")
        (tmp_path / "val" / "cat" / "1.jpg").touch()
        assert states(**{path: str(tmp_path)})[path].images == "here"

    def test_a_missing_package_is_named(self, tmp_path: Path) -> None:
        path = own(tmp_path, classes="package://no_such_package/names.json", mask="package://another/names.json")
        assert states(**{path: str(tmp_path)})[path].names == "install another, no_such_package"

    def test_names_in_the_folder_are_checked(self, tmp_path: Path) -> None:
        path = own(tmp_path, classes="folder://names.txt")
        assert "no class names at" in states(**{path: str(tmp_path)})[path].names
        (tmp_path / "names.txt").write_text("cat\ndog\n")
        assert states(**{path: str(tmp_path)})[path].names == "here"

    def test_an_unknown_name_gets_the_nearest(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="did you mean `winoground`"):
            states(winograd=str(tmp_path))

    @pytest.mark.parametrize("given", ["imagenet-1k", "imagenet-1k=", "imagenet-1k=/nowhere"])
    def test_a_folder_is_given_by_name(self, given: str) -> None:
        with pytest.raises(RequestError, match=f"--folder {given}: (write it as NAME=PATH|there is nothing at)"):
            folders_of([given])

    def test_a_path_may_have_an_equals_sign(self, tmp_path: Path) -> None:
        (tmp_path / "a=b").mkdir()
        assert folders_of([f"coco={tmp_path}/a=b"]) == {"coco": f"{tmp_path}/a=b"}


class TestTexts:
    def test_names_and_templates_have_digests_in_each_language(self) -> None:
        babel = read_benchmark("babel-imagenet")
        found = {each.language: each for each in texts(babel)}
        assert len(found) == 90
        assert (found["hi"].classes, found["hi"].templates) == (342, 80)
        assert found["hi"].class_digest == digest(babel.classes_in("hi").names)
        assert found["hi"].template_digest == digest(babel.templates_in("hi"))

    def test_classes_that_share_a_name_are_counted_and_warned_of(self, tmp_path: Path) -> None:
        (found,) = texts(read_benchmark(own(tmp_path)))
        assert found.shared == 2
        assert found.warning == "2 of 3 classes share their name, and any of these is right: cat (0, 1)"
        assert texts(read_benchmark("imagenet-1k"))[0].shared == 4

    def test_there_are_none_without_classes_or_the_folder_that_names_them(self) -> None:
        assert texts(read_benchmark("coco")) == texts(read_benchmark("dtd")) == []


class TestCommand:
    def test_the_list(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert "90 languages" in run(capsys)
        listed = json.loads(run(capsys, "--json", "--folder", f"imagenet-1k={tmp_path}"))["benchmarks"]
        assert [each["name"] for each in listed if each["images"]] == ["imagenet-1k"]

    def test_one(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert "arXiv 1907.07174" in run(capsys, "show", "imagenet-a")
        assert "missile" in run(capsys, "show", "imagenet-1k")
        found = json.loads(run(capsys, "show", own(tmp_path), "--json"))
        assert (found["title"], found["texts"][0]["classes"]) == ("Pets", 3)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["show", "imagenet-b"], "there is no benchmark 'imagenet-b'"),
            (["--folder", "coco"], "--folder coco: write it as NAME=PATH"),
        ],
    )
    def test_a_wrong_request_is_one_line(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(["benchmarks", *arguments])
        out, err = capsys.readouterr()
        assert (ended.value.code, out, len(err.splitlines())) == (2, "", 1)
        assert message in err

    def test_a_missing_package_is_one_line(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(["benchmarks", "show", own(tmp_path, classes="package://no_such_package/names.json")])
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (2, "")
        assert "no_such_package, which is not installed: run `pip install" in err
