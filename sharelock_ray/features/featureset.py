"""Opens feature sets and joins them by key."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.manifest import Manifest, read_manifest
from sharelock_ray.features.schema import REJECTS, part_name

if TYPE_CHECKING:
    import torch

_REMEDY = "restore it, or delete the feature set and run extract again"


def open_features(uri: str) -> "FeatureSet":
    """Opens a complete feature set.

    Raises:
        RequestError: there is none at `uri`, or it is not complete.
    """
    return FeatureSet(uri, read_manifest(uri))


@dataclass(frozen=True)
class FeatureSet:
    """A complete feature set; rows are in the order of its parts, by key within each.

    `keys` is (N,) and `embeddings` (N, D): the first use decodes the Parquet parts once into a file that this and every
    other process of the node maps into memory.
    """

    uri: str
    manifest: Manifest

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Every column but the embedding, as (N,) arrays."""
        names = [name for name in self._schema.names if name != "embedding"]
        table = pa.concat_tables(self._read(part.index, names) for part in self.manifest.parts)
        return {name: table[name].to_numpy() for name in names}

    @property
    def keys(self) -> np.ndarray:
        """(N,) str."""
        return self.columns["key"]

    @cached_property
    def embeddings(self) -> "torch.Tensor":
        """(N, D) tensor of the stored type, mapped from the node's cache."""
        import torch

        dtype = getattr(torch, self.manifest.dtype)
        shape = (self.manifest.rows, self.manifest.dim)
        if not self.manifest.rows:
            return torch.empty(shape, dtype=dtype)
        return torch.from_file(str(self._decoded()), shared=False, size=shape[0] * shape[1], dtype=dtype).view(shape)

    @cached_property
    def rejects(self) -> pa.Table:
        """Every input that could not be encoded, also in a later attempt: key, source, stage, error, message."""
        rejects = self.rejected_at_first
        recovered = [self._read(part.index, ["key"])["key"] for part in self.manifest.parts if part.recovered]
        for keys in recovered:
            rejects = rejects.filter(pc.invert(pc.is_in(rejects["key"], value_set=keys.combine_chunks())))
        return rejects

    @cached_property
    def rejected_at_first(self) -> pa.Table:
        """What the extraction itself rejected."""
        tables = [
            pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(self.uri, "rejects", part_name(part.index)))))
            for part in self.manifest.parts
            if part.rejects
        ]
        return pa.concat_tables(tables) if tables else REJECTS.empty_table()

    @property
    def _schema(self) -> pa.Schema:
        with self._part(self.manifest.parts[0].index) as stream:
            return pq.read_schema(stream)

    def part(self, index: int) -> pa.Table:
        """The rows of one part, all columns."""
        return self._read(index, None)

    def _read(self, part: int, columns: list[str] | None) -> pa.Table:
        with self._part(part) as stream:
            return pq.read_table(stream, columns=columns)

    @contextmanager
    def _part(self, index: int) -> Iterator[Any]:
        """A stream of one part's file; whatever is wrong with the file is said of that part."""
        path = storage.join(self.uri, part_name(index))
        try:
            with storage.open_read(path) as stream:
                yield stream
        except (OSError, pa.ArrowInvalid) as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            raise RunError(f"{path} {reason}: {_REMEDY}") from None

    def _decoded(self) -> Path:
        """The node's file of all embeddings, made and verified against the manifest where it is not there yet."""
        target = cache_folder() / f"{self.manifest.digest}.bin"
        width = self.manifest.rows * self.manifest.dim * np.dtype(self.manifest.dtype).itemsize
        if target.exists() and target.stat().st_size == width:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                for part in self.manifest.parts:
                    with self._part(part.index) as source:
                        data = source.read()
                    if storage.sha256(data) != part.sha256:
                        path = storage.join(self.uri, part_name(part.index))
                        raise RunError(f"{path} is not what its manifest says (SHA-256 differs): {_REMEDY}")
                    column = pq.read_table(pa.BufferReader(data), columns=["embedding"])["embedding"]
                    for piece in column.chunks:
                        stream.write(np.ascontiguousarray(piece.flatten().to_numpy(zero_copy_only=True)).data)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
        return target


def cache_folder() -> Path:
    """Where this node keeps decoded embeddings."""
    return storage.node_cache("features")


@dataclass(frozen=True)
class Pairs:
    """Two feature sets of one dataset, aligned by key, in the order of the vision set.

    `vision_rows[i]` is a row of `vision`; its captions are the rows
    `caption_rows[caption_start[i]:caption_start[i + 1]]` of `language`.
    """

    vision: FeatureSet
    language: FeatureSet
    keys: np.ndarray
    vision_rows: np.ndarray
    caption_start: np.ndarray
    caption_rows: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def lost(self) -> dict[str, int]:
        """Keys that only one side has, by side: {"vision": …, "language": …}."""
        return {
            "vision": self.vision.manifest.keys - len(self),
            "language": self.language.manifest.keys - len(self),
        }

    def select(self, mask: np.ndarray) -> "Pairs":
        """The pairs where `mask`, (N,) bool, is true."""
        chosen = np.flatnonzero(mask)
        rows = [self.caption_rows[self.caption_start[i] : self.caption_start[i + 1]] for i in chosen]
        start = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
        flat = np.concatenate(rows) if rows else np.empty(0, np.int64)
        return Pairs(self.vision, self.language, self.keys[chosen], self.vision_rows[chosen], start, flat)


def join(vision: FeatureSet, language: FeatureSet) -> Pairs:
    """Aligns a vision and a language set of one dataset and split by key.

    Raises:
        RequestError: the sets are not a vision and a language set of the same dataset and split.
    """
    for feature_set, modality in ((vision, "vision"), (language, "language")):
        if feature_set.manifest.modality != modality:
            raise RequestError(f"{feature_set.uri} is a {feature_set.manifest.modality} set, not a {modality} set")
    ours, theirs = ((s.manifest.dataset, s.manifest.split) for s in (vision, language))
    if ours != theirs:
        raise RequestError(f"{vision.uri} is of {'/'.join(ours)}, but {language.uri} of {'/'.join(theirs)}")
    table: dict[str, list[Any]] = {}
    for row, key in enumerate(language.keys):
        table.setdefault(key, []).append(row)
    both = [(row, key) for row, key in enumerate(vision.keys) if key in table]
    captions = [table[key] for _, key in both]
    return Pairs(
        vision,
        language,
        keys=np.array([key for _, key in both], dtype=object),
        vision_rows=np.array([row for row, _ in both], dtype=np.int64),
        caption_start=np.concatenate([[0], np.cumsum([len(rows) for rows in captions])]).astype(np.int64),
        caption_rows=np.array([row for rows in captions for row in rows], dtype=np.int64),
    )
