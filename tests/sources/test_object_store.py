"""Sources on an object store that speaks S3, which knows neither seeking nor a range of an empty object."""

from pathlib import Path

import pytest

import support
from sharelock_ray import storage
from sharelock_ray.sources.folders import ClassFolderSource
from sharelock_ray.sources.sample import Sample
from sharelock_ray.sources.table import TableSource
from sharelock_ray.sources.webdataset import WebDatasetSource


def test_a_tar_whose_members_lie_apart_is_read_from_a_copy_that_is_gone_after(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = support.write_tar(tmp_path / "x.tar", {"1.jpg": b"i", "2.jpg": b"j", "1.txt": b"one", "2.txt": b"two"})
    storage.write_bytes(f"{bucket}/tars/x.tar", tar.read_bytes())
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(copies))
    found = support.read_source(WebDatasetSource(urls=f"{bucket}/tars/*.tar"))
    assert found == [Sample("x/1", b"i", ("one",)), Sample("x/2", b"j", ("two",))]
    assert list(copies.iterdir()) == []


def test_an_empty_object_is_an_image_of_no_bytes(bucket: str) -> None:
    for name, content in {"list/x.csv": b"image\n1.jpg\n2.jpg", "list/1.jpg": b"", "list/2.jpg": b"i"}.items():
        storage.write_bytes(f"{bucket}/{name}", content)
    listed = support.read_source(TableSource(path=f"{bucket}/list/x.csv"))
    assert [sample.image for sample in listed] == [b"", b"i"]
    in_folders = support.read_source(ClassFolderSource(path=bucket))
    assert [(sample.key, sample.image) for sample in in_folders] == [("list/1.jpg", b""), ("list/2.jpg", b"i")]


def test_an_image_that_is_missing_is_a_reject(bucket: str) -> None:
    storage.write_bytes(f"{bucket}/list/gone.csv", b"image\nno.jpg")
    (bad,) = support.read_source(TableSource(path=f"{bucket}/list/gone.csv"))
    assert (bad.stage, bad.error) == ("read", "FileNotFoundError")
