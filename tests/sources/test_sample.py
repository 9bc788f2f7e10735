"""What is listed is what is read, or the reading ends."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import support
from sharelock_ray import storage
from sharelock_ray.errors import RunError
from sharelock_ray.extraction.chunks import cut
from sharelock_ray.sources.folders import ClassFolderSource
from sharelock_ray.sources.parquet import ParquetSource
from sharelock_ray.sources.sample import Source, change
from sharelock_ray.sources.subset import Subset
from sharelock_ray.sources.table import TableSource
from sharelock_ray.sources.texts import TextSource
from sharelock_ray.sources.webdataset import WebDatasetSource


def tars(folder: Path, samples: int) -> Source:
    support.write_pairs(folder, shards=1, samples=samples)
    return WebDatasetSource(urls=f"{folder}/*.tar")


def parquet(folder: Path, samples: int) -> Source:
    storage.write_bytes(f"{folder}/.made", b"")
    pq.write_table(pa.table({"image": [b"i"] * samples}), folder / "x.parquet")
    return ParquetSource(urls=f"{folder}/x.parquet")


def table(folder: Path, samples: int) -> Source:
    storage.write_bytes(
        f"{folder}/x.jsonl", b"".join(json.dumps({"image": "i"}).encode() + b"\n" for _ in range(samples))
    )
    return TableSource(path=f"{folder}/x.jsonl")


def texts(folder: Path, samples: int) -> Source:
    storage.write_bytes(f"{folder}/x.txt", b"a text\n" * samples)
    return TextSource(path=f"{folder}/x.txt")


def class_folders(folder: Path, samples: int) -> Source:
    storage.remove(f"{folder}/class")
    for i in range(samples):
        storage.write_bytes(f"{folder}/class/{i}.jpg", b"i")
    storage.write_bytes(f"{folder}/class/.hidden{samples}", b"")
    return ClassFolderSource(path=str(folder))


def subset(folder: Path, samples: int) -> Source:
    return Subset(tars(folder, samples), frozenset({"00000/0000"}))


WRITERS = [tars, parquet, table, texts, class_folders, subset]


class TestChange:
    @pytest.mark.parametrize("write", WRITERS)
    def test_of_a_shard_after_its_listing_ends_the_reading_and_names_it(
        self, tmp_path: Path, write: Callable[[Path, int], Source]
    ) -> None:
        source = write(tmp_path / "data", 4)
        (shard,) = source.shards()
        assert change(source, shard) is None
        write(tmp_path / "data", 3)
        assert f"{shard.uri} was changed" in str(change(source, shard))
        with pytest.raises(RunError, match="was changed after the run had listed it"):
            next(cut(source, shard, 2))
        storage.remove(f"{tmp_path}/data")
        assert "now: deleted" in str(change(source, shard))

    def test_of_its_time_alone_is_one(self, tmp_path: Path) -> None:
        source = tars(tmp_path, 4)
        (shard,) = source.shards()
        os.utime(tmp_path / "00000.tar", (1, 1))
        assert "1970-01-01" in str(change(source, shard))

    def test_on_an_object_store_is_one_of_the_content(self, bucket: str) -> None:
        source = WebDatasetSource(urls=f"{bucket}/*.tar")
        storage.write_bytes(f"{bucket}/x.tar", bytes(1024))
        (shard,) = source.shards()
        storage.write_bytes(f"{bucket}/x.tar", bytes(1024))
        assert change(source, shard) is None
        storage.write_bytes(f"{bucket}/x.tar", b"x" * 1024)
        assert f"{bucket}/x.tar was changed" in str(change(source, shard))
