"""Opens feature sets and joins them by key."""

import hashlib
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.cache import content_key, folder_of, in_use, made_once, unmade
from sharelock_ray.features.manifest import MANIFEST, Manifest, Part, keys_digest, read_manifest, totals
from sharelock_ray.features.schema import REJECTS, rows_schema
from sharelock_ray.machine import cpu_count
from sharelock_ray.progress import Progress
from sharelock_ray.sources.sample import DUPLICATE_KEY

if TYPE_CHECKING:
    import torch

_REMEDY = "restore it, or delete the feature set and run extract again"
_KEY_HASH = "key_hash"
_EMBEDDINGS = "embeddings.bin"
# Batches that stay in a core's cache decode a quarter faster than whole row groups, and up to twice at small pages.
_DECODED_BYTES = 4 << 20
_T = TypeVar("_T")


def open_features(uri: str) -> "FeatureSet":
    """Opens a complete feature set.

    Raises:
        RequestError: it does not exist or is incomplete.
    """
    return FeatureSet(uri, read_manifest(uri))


@dataclass(frozen=True)
class FeatureSet:
    """A complete feature set; rows are in the order of its parts, sorted by key within each.

    `keys` is (N,) and `embeddings` is (N, D). The first use of either verifies the Parquet parts against the manifest
    and decodes them into files, which every process of the node maps into memory (`features.cache`).
    """

    uri: str
    manifest: Manifest

    def __reduce__(self) -> tuple[type["FeatureSet"], tuple[str, Manifest]]:
        # The receiving process maps the files itself.
        return FeatureSet, (self.uri, self.manifest)

    @cached_property
    def table(self) -> pa.Table:
        """All columns except the embedding, mapped from the node's cache, and `key_hash`.

        `key_hash` is uint32: the first four bytes of the SHA-256 of each key, big-endian.
        """
        path = self._made("columns.arrow", self._write_columns)
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    @cached_property
    def columns(self) -> Mapping[str, np.ndarray]:
        """All columns except the embedding, as (N,) arrays."""
        return _Columns(self.table)

    @property
    def keys(self) -> np.ndarray:
        """(N,) str."""
        return self.columns["key"]

    @property
    def labels(self) -> np.ndarray:
        """(N,) float64 class indices of a vision set; NaN without a label, which older sets store as -1."""
        labels = self.columns["label"].astype(np.float64)
        return np.where(labels == -1, np.nan, labels)

    @cached_property
    def embeddings(self) -> "torch.Tensor":
        """(N, D) tensor of the stored type, mapped from the node's cache."""
        import torch

        dtype = getattr(torch, self.manifest.dtype)
        shape = (self.manifest.rows, self.manifest.dim)
        if not self.manifest.rows:
            return torch.empty(shape, dtype=dtype)
        path = self._made(_EMBEDDINGS, self._write_embeddings, size=self.nbytes)
        return torch.from_file(str(path), shared=False, size=shape[0] * shape[1], dtype=dtype).view(shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all embeddings."""
        return self.manifest.rows * self._row_bytes

    @property
    def unmade_nbytes(self) -> int:
        """Bytes that the first use of `embeddings` will take on this node's disk; 0 if they are cached."""
        return unmade(self._cache / _EMBEDDINGS, self.nbytes)

    @cached_property
    def part_starts(self) -> np.ndarray:
        """(P + 1,) first row of each of the P parts, then the number of rows."""
        return _starts(np.array([part.rows for part in self.manifest.parts], np.int64))

    def part_of(self, rows: np.ndarray) -> np.ndarray:
        """(n,) position of each row's part among the manifest's parts."""
        return np.searchsorted(self.part_starts, rows, side="right") - 1

    @cached_property
    def key_starts(self) -> np.ndarray:
        """(K + 1,) first row of each of the K keys, then the number of rows. The texts of a key are adjacent."""
        ends = pc.run_end_encode(self.table["key"].combine_chunks(), run_end_type=pa.int64()).run_ends
        return np.concatenate([[0], ends.to_numpy()]).astype(np.int64)

    @cached_property
    def rejects(self) -> pa.Table:
        """Every input that could not be encoded: key, source, stage, error, message."""
        tables = [self.rejects_of(part) for part in self.manifest.parts if part.rejects]
        rejects = pa.concat_tables(tables) if tables else REJECTS.empty_table()
        for part in self.manifest.parts:
            if part.recovered:
                keys = self.read(part, ["key"])["key"].combine_chunks()
                repeats = pc.equal(rejects["error"], DUPLICATE_KEY)
                rejects = rejects.filter(pc.or_(repeats, pc.invert(pc.is_in(rejects["key"], value_set=keys))))
        return rejects

    @property
    def rejected_keys(self) -> set[str]:
        """Keys of the rejects, without inputs that only repeat the key of a row."""
        return set(self.rejects.filter(pc.not_equal(self.rejects["error"], DUPLICATE_KEY))["key"].to_pylist())

    @property
    def first_reject(self) -> str:
        """Key and message of the first reject; there must be one."""
        first = self.rejects.slice(0, 1).to_pylist()[0]
        return f"{first['key']}: {first['message']}"

    def rejects_of(self, part: Part) -> pa.Table:
        """The rejects on record for a part that has some."""
        name = f"rejects/{part.name}"
        with _faults_named(storage.join(self.uri, name)):
            return pq.read_table(pa.BufferReader(self.file_bytes(part, name)))

    def file_bytes(self, part: Part, name: str) -> bytes:
        """One of the `files` of a part.

        Raises:
            RunError: it is missing, or not what the manifest says.
        """
        path = storage.join(self.uri, name)
        with _faults_named(path):
            data = storage.read_bytes(path)
        if storage.sha256(data) != (part.sha256 if name == part.name else part.rejects_sha256):
            raise _not_as_made(path, "SHA-256 differs")
        return data

    def part(self, place: int) -> pa.Table:
        """All columns of the part at this position among the manifest's parts."""
        return self.read(self.manifest.parts[place])

    def read(self, part: Part, columns: list[str] | None = None) -> pa.Table:
        """Columns of the rows of a part; None reads all."""
        with _faults_named(self._path(part)), storage.open_read(self._path(part)) as stream:
            return pq.read_table(stream, columns=columns, page_checksum_verification=True)

    def part_embeddings(self, part: int, rows: np.ndarray) -> np.ndarray:
        """Reads (n, D) embeddings of the stored type from storage.

        Args:
            part: position among the manifest's parts.
            rows: (n,) ascending row numbers within the part.

        Raises:
            RunError: the part differs from its manifest.
        """
        found = np.empty((len(rows), self.manifest.dim), self.manifest.dtype)
        start = 0
        for flat in self._decoded(self.manifest.parts[part]):
            decoded = flat.reshape(-1, self.manifest.dim)
            first, last = np.searchsorted(rows, [start, start + len(decoded)])
            np.take(decoded, rows[first:last] - start, axis=0, out=found[first:last])
            start += len(decoded)
        return found

    @property
    def _schema(self) -> pa.Schema:
        path = self._path(self.manifest.parts[0])
        with _faults_named(path), storage.open_read(path) as stream:
            return pq.read_schema(stream)

    @property
    def _embedding_type(self) -> pa.DataType:
        manifest = self.manifest
        return rows_schema(manifest.modality, manifest.dim, manifest.dtype).field("embedding").type

    @property
    def _row_bytes(self) -> int:
        return self.manifest.dim * np.dtype(self.manifest.dtype).itemsize

    @cached_property
    def _cache(self) -> Path:
        self._require_totals()
        return folder_of(self.manifest)

    @cached_property
    def _use(self) -> IO[str]:
        """Open while this object lives, so that the node's cache keeps the set."""
        stream = in_use(self._cache)
        weakref.finalize(self, stream.close)
        return stream

    def _made(self, name: str, make: Callable[[Path], None], size: int | None = None) -> Path:
        """A file of the set in the node's cache, created if missing."""
        _ = self._use
        return made_once(self._cache / name, make, size)

    def _require_totals(self) -> None:
        of_parts = totals(self.manifest.parts)
        for name in ("rows", "keys", "keys_sha256"):
            told = getattr(self.manifest, name)
            if told != of_parts[name]:
                raise RunError(
                    f"{storage.join(self.uri, MANIFEST)} is damaged ({name} is {told}, "
                    f"and {of_parts[name]} of its parts): {_REMEDY}"
                )

    def _path(self, part: Part) -> str:
        return storage.join(self.uri, part.name)

    def _write_columns(self, target: Path) -> None:
        """Writes `table` as an Arrow file."""
        names = [name for name in self._schema.names if name != "embedding"]

        def read(part: Part) -> pa.Table:
            table = self.read(part, names)
            keys = table["key"].to_pylist()
            if keys_digest(list(dict.fromkeys(keys))) != part.keys_sha256:
                raise _not_as_made(self._path(part), "its keys differ")
            self._require_rows(part, len(keys))
            hashes = b"".join(hashlib.sha256(key.encode()).digest()[:4] for key in keys)
            return table.append_column(_KEY_HASH, pa.array(np.frombuffer(hashes, ">u4").astype(np.uint32)))

        table = pa.concat_tables(_in_parallel(read, self.manifest.parts)).combine_chunks()
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    def _write_embeddings(self, target: Path) -> None:
        """Decodes the parts in parallel, each at its own offset of the file."""
        starts = self.part_starts[:-1] * self._row_bytes
        with target.open("wb") as sink, Progress("features", "rows", self.manifest.rows) as progress:
            # Fails at once if the disk is too small.
            os.posix_fallocate(sink.fileno(), 0, self.nbytes)

            def decode(place: tuple[Part, int]) -> int:
                part, offset = place
                for rows in self._decoded(part):
                    _write_at(sink.fileno(), rows, offset)
                    offset += rows.nbytes
                return part.rows

            for rows in _in_parallel(decode, list(zip(self.manifest.parts, starts.tolist(), strict=True))):
                progress.update(rows)

    def _decoded(self, part: Part) -> Iterator[np.ndarray]:
        """Verifies a part's file, then yields its flat embeddings, a few rows at a time."""
        with _faults_named(self._path(part)), storage.local_copy(self._path(part)) as path:
            if storage.sha256_of(str(path)) != part.sha256:
                raise _not_as_made(self._path(part), "SHA-256 differs")
            with pq.ParquetFile(path, memory_map=True) as file:
                # With another width, the flat values would be cut into wrong rows.
                if file.schema_arrow.field("embedding").type != self._embedding_type:
                    raise _not_as_made(self._path(part), "its embeddings have another width or type")
                self._require_rows(part, file.metadata.num_rows)
                rows = max(1, _DECODED_BYTES // self._row_bytes)
                for batch in file.iter_batches(rows, columns=["embedding"], use_threads=False):
                    yield batch["embedding"].flatten().to_numpy(zero_copy_only=True)

    def _require_rows(self, part: Part, found: int) -> None:
        # Otherwise all later rows would be shifted.
        if found != part.rows:
            raise _not_as_made(self._path(part), f"it has {found} rows, not {part.rows}")


@contextmanager
def _faults_named(path: str) -> Iterator[None]:
    """Raises errors of reading a file of a set as a RunError that names the file."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise RunError(f"{path} {reason}: {_REMEDY}") from None


def _not_as_made(path: str, how: str) -> RunError:
    return RunError(f"{path} is not what its manifest says ({how}): {_REMEDY}")


class _Columns(Mapping[str, np.ndarray]):
    """Columns of a table as arrays, each converted on first use: millions of texts take seconds and gigabytes."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._made: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._made:
            self._made[name] = self._table[name].to_numpy()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return self._table.num_columns


def _in_parallel(work: Callable[[Any], _T], items: Sequence[Any]) -> Iterator[_T]:
    """Maps `work` over items in order, on all cores of this process; the first exception ends it."""
    with ThreadPoolExecutor(cpu_count()) as pool:
        try:
            yield from pool.map(work, items)
        finally:
            pool.shutdown(cancel_futures=True)


def _write_at(descriptor: int, rows: np.ndarray, offset: int) -> None:
    """Writes all of `rows` at `offset`; other threads may write to other offsets."""
    data = rows.data.cast("B")
    while len(data):
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


@dataclass(frozen=True)
class Pairs:
    """Images and their texts, aligned by key or by label, in the order of the vision set.

    `vision_rows[i]` is a row of `vision`; its captions are the rows
    `caption_rows[caption_start[i]:caption_start[i + 1]]` of `language`.
    """

    vision: FeatureSet
    language: FeatureSet
    vision_rows: np.ndarray
    caption_start: np.ndarray
    caption_rows: np.ndarray

    def __len__(self) -> int:
        return len(self.vision_rows)

    @cached_property
    def keys(self) -> np.ndarray:
        """(N,) str."""
        return self.vision.keys[self.vision_rows]

    @property
    def lost(self) -> dict[str, int]:
        """Number of keys that only one side has: {"vision": …, "language": …}."""
        return {
            "vision": self.vision.manifest.keys - len(self),
            # Each key has another first caption. Images of one class may share theirs.
            "language": self.language.manifest.keys - len(np.unique(self.caption_rows[self.caption_start[:-1]])),
        }

    def select(self, mask: np.ndarray) -> "Pairs":
        """The pairs where `mask`, (N,) bool, is true."""
        counts = np.diff(self.caption_start)
        return Pairs(
            self.vision,
            self.language,
            vision_rows=self.vision_rows[mask],
            caption_start=_starts(counts[mask]),
            caption_rows=self.caption_rows[np.repeat(mask, counts)],
        )

    def without_captions(self, mask: np.ndarray) -> "Pairs":
        """The pairs without some captions, and without images that have no other.

        Args:
            mask: (M,) bool over `caption_rows`, true for captions to leave out.
        """
        counts = np.diff(_starts(~mask)[self.caption_start])
        left = Pairs(self.vision, self.language, self.vision_rows, _starts(counts), self.caption_rows[~mask])
        return left.select(counts > 0)


def join(vision: FeatureSet, language: FeatureSet) -> Pairs:
    """Aligns a vision and a language set of one dataset and split by key; the result is cached on the node.

    Raises:
        RequestError: the sets are not a vision and a language set of the same dataset and split.
    """
    for feature_set, modality in ((vision, "vision"), (language, "language")):
        if feature_set.manifest.modality != modality:
            raise RequestError(f"{feature_set.uri} is a {feature_set.manifest.modality} set, not a {modality} set")
        feature_set._require_totals()
    ours, theirs = ((s.manifest.dataset, s.manifest.split) for s in (vision, language))
    if ours != theirs:
        raise RequestError(f"{vision.uri} is of {'/'.join(ours)}, but {language.uri} of {'/'.join(theirs)}")

    def write(target: Path) -> None:
        images, starts, captions = _aligned(vision.table["key"], language.table["key"])
        with target.open("wb") as stream:
            np.savez(stream, vision_rows=images, caption_start=starts, caption_rows=captions)

    path = vision._made(f"pairs-{content_key(language.manifest)}.npz", write)
    with np.load(path, allow_pickle=False) as rows:
        return Pairs(vision, language, **rows)


def join_by_label(vision: FeatureSet, texts: FeatureSet) -> Pairs:
    """Aligns the labelled images of a vision set with the texts of their classes.

    Args:
        texts: a language set with one key per class, in the order of labels.

    Raises:
        RequestError: no image has a label, or a label has no texts.
    """
    labels = vision.labels
    rows = np.flatnonzero(~np.isnan(labels))
    if not len(rows):
        raise RequestError(f"{vision.uri} has no labels, which texts of classes belong to: give labels or captions")
    own, starts = labels[rows].astype(np.int64), texts.key_starts
    if own.min() < 0 or own.max() >= len(starts) - 1:
        raise RequestError(
            f"labels of {vision.uri} go from {own.min()} to {own.max()}, but {texts.uri} has the texts of "
            f"{len(starts) - 1:,} classes: check `data.classes` (line n names label n, from 0)"
        )
    counts = np.diff(starts)[own]
    caption_start = _starts(counts)
    captions = np.arange(caption_start[-1]) + np.repeat(starts[own] - caption_start[:-1], counts)
    return Pairs(vision, texts, rows, caption_start, captions)


def _aligned(vision_keys: pa.ChunkedArray, language_keys: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`vision_rows`, `caption_start` and `caption_rows` of `Pairs`."""
    image_of = pc.index_in(language_keys, value_set=vision_keys).fill_null(-1).to_numpy().astype(np.int64)
    captions = np.flatnonzero(image_of >= 0)
    image_of = image_of[captions]
    counts = np.bincount(image_of, minlength=len(vision_keys))
    in_order = captions[np.argsort(image_of, kind="stable")]
    return np.flatnonzero(counts), _starts(counts[counts > 0]), in_order


def _starts(counts: np.ndarray) -> np.ndarray:
    """Start of each of consecutive runs of these lengths, then the end of the last one."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
