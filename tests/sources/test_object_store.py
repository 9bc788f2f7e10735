"""Sources on an object store that speaks S3, which knows neither seeking nor a range of an empty object."""

import json
from pathlib import Path

import pytest

import support
from object_store import ChaosProxy
from sharelock_ray import storage
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.folders import ClassFolderSource
from sharelock_ray.sources.sample import Sample
from sharelock_ray.sources.table import TableSource
from sharelock_ray.sources.webdataset import WebDatasetSource
from sharelock_ray.storage.object_store import ObjectStore


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
    *in_folders, _ = support.read_source(ClassFolderSource(path=bucket))
    assert [(sample.key, sample.image) for sample in in_folders] == [("list/1.jpg", b""), ("list/2.jpg", b"i")]


def test_an_image_that_is_missing_is_a_reject(bucket: str) -> None:
    storage.write_bytes(f"{bucket}/list/gone.csv", b"image\nno.jpg")
    (bad,) = support.read_source(TableSource(path=f"{bucket}/list/gone.csv"))
    assert (bad.stage, bad.error) == ("read", "FileNotFoundError")


@pytest.mark.parametrize("name", ["s3://BUCKET/\ud800", "s3://Not A Bucket/1.jpg", "s3://BUCKET", "s3://"])
def test_an_image_whose_name_the_store_gives_to_none_is_a_reject(bucket: str, name: str) -> None:
    storage.write_bytes(f"{bucket}/x.jsonl", json.dumps({"image": name.replace("s3://BUCKET", bucket)}).encode())
    (bad,) = support.read_source(TableSource(path=f"{bucket}/x.jsonl"))
    assert (bad.stage, bad.error) == ("read", "ImpossibleUriError")


def test_an_image_whose_name_is_too_long_for_the_store_is_a_reject(bucket: str, chaos: ChaosProxy) -> None:
    storage.write_bytes(f"{bucket}/x.csv", b"image\n1.jpg\n2.jpg")
    chaos.choose = lambda method, path, attempt: "too_long" if path.endswith("/1.jpg") else None
    errors = [item.error for item in support.read_source(TableSource(path=f"{bucket}/x.csv"))]
    assert errors == ["ImpossibleUriError", "FileNotFoundError"]


class TestFaultsThatBeginInTheMiddle:
    """Faults of the store, from the second image of a list or class folder on."""

    @pytest.fixture(params=["table", "class_folders"])
    def source(self, request: pytest.FixtureRequest, bucket: str) -> TableSource | ClassFolderSource:
        for i in range(3):
            storage.write_bytes(f"{bucket}/images/{i}.jpg", b"i")
        if request.param == "class_folders":
            return ClassFolderSource(path=bucket)
        storage.write_bytes(f"{bucket}/x.csv", b"image\nimages/0.jpg\nimages/1.jpg\nimages/2.jpg\n")
        return TableSource(path=f"{bucket}/x.csv")

    @pytest.mark.parametrize(
        ("fault", "said"),
        [("expired", "token has expired"), ("denied", "check the credentials"), ("skewed", "RequestTimeTooSkewed")],
    )
    def test_end_the_reading(
        self, source: TableSource | ClassFolderSource, chaos: ChaosProxy, fault: str, said: str
    ) -> None:
        (shard,) = source.shards()
        chaos.choose = lambda method, path, attempt: fault if path.endswith(("1.jpg", "2.jpg")) else None
        items = source.read(shard)
        assert isinstance(next(items), Sample)
        with pytest.raises(RequestError, match=said):
            next(items)

    def test_may_be_a_store_that_is_gone(
        self, source: TableSource | ClassFolderSource, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sharelock_ray.storage.object_store._FIRST_CONTACT_S", 0)
        items = source.read(source.shards()[0])
        next(items)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(RequestError, match="no object store answers"):
            next(items)

    def test_may_be_credentials_that_are_gone(
        self, source: TableSource | ClassFolderSource, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        items = source.read(source.shards()[0])
        next(items)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        ObjectStore.clear_instance_cache()
        with pytest.raises(RequestError, match="no credentials for"):
            next(items)
