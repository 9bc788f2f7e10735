"""Lists of names in files: read without running anything, named by a digest, and one line for each mistake."""

import hashlib
import json
from pathlib import Path

import pytest

from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.names import (
    checked_names,
    digest,
    missing_package,
    read_image_labels,
    read_list,
    shared_names,
    sharing_note,
)

CLIP_BENCHMARK = "package://clip_benchmark/datasets"
OPEN_CLIP = "package://open_clip/zero_shot_metadata.py"


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


class TestReading:
    def test_a_text_file_has_one_entry_per_line(self, tmp_path: Path) -> None:
        assert read_list(write(tmp_path / "names.txt", "a cat\nein Bär\n\n"), "names") == ["a cat", "ein Bär"]

    @pytest.mark.parametrize(
        ("place", "found"),
        [("en", ["cat"]), ("de/1", ["Hund"]), ("by id/keys()", ["n1", "n2"]), ("by id/values()", ["dog", "cat"])],
    )
    def test_json_holds_it_at_keys_and_indices(self, tmp_path: Path, place: str, found: list[str]) -> None:
        content = {"en": ["cat"], "de": [[0], ["Hund"]], "by id": {"n2": "cat", "n1": "dog"}}
        file = write(tmp_path / "names.json", json.dumps(content))
        assert read_list(f"{file}#{place}", "names") == found

    def test_placeholders_stand_for_the_language(self, tmp_path: Path) -> None:
        write(tmp_path / "hi.json", json.dumps({"HI": ["बिल्ली"]}))
        assert read_list(f"{tmp_path}/{{language}}.json#{{LANGUAGE}}", "names", "hi") == ["बिल्ली"]

    def test_python_is_read_and_not_run(self, tmp_path: Path) -> None:
        code = """
            raise SystemExit("this file was run")
            NAMES = ("cat", "dog")
            TEMPLATES = [lambda c: f"a photo of a {c}.", lambda name: f"{name}, drawn"]
            def build():
                wnids = {"n2", "n1"}
                computed = list(range(3))
        """
        file = write(tmp_path / "code.py", "if True:\n" + code)
        assert read_list(f"{file}#NAMES", "names") == ["cat", "dog"]
        assert read_list(f"{file}#TEMPLATES", "templates") == ["a photo of a {}.", "{}, drawn"]
        assert read_list(f"{file}#wnids", "synsets") == ["n1", "n2"]
        with pytest.raises(RequestError, match=r"code.py has no names in a variable 'computed'"):
            read_list(f"{file}#computed", "names")

    def test_a_changed_file_is_read_again(self, tmp_path: Path) -> None:
        file = write(tmp_path / "names.json", '["cat"]')
        assert read_list(file, "names") == ["cat"]
        write(tmp_path / "names.json", '["a dog"]')
        assert read_list(file, "names") == ["a dog"]

    def test_the_folder_of_the_images_may_hold_it(self, tmp_path: Path) -> None:
        write(tmp_path / "names.txt", "cat")
        assert read_list("folder://names.txt", "names", folder=str(tmp_path)) == ["cat"]
        with pytest.raises(RequestError, match="the names are in the folder of the images, which is not given"):
            read_list("folder://names.txt", "names")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.json", "[]", r"the names in .*a.json are an empty list"),
            ("a.json", '{"en": ["cat"]}', r"the names in .*a.json are a dict, not a list"),
            ("a.json#de", '{"en": ["cat"]}', r"a.json has no names at 'de'"),
            ("a.json#3", '["cat"]', r"a.json has no names at '3'"),
            ("a.json#x", '["cat"]', r"a.json has no names at 'x'"),
            ("a.json", "{", r"the names in .*a.json are not JSON"),
            ("a.json", "[" * 100_000, r"the names in .*a.json are not JSON"),
            ("a.txt", "\n", r"the names in .*a.txt are an empty list"),
            ("a.py#X", "X =", r"a.py is not Python"),
            ("a.py#X", "Y = 1", r"a.py has no names in a variable 'X'"),
            ("a.py#X", "X = 1", r"the names in .*a.py#X are a int, not a list"),
        ],
    )
    def test_a_fault_is_one_line(self, tmp_path: Path, name: str, content: str, message: str) -> None:
        write(tmp_path / name.partition("#")[0], content)
        with pytest.raises(RequestError, match=message) as raised:
            read_list(f"{tmp_path}/{name}", "names")
        assert "\n" not in str(raised.value)

    def test_a_missing_file_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match=r"no names at .*nowhere.txt: check the path"):
            read_list(f"{tmp_path}/nowhere.txt", "names")

    def test_a_missing_package_says_what_to_install(self) -> None:
        assert missing_package("package://no_such_package/names.json") == "no_such_package"
        with pytest.raises(RequestError, match=r"no_such_package, which is not installed: run `pip install 'shareloc"):
            read_list("package://no_such_package/names.json", "names")

    def test_an_unknown_subset_of_imagenet_is_one_line(self) -> None:
        with pytest.raises(RequestError, match="timm knows no ImageNet subset 'imagenet-x'"):
            read_list("timm://imagenet-x", "synsets")


