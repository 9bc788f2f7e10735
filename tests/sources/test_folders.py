"""Class folders: the label of an image is the place of its folder among the folders."""

from pathlib import Path

import pytest

import support
from sharelock_ray import storage
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.folders import ClassFolderSource
from sharelock_ray.sources.sample import Sample, Shard


def write(folder: Path | str, *paths: str) -> ClassFolderSource:
    for path in paths:
        storage.write_bytes(f"{folder}/{path}", path.encode())
    return ClassFolderSource(path=str(folder))


def test_labels_follow_the_sorted_folders(tmp_path: Path) -> None:
    source = write(tmp_path, "n02/b.JPEG", "n02/a.png", "n01/a.jpg")
    assert support.read_source(source) == [
        Sample("n01/a.jpg", b"n01/a.jpg", (), 0),
        Sample("n02/a.png", b"n02/a.png", (), 1),
        Sample("n02/b.JPEG", b"n02/b.JPEG", (), 1),
    ]


def test_a_shard_is_a_class_folder(tmp_path: Path) -> None:
    source = write(tmp_path, "n02/b.jpg", "n02/a.jpg", "n01/a.jpg")
    assert source.shards() == [Shard(0, "n01", f"{tmp_path}/n01", 9), Shard(1, "n02", f"{tmp_path}/n02", 18)]


def test_an_empty_class_folder_keeps_its_label(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    source = write(tmp_path, "b/1.jpg")
    assert len(source.shards()) == 2
    assert support.read_source(source) == [Sample("b/1.jpg", b"b/1.jpg", (), 1)]


def test_hidden_files_and_folders_and_files_beside_the_classes_are_passed_over(tmp_path: Path) -> None:
    source = write(tmp_path, ".git/1.jpg", "a/1.jpg", "a/._1.jpg", "a/.deeper/2.jpg", "README.md")
    assert support.read_source(source) == [Sample("a/1.jpg", b"a/1.jpg", (), 0)]


def test_other_files_and_folders_within_a_class_are_rejects(tmp_path: Path) -> None:
    source = write(tmp_path, "a/1.jpg", "a/2", "a/notes.txt", "b/deeper/2.jpg", "b/deeper/3.jpg")
    image, *bad = support.read_source(source)
    assert image == Sample("a/1.jpg", b"a/1.jpg", (), 0)
    assert [(item.key, item.stage, item.error) for item in bad] == [
        (key, "read", "NoImageFile") for key in ("a/2", "a/notes.txt", "b/deeper")
    ]


def test_all_endings_of_jpeg_are_read(tmp_path: Path) -> None:
    source = write(tmp_path, *(f"a/1.{ending}" for ending in ("JPEG", "jfif", "jpe", "jpg")))
    assert [type(item) for item in support.read_source(source)] == [Sample] * 4


def test_images_of_one_name_but_two_endings_are_two_samples(tmp_path: Path) -> None:
    keys = [item.key for item in support.read_source(write(tmp_path, "a/1.jpg", "a/1.png"))]
    assert keys == ["a/1.jpg", "a/1.png"]


def test_links_to_folders_and_images_are_followed(tmp_path: Path) -> None:
    source = write(tmp_path / "data", "a/1.jpg")
    write(tmp_path, "elsewhere/2.jpg")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "3.jpg").symlink_to(tmp_path / "elsewhere" / "2.jpg")
    assert [(item.key, item.label) for item in support.read_source(source)] == [
        ("a/1.jpg", 0),
        ("a/3.jpg", 0),
        ("b/2.jpg", 1),
    ]


def test_folders_of_an_object_store() -> None:
    try:
        source = write("memory://folders", "b/1.jpg", "a/1.jpg")
        assert [(item.key, item.label) for item in support.read_source(source)] == [("a/1.jpg", 0), ("b/1.jpg", 1)]
    finally:
        storage.remove("memory://folders")


def test_a_link_to_nothing_or_to_itself_is_a_reject(tmp_path: Path) -> None:
    source = write(tmp_path, "a/1.jpg")
    (tmp_path / "a" / "2.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "a" / "3.jpg").symlink_to("3.jpg")
    _, bad, loop = support.read_source(source)
    assert (bad.key, bad.stage, bad.error) == ("a/2.jpg", "read", "FileNotFoundError")
    assert (loop.key, loop.stage, loop.error) == ("a/3.jpg", "read", "OSError")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["1.jpg"], "holds no class folders"),
        (["a/notes.txt"], "hold no images"),
        (["a/deeper/1.jpg"], "hold no images: they are expected at <class>/<image>"),
        ([], "no folder at"),
    ],
)
def test_a_folder_that_is_laid_out_otherwise_is_a_wrong_request(tmp_path: Path, paths: list, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        write(tmp_path / "data", *paths).shards()


@pytest.mark.parametrize("name", ["a\nb", "\udcff"])
def test_a_folder_whose_name_is_no_line_of_text_is_a_wrong_request(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "1.jpg").write_bytes(b"i")
    with pytest.raises(RequestError, match="has control characters or is not Unicode"):
        ClassFolderSource(path=str(tmp_path)).shards()


def test_a_file_in_the_place_of_the_folder_is_a_wrong_request(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"")
    with pytest.raises(RequestError, match=r"holds no class folders|no folder at"):
        ClassFolderSource(path=str(tmp_path / "data")).shards()


def test_each_image_is_in_one_place(tmp_path: Path) -> None:
    source = write(tmp_path / "data", "a/1.jpg", "a/2.jpg", "a/3.jpg", "c/1.jpg")
    (tmp_path / "data" / "b").mkdir()
    (tmp_path / "data" / "c" / "2.jpg").symlink_to(tmp_path / "gone.jpg")
    write(tmp_path / "data", "c/notes.txt")
    support.prove_accounted(source, tmp_path / "features", inputs=6)
