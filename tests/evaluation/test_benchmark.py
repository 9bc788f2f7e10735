"""Benchmarks as data: the shipped ones are sound, a user's own needs no code, and each mistake is one line."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import support
from sharelock_ray import storage
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.benchmark import (
    SHIPPED,
    Benchmark,
    BenchmarkImages,
    Classes,
    check_labels,
    read_benchmark,
    shipped,
)
from sharelock_ray.evaluation.names import FOLDER, digest
from sharelock_ray.sources.folders import ClassFolderSource
from sharelock_ray.sources.listed import Listed
from sharelock_ray.sources.sample import Sample, Source
from sharelock_ray.sources.webdataset import WebDatasetSource

FOLDERS = {"format": "class_folders", "path": "folder://"}


def benchmark(**fields: Any) -> Benchmark:
    """A small benchmark of two classes."""
    defaults: dict[str, Any] = {
        "title": "Pets",
        "task": "zero_shot_classification",
        "images": [FOLDERS],
        "classes": ["cat", "dog"],
        "templates": ["a photo of a {}."],
        "metrics": {"top_1": 0.5},
    }
    return Benchmark.model_validate({**defaults, **fields})


def with_images(folder: Path, *names: str) -> str:
    """Class folders with one image each."""
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "1.jpg").write_bytes(support.jpeg())
    return str(folder)


def labels_of(classes: Classes, source: Source) -> dict[int, int]:
    folders = [shard.name for shard in source.shards()] if isinstance(source, ClassFolderSource) else None
    return classes.of_labels(folders, "here")


class TestShipped:
    @pytest.mark.parametrize("name", shipped())
    def test_it_is_valid_and_its_lists_are_in_the_packages(self, name: str) -> None:
        found = read_benchmark(name)
        assert all(place.startswith(FOLDER) for source in found.images for place in _paths(source))
        if found.templates is None or found.names_in_folder:
            return
        for language in found.languages:
            classes = found.classes_in(language)
            assert found.templates_in(language)
            if found.class_count is None:
                assert classes.labels is not None
            elif found.metrics.get("top_1") is not None:
                assert found.metrics["top_1"] == pytest.approx(1 / len(classes.names), abs=1e-6)

    def test_its_templates_are_valid_even_where_its_names_are_in_a_folder(self) -> None:
        found = [read_benchmark(name) for name in shipped()]
        assert sum(len(each.templates_in()) for each in found if each.names_in_folder and each.templates) > 50

    def test_the_list_is_that_of_the_field(self) -> None:
        assert {
            *(
                "imagenet-1k",
                "imagenet-real",
                "imagenet-v2",
                "imagenet-a",
                "imagenet-r",
                "imagenet-sketch",
                "objectnet",
            ),
            *("cub", "cars", "fgvc-aircraft", "flowers102", "pets", "food101", "dtd", "sun397", "eurosat", "resisc45"),
            *("gtsrb", "caltech101", "cifar10", "cifar100", "country211", "stl10", "patch-camelyon", "fer2013"),
            *("imagenet-1k-zh", "imagenet-1k-ja", "imagenet-1k-ar", "imagenet-1k-it", "babel-imagenet"),
            *("winoground", "sugarcrepe", "aro-relation", "aro-attribution", "aro-coco-order", "cola", "mmvp-vlm"),
            *("flickr30k", "coco", "flickr30k-cn", "coco-cn", "xtd10", "multi30k", "crossmodal-3600"),
        } <= set(shipped())

    def test_training_images_are_apart_from_the_others(self) -> None:
        found = {name: read_benchmark(name) for name in shipped()}
        trained = {name: each for name, each in found.items() if each.train_images}
        # Those of CLIP-Benchmark, where SUN397 has one split for both.
        assert {"imagenet-1k", "cifar10", "cub", "pets"} <= trained.keys()
        assert len(trained) == 30
        for each in trained.values():
            assert not {*each.images} & {*(each.train_images or ())}

    def test_no_list_of_a_package_is_copied(self) -> None:
        """Only a template or two are written out."""
        lists = [value for name in shipped() for value in read_benchmark(name).lists() if isinstance(value, tuple)]
        assert max(map(len, lists)) <= 2

    def test_masks_of_imagenet_keep_its_order(self) -> None:
        every, some = read_benchmark("imagenet-1k").classes_in(), read_benchmark("imagenet-r").classes_in()
        assert every.folders is not None
        assert some.folders is not None
        name_of = dict(zip(every.folders, every.names, strict=True))
        assert len(some.names) == 200
        assert list(some.folders) == sorted(some.folders)
        assert some.names == tuple(name_of[folder] for folder in some.folders)

    def test_babel_imagenet_names_a_part_of_the_labels_in_each_language(self) -> None:
        babel = read_benchmark("babel-imagenet")
        assert len(babel.languages) == 90
        hindi, english = babel.classes_in("hi"), babel.classes_in("en")
        assert hindi.labels is not None
        assert (len(hindi.names), len(hindi.labels), len(english.names)) == (342, 342, 1000)
        assert "BabelNet Non-Commercial" in str(babel.licence)
        assert len(read_benchmark("babel-imagenet-label").languages) == 93

    def test_digests_tell_lists_apart(self) -> None:
        names = ["imagenet-1k", "imagenet-1k-clean", "imagenet-1k-zh"]
        assert len({digest(read_benchmark(name).classes_in().names) for name in names}) == 3

    @pytest.mark.parametrize("name", shipped())
    def test_it_says_its_licence_and_whom_to_cite(self, name: str) -> None:
        found = read_benchmark(name)
        assert found.licence
        assert found.citation

    def test_they_are_files_of_the_package(self) -> None:
        assert {path.suffix for path in SHIPPED.iterdir()} == {".yaml"}


class TestReading:
    def test_a_users_own_file_works_by_its_path(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(benchmark().model_dump(mode="json", exclude_unset=True)))
        assert read_benchmark(str(path)) == benchmark()

    def test_an_unknown_name_gets_the_nearest(self) -> None:
        with pytest.raises(RequestError, match="there is no benchmark 'imagnet-1k': did you mean `imagenet-1k`"):
            read_benchmark("imagnet-1k")

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"clases": ["cat"]}, "there is no field `clases`: did you mean `classes`?"),
            ({"images": [{"format": "class_folders", "pth": "folder://"}]}, "did you mean `path`?"),
            ({"title": None}, "the field `title` is missing"),
            ({"task": "zero_shot"}, "`task`"),
            ({"metrics": {"top1": 0.1}}, "top1"),
            ({"images": []}, "`images`"),
            ({"classes": 5}, "`classes`: write a list, or the file of one, such as folder://names.txt (it is 5)"),
            (
                {"classes": ["yes", False]},
                "`classes`: write texts only, with numbers and words such as no in quotation",
            ),
            ({"classes": [1, 2]}, "`classes`: write texts only"),
            ({"mask": [1, "cat"]}, "`mask`: write texts only"),
            ({"task": "retrieval"}, "the task retrieval has no `classes`"),
            ({"translations": "folder://a.parquet"}, "the task zero_shot_classification has no `translations`"),
            ({"templates": None}, "the task zero_shot_classification needs `templates`"),
            ({"task": "two_images_two_captions", "templates": None}, "two_images_two_captions needs `choices`"),
            ({"train_images": []}, "`train_images`"),
            ({"task": "multi_label_classification", "train_images": [FOLDERS]}, "has no `train_images`"),
            ({"image_labels": "folder://a.json", "train_images": [FOLDERS]}, "`train_images` need one label per image"),
        ],
    )
    def test_a_wrong_field_is_one_line(self, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
        path = tmp_path / "mine.yaml"
        content = benchmark().model_dump(mode="json", exclude_unset=True) | fields
        path.write_text(yaml.safe_dump({name: value for name, value in content.items() if value is not None}))
        with pytest.raises(RequestError) as raised:
            read_benchmark(str(path))
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)

    def test_a_file_that_is_absent_or_no_yaml_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="no benchmark at"):
            read_benchmark(str(tmp_path / "mine.yaml"))
        (tmp_path / "mine.yaml").write_text("a: [")
        with pytest.raises(RequestError, match=r"mine.yaml is not YAML"):
            read_benchmark(str(tmp_path / "mine.yaml"))
        (tmp_path / "mine.yaml").write_text("text")
        with pytest.raises(RequestError, match=r"mine.yaml is not a benchmark"):
            read_benchmark(str(tmp_path / "mine.yaml"))


class TestImages:
    def test_the_first_layout_that_is_there_is_read(self, tmp_path: Path) -> None:
        mine = benchmark(images=[{"urls": "folder://test/*.tar"}, FOLDERS])
        with_images(tmp_path, "cat")
        assert mine.source(str(tmp_path)) == ClassFolderSource(path=str(tmp_path))
        (tmp_path / "test").mkdir()
        (tmp_path / "test" / "0.tar").touch()
        assert mine.source(str(tmp_path)) == WebDatasetSource(urls=f"{tmp_path}/test/*.tar")

    def test_for_training_have_layouts_of_their_own(self, tmp_path: Path) -> None:
        mine = benchmark(train_images=[{"urls": "folder://train/*.tar"}, {**FOLDERS, "path": "folder://train"}])
        with pytest.raises(RequestError, match=rf"no training images of Pets in {tmp_path}: .*/train/\*\.tar or "):
            mine.source(str(tmp_path), training=True)
        with_images(tmp_path / "train", "cat")
        assert mine.source(str(tmp_path), training=True) == ClassFolderSource(path=str(tmp_path / "train"))
        sent = pickle.loads(pickle.dumps(Listed(BenchmarkImages(mine, str(tmp_path), training=True))))
        assert [shard.name for shard in sent.shards()] == ["cat"]

    def test_shipped_benchmarks_accept_class_folders_of_both_splits(self, tmp_path: Path) -> None:
        for split in ("train", "test"):
            with_images(tmp_path / split, "cat")
        shipped = [read_benchmark(name) for name in ("cifar10", "pets", "dtd")]
        for training, split in ((True, "train"), (False, "test")):
            expected = ClassFolderSource(path=str(tmp_path / split))
            assert all(each.source(str(tmp_path), training) == expected for each in shipped)

    def test_a_folder_with_characters_of_patterns_is_that_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "a[1]{b}*"
        folder.mkdir()
        (folder / "0.tar").touch()
        source = benchmark(images=[{"urls": "folder://*.tar"}]).source(str(folder))
        assert isinstance(source, WebDatasetSource)
        assert storage.expand(str(source.urls)) == [str(folder / "0.tar")]

    def test_absent_ones_are_one_line_that_says_where_they_are_expected(self, tmp_path: Path) -> None:
        mine = benchmark(images=[{"urls": "folder://*.tar"}, {"format": "class_folders", "path": "folder://val"}])
        expected = (
            rf"there are no images of Pets in {tmp_path}: .* {tmp_path}/\*\.tar or {tmp_path}/val/<class>/<image>"
        )
        with pytest.raises(RequestError, match=expected):
            mine.source(str(tmp_path))

    def test_a_folder_of_clip_benchmark_has_images_labels_and_names(self, tmp_path: Path) -> None:
        (tmp_path / "test").mkdir()
        members = {"s1.jpg": support.jpeg(), "s1.cls": b"9", "s2.jpg": support.jpeg(), "s2.cls": b"0"}
        support.write_tar(tmp_path / "test" / "0.tar", members)
        (tmp_path / "classnames.txt").write_text("\n".join(f"class {i}" for i in range(10)))
        cifar = read_benchmark("cifar10")
        source, classes = cifar.source(str(tmp_path)), cifar.classes_in(folder=str(tmp_path))
        labels = [sample.label for sample in support.read_source(source) if isinstance(sample, Sample)]
        assert [classes.names[labels_of(classes, source)[label]] for label in labels] == ["class 9", "class 0"]
        (tmp_path / "classnames.txt").write_text("cat\ndog\n")
        with pytest.raises(RequestError, match="CIFAR-10 has 2 class names for 10 classes"):
            cifar.classes_in(folder=str(tmp_path))


class TestClasses:
    def test_a_mask_names_positions_folders_or_names(self) -> None:
        fields: dict[str, Any] = {"classes": ["cat", "dog", "cow"], "folders": ["n1", "n2", "n3"]}
        for mask in ([2, 0], ["n3", "n1"], ["cow", "cat"]):
            found = benchmark(**fields, mask=mask).classes_in()
            assert (found.names, found.folders, found.other_folders) == (("cat", "cow"), ("n1", "n3"), {"n2"})

    def test_names_may_be_put_into_small_letters(self) -> None:
        assert benchmark(classes=["Air freshener", "TV"], lower=True).classes_in().names == ("air freshener", "tv")

    def test_without_a_list_they_are_in_classnames_txt_or_the_names_of_folders(self, tmp_path: Path) -> None:
        folder = with_images(tmp_path, "apple_pie", "soup")
        mine = benchmark(classes=None)
        assert mine.classes_in(folder=folder).names == ("apple pie", "soup")
        (tmp_path / "classnames.txt").write_text("a pie\na soup\n")
        assert mine.classes_in(folder=folder).names == ("a pie", "a soup")

    def test_tars_without_a_list_say_where_to_write_it(self, tmp_path: Path) -> None:
        (tmp_path / "0.tar").touch()
        mine = benchmark(classes=None, images=[{"urls": "folder://*.tar"}])
        with pytest.raises(RequestError, match=rf"write one per line, in label order, to {tmp_path}/classnames.txt"):
            mine.classes_in(folder=str(tmp_path))

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"classes": []}, r"the class names in \(\) are an empty list"),
            ({"classes": ["cat", ""]}, "Pets: class 1 of 2 has no name"),
            ({"class_count": 3}, "Pets has 2 class names for 3 classes"),
            ({"labels": [4]}, "Pets has 2 class names for 1 classes"),
            ({"mask": ["cow"]}, "the mask of Pets names 'cow', which is none of its 2 entries"),
            ({"mask": [2]}, "the mask of Pets names 2, which is none of its 2 entries"),
            ({"mask": [0], "folders": ["a"]}, "Pets has 2 class names for 1 class folders"),
        ],
    )
    def test_a_fault_is_one_line(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(RequestError, match=message):
            benchmark(**fields).classes_in()

    def test_a_language_without_texts_gets_the_nearest(self) -> None:
        with pytest.raises(RequestError, match=r"Babel-ImageNet has no texts in 'hin': did you mean `hi`\?"):
            read_benchmark("babel-imagenet").classes_in("hin")


class TestLabels:
    """Labels of images become classes, by folder where folders have names of their own."""

    def test_of_folders_go_by_name_also_if_some_are_absent(self, tmp_path: Path) -> None:
        source = ClassFolderSource(path=with_images(tmp_path, "n3", "n1"))
        found = benchmark(classes=["cat", "dog", "cow"], folders=["n1", "n2", "n3"]).classes_in()
        assert labels_of(found, source) == {0: 0, 1: 2}

    def test_of_folders_outside_the_mask_are_left_out(self, tmp_path: Path) -> None:
        source = ClassFolderSource(path=with_images(tmp_path, "n1", "n2", "n3"))
        found = benchmark(classes=["cat", "dog", "cow"], folders=["n1", "n2", "n3"], mask=["n2", "n3"]).classes_in()
        assert labels_of(found, source) == {1: 0, 2: 1}

    def test_of_an_unknown_folder_are_one_line(self, tmp_path: Path) -> None:
        source = ClassFolderSource(path=with_images(tmp_path, "n1", "n7"))
        found = benchmark(folders=["n1", "n2"]).classes_in()
        with pytest.raises(
            RequestError, match="holds the folder 'n7', which is no class: the class folders are n1, n2"
        ):
            labels_of(found, source)

    def test_of_numbered_folders_go_by_number(self, tmp_path: Path) -> None:
        source = ClassFolderSource(path=with_images(tmp_path, *map(str, range(12))))
        found = benchmark(classes=[f"class {i}" for i in range(12)]).classes_in()
        # Sorted as text: 0, 1, 10, 11, 2, …
        assert [labels_of(found, source)[label] for label in range(12)] == [0, 1, 10, 11, *range(2, 10)]

    def test_of_more_or_fewer_folders_than_names_are_one_line(self, tmp_path: Path) -> None:
        source = ClassFolderSource(path=with_images(tmp_path, "cat", "cow", "dog"))
        with pytest.raises(RequestError, match="holds 3 class folders for 2 class names"):
            labels_of(benchmark().classes_in(), source)

    def test_without_a_name_are_left_out(self, tmp_path: Path) -> None:
        found = benchmark(folders=["n0", "n1", "n2", "n3"], labels=[3, 1]).classes_in()
        tars = WebDatasetSource(urls=str(tmp_path / "*.tar"))
        assert labels_of(found, tars) == {3: 0, 1: 1}
        source = ClassFolderSource(path=with_images(tmp_path, "n1", "n2", "n3"))
        assert labels_of(found, source) == {0: 1, 2: 0}

    def test_outside_the_classes_are_one_line(self) -> None:
        check_labels(np.array([0, 1, 1]), 2, "Pets")
        with pytest.raises(RequestError, match="Pets has images with the label 2, and 2 classes have names"):
            check_labels(np.array([0, 2, 5]), 2, "Pets")
        with pytest.raises(RequestError, match="Pets has images with the label -1"):
            check_labels([-1], 2, "Pets")

    def test_several_of_an_image_go_by_file_name(self, tmp_path: Path) -> None:
        (tmp_path / "labels.json").write_text(json.dumps({"1.jpg": [0, 3]}))
        mine = benchmark(image_labels="folder://labels.json")
        assert mine.labels_of_images(["images/1.jpg", "images/2.jpg"], str(tmp_path)) == [(0, 3), ()]
        with pytest.raises(RequestError, match="Pets knows none of the images"):
            mine.labels_of_images(["images/3.jpg"], str(tmp_path))
        with pytest.raises(RequestError, match="Pets has one label per image"):
            benchmark().labels_of_images(["images/1.jpg"])

    def test_reals_are_those_of_timm(self) -> None:
        found = read_benchmark("imagenet-real").labels_of_images(["n02342885/ILSVRC2012_val_00000003.JPEG"])
        assert found == [(230, 231)]


class TestTemplates:
    def test_those_of_clip_benchmark_have_the_place_of_the_name_as_others(self) -> None:
        assert benchmark(templates=["a {c}.", "{}"]).templates_in() == ("a {}.", "{}")

    @pytest.mark.parametrize("template", ["a photo", "a {name}", "a {} {x}", "a {} {}", "{", "a {}}"])
    def test_one_without_the_place_or_with_other_braces_is_one_line(self, template: str) -> None:
        with pytest.raises(RequestError, match=r"Pets: the template .* must have \{\} once"):
            benchmark(templates=["a {}.", template]).templates_in()

    def test_an_empty_list_is_one_line(self) -> None:
        with pytest.raises(RequestError, match=r"the templates in \(\) are an empty list"):
            benchmark(templates=[]).templates_in()

    def test_a_task_without_classes_has_none(self) -> None:
        with pytest.raises(RequestError, match="COCO captions has no templates: its task is retrieval"):
            read_benchmark("coco").templates_in()


def test_examples_of_a_shipped_compositional_benchmark_are_read_from_its_folder(tmp_path: Path) -> None:
    record = {"image_0": "ex_0_img_0", "image_1": "ex_0_img_1", "caption_0": "a b", "caption_1": "b a"}
    (tmp_path / "examples.jsonl").write_text(json.dumps(record | {"collapsed_tag": "Object"}))
    (found,) = read_benchmark("winoground").choices_in(str(tmp_path))
    assert (found.kind, found.captions) == ("Object", ("a b", "b a"))
    # The keys are those of the images in the source.
    with_images(tmp_path, "images")
    (tmp_path / "images" / "1.jpg").rename(tmp_path / "images" / "ex_0_img_0.png")
    source = read_benchmark("winoground").source(str(tmp_path))
    assert found.images[0] in [key for shard in source.shards() for key in source.keys_of(shard)]
    with pytest.raises(RequestError, match="COCO captions has no examples"):
        read_benchmark("coco").choices_in(str(tmp_path))


def _paths(source: Any) -> list[str]:
    urls = getattr(source, "urls", None) or source.path
    return [urls] if isinstance(urls, str) else list(urls)


class TestImagesOfARun:
    def test_provide_what_the_task_needs(self) -> None:
        captioned = Benchmark(title="x", task="retrieval", images=benchmark().images, metrics={"text_to_image": None})
        assert set(BenchmarkImages(benchmark(), "nowhere").provides) == {"images", "labels"}
        assert set(BenchmarkImages(captioned, "nowhere").provides) == {"images", "captions"}
        elsewhere = captioned.model_copy(update={"translations": "folder://captions.parquet"})
        assert set(BenchmarkImages(elsewhere, "nowhere").provides) == {"images", "labels"}

    def test_are_looked_for_when_they_are_listed_also_by_a_worker(self, tmp_path: Path) -> None:
        images = BenchmarkImages(benchmark(), str(tmp_path))
        with pytest.raises(RequestError, match="there are no images of Pets"):
            images.shards()
        with_images(tmp_path, "cat", "dog")
        sent = pickle.loads(pickle.dumps(Listed(images)))
        found = [item for shard in images.shards() for item in sent.read(shard)]
        assert [(item.key, item.label) for item in found] == [("cat/1.jpg", 0), ("dog/1.jpg", 1)]
        assert all(images.version(shard) == shard.version for shard in images.shards())

    def test_shipped_benchmarks_that_share_them_are_looked_for_in_the_same_places(self) -> None:
        for name in shipped():
            found = read_benchmark(name)
            if found.images_of:
                # ReaL goes by file names, which tars do not keep.
                assert set(found.images) <= {*read_benchmark(found.images_of).images}


def test_languages_are_english_by_default_or_the_first() -> None:
    assert read_benchmark("multi30k").chosen(()) == ("en",)
    assert read_benchmark("coco-cn").chosen(()) == ("zh",)
    assert len(read_benchmark("babel-imagenet").chosen("all")) == 90
    assert read_benchmark("multi30k").chosen(["de", "cs"]) == ("de", "cs")
    with pytest.raises(RequestError, match="did you mean `de`"):
        read_benchmark("multi30k").chosen(["deu"])