class TestPackages:
    """Lists of different packages are those that they should be."""

    def test_names_and_templates_of_openai_are_the_same_in_two_packages(self) -> None:
        english = f"{CLIP_BENCHMARK}/en_classnames.json#imagenet1k"
        templates = f"{CLIP_BENCHMARK}/en_zeroshot_classification_templates.json#imagenet1k"
        assert read_list(f"{OPEN_CLIP}#IMAGENET_CLASSNAMES", "names") == read_list(english, "names")
        assert read_list(f"{OPEN_CLIP}#OPENAI_IMAGENET_TEMPLATES", "templates") == [
            template.replace("{c}", "{}") for template in read_list(templates, "templates")
        ]

    def test_templates_read_from_functions_are_what_the_functions_give(self) -> None:
        from open_clip import SIMPLE_IMAGENET_TEMPLATES

        found = read_list(f"{OPEN_CLIP}#SIMPLE_IMAGENET_TEMPLATES", "templates")
        assert found == [template("{}") for template in SIMPLE_IMAGENET_TEMPLATES]

    @pytest.mark.parametrize("subset", ["a", "r"])
    def test_synsets_that_are_local_to_a_function_are_those_of_timm(self, subset: str) -> None:
        local = read_list(f"{CLIP_BENCHMARK}/builder.py#imagenet_{subset}_wnids", "synsets")
        assert sorted(local) == read_list(f"package://timm/data/_info/imagenet_{subset}_synsets.txt", "synsets")

    def test_synsets_are_in_label_order(self) -> None:
        every = read_list(f"{CLIP_BENCHMARK}/builder.py#all_imagenet_wordnet_ids", "synsets")
        assert every == read_list("timm://imagenet-1k", "synsets") == sorted(every)

    def test_real_labels_go_by_file_name(self) -> None:
        labels = read_image_labels("timm://real")
        assert len(labels) == 50_000
        # The first validation image shows a sea snake.
        assert labels["ILSVRC2012_val_00000001.JPEG"] == []
        assert labels["ILSVRC2012_val_00000003.JPEG"] == [230, 231]


class TestNames:
    def test_digest_is_the_sha_256_of_canonical_json(self) -> None:
        assert digest(["a cat", "Bär"]) == hashlib.sha256('["a cat","Bär"]'.encode()).hexdigest()
        assert digest(["a cat", "Bär"]) == digest(("a cat", "Bär")) != digest(["Bär", "a cat"])

    @pytest.mark.parametrize(
        ("names", "count", "message"),
        [
            ([], None, "pets has no class names"),
            (["cat", " "], None, r"pets: class 1 of 2 has no name \(it is ' '\)"),
            (["cat", None], None, r"pets: class 1 of 2 has no name \(it is None\)"),
            (["cat"], 2, "pets has 1 class names for 2 classes: give one name per class"),
        ],
    )
    def test_each_class_needs_one(self, names: list[object], count: int | None, message: str) -> None:
        with pytest.raises(RequestError, match=message):
            checked_names(names, "pets", count)

    def test_shared_ones_are_allowed_counted_and_warned_of(self) -> None:
        names = checked_names(["crane", "cat", "crane", "maillot", "maillot"], "birds", 5)
        assert shared_names(names) == {"crane": [0, 2], "maillot": [3, 4]}
        assert sharing_note(names) == (
            "4 of 5 classes share their name, and any of these is right: crane (0, 2), maillot (3, 4)"
        )
        assert sharing_note(["cat", "dog"]) is None
        assert "and 2 more" in str(sharing_note([f"{i % 5}" for i in range(10)]))
