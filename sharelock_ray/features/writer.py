"""Writes one feature set exactly once; killed writers and racing drivers cannot damage it.

Chunks of a part arrive in any order, perhaps twice. Each is staged as one small file with a name derived from the
input. Once all chunks of a part are staged, the part is sealed: a Parquet file with the rows sorted by key, a file of
rejects, then a record of both. The manifest combines the records and is written last.

Files are created atomically and never overwritten. If several drivers share a folder, the first to publish a chunk
decides its content; parts, records and manifest follow from the chunks. Every step is therefore idempotent and needs no
lock. If another driver is ahead, missing chunks are in a sealed part, and missing records are in the manifest.

    staging/begun.json                             inputs and settings of the set
    staging/00003/00000.arrow … 00007-last.arrow   staged chunks of part 3
    staging/00003.json                             the record of part 3, once sealed
"""

import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.documents import Document, parse_document, read_document
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.manifest import (
    MANIFEST,
    Input,
    Manifest,
    Origin,
    Part,
    Prediction,
    is_complete,
    keys_digest,
    read_manifest,
    total_joules,
    totals,
)
from sharelock_ray.features.schema import REJECTS, embedding_column, part_name, rows_schema, sort_columns
from sharelock_ray.sources.sample import Reject, Shard

_ROWS_PER_GROUP = 4096
_LAST = "-last"
_ANEW = "run extract again, which makes it anew"
# Other names belong to desktops, or to NFS, which keeps files that are removed while open.
_STAGED_PART = re.compile(r"(?P<part>[0-9]+)(?P<record>\.json)?")
_CHUNK = re.compile(rf"(?P<index>[0-9]+)(?P<last>{_LAST})?\.arrow")
_PART = re.compile(r"part-[0-9]+(-[0-9a-f]{16})?\.parquet")


@dataclass
class EncodedChunk:
    """One encoder's output over one chunk of a shard.

    `embeddings` is (N, D) float32; `columns` holds the other columns of the rows, without the embedding.
    """

    columns: dict[str, list[object]]
    embeddings: np.ndarray
    rejects: list[Reject] = field(default_factory=list)
    seconds: float = 0.0
    joules: float | None = None
    """Energy of the GPU during these seconds; None without a counter."""
    tokens: int = 0
    truncated: int = 0
    batch_reductions: int = 0
    """How often the device ran out of memory, which reduced the batch size."""
    device: str = "cpu"
    revision: str | None = None
    """Commit of a model from the hub."""
    weights_format: str | None = None
    """Architecture and quantisation of a model in a GGUF file."""


class Listed(Config):
    """A shard as listed when the set was started."""

    name: str
    bytes: int


class Begun(Document):
    """`staging/begun.json`: inputs and settings of a set, fixed by the run that started it."""

    listing: tuple[Listed, ...]
    chunk_size: int
    """Samples per chunk."""
    commit: str | None = None
    """Commit of an encoder from the hub."""


class PartRecord(Part, Document):
    """`staging/<part>.json`: the record of a sealed part."""

    schema_version = 3


class ChunkRecord(Document):
    """Schema metadata of a staged chunk."""

    schema_version = 3

    rejects: tuple[dict[str, str], ...]
    """Rows of the rejects file."""
    seconds: float
    joules: float | None = None
    tokens: int
    device: str
    revision: str | None
    weights_format: str | None = None
    truncated: int
    batch_reductions: int


_Chunk = tuple[pa.Table, ChunkRecord]


@dataclass(frozen=True)
class FeatureSetWriter:
    """Writes the feature set at `uri`. Stateless: any process may hold a copy."""

    uri: str
    modality: str
    stored_dtype: str

    def start(self, shards: Sequence[Shard], chunk_size: int, commit: str | None = None) -> "Begun":
        """Fixes the inputs and settings of the set, unless an earlier run has.

        Args:
            commit: commit of an encoder from the hub.

        Returns:
            the inputs and settings of the run that started the set.

        Raises:
            RequestError: the set was started from another listing.
            RunError: `begun.json` is damaged.
        """
        listing = tuple(Listed(name=shard.name, bytes=shard.bytes) for shard in shards)
        asked = Begun(listing=listing, chunk_size=chunk_size, commit=commit)
        path = storage.join(self.uri, "staging", "begun.json")
        storage.create_json(path, asked.content())
        try:
            # If it is damaged, the whole folder must be deleted: with another chunk size, new chunks could overlap the
            # staged ones.
            known = read_document(Begun, path, "delete its folder and run extract again")
        except FileNotFoundError:  # Another driver has finished the set.
            return asked
        if known.listing != listing:
            raise RequestError(
                f"{self.uri} was begun from other inputs than are listed now: "
                f"restore them, or delete that folder to begin again"
            )
        return known

    def staged(self) -> dict[int, "StagedPart"]:
        """Parts that are staged or sealed, by index."""
        found: dict[int, StagedPart] = {}
        for name in storage.names(storage.join(self.uri, "staging")):
            match = _STAGED_PART.fullmatch(name)
            if match is None:
                continue
            part = int(match["part"])
            if match["record"]:
                found[part] = StagedPart(sealed=True)
            elif part not in found:
                found[part] = self._staged_part(part)
        return found

    def staged_part(self, part: int) -> "StagedPart":
        """The current state of a part, including other drivers' work."""
        return StagedPart(sealed=True) if self._is_sealed(part) else self._staged_part(part)

    def _is_sealed(self, part: int) -> bool:
        return storage.exists(self._record(part)) or is_complete(self.uri)

    def _staged_part(self, part: int) -> "StagedPart":
        return _staged(storage.names(self._folder(part)))

    def stage(self, part: int, index: int, last: bool, source: str, chunk: EncodedChunk) -> None:
        """Stages one chunk, unless it is staged.

        A sample with an embedding that is not finite in the stored type becomes one reject, with all its captions.
        """
        dim = chunk.embeddings.shape[1]
        with np.errstate(over="ignore"):
            stored = chunk.embeddings.astype(self.stored_dtype)
        finite = np.isfinite(stored).all(axis=1)
        lost = _non_finite_rejects(chunk, finite, stored, self.stored_dtype)
        kept = pa.array([key not in lost for key in chunk.columns["key"]], pa.bool_())
        schema = rows_schema(self.modality, dim, self.stored_dtype)
        columns = [
            embedding_column(stored, dim)
            if name == "embedding"
            else pa.array(chunk.columns[name], schema.field(name).type)
            for name in schema.names
        ]
        rows = pa.Table.from_arrays(columns, schema=schema).filter(kept)
        about = ChunkRecord(
            rejects=tuple({"source": source, **vars(reject)} for reject in (*chunk.rejects, *lost.values())),
            seconds=chunk.seconds,
            joules=chunk.joules,
            tokens=chunk.tokens,
            device=chunk.device,
            revision=chunk.revision,
            weights_format=chunk.weights_format,
            truncated=chunk.truncated,
            batch_reductions=chunk.batch_reductions,
        )
        buffer = io.BytesIO()
        rows = rows.replace_schema_metadata({"chunk": json.dumps(about.content())})
        with pa.ipc.new_file(buffer, rows.schema) as writer:
            writer.write_table(rows)
        name = f"{index:05d}{_LAST if last else ''}.arrow"
        storage.create_bytes(storage.join(self._folder(part), name), buffer.getvalue())

    def seal(self, part: int) -> None:
        """Writes the part's files and its record from its staged chunks; a sealed part is left unchanged.

        Raises:
            RunError: chunks are missing or damaged, and the part is not sealed; the next run encodes them again.
        """
        if not self._is_sealed(part):
            chunks = self._chunks(part)
            # Another driver may remove the chunks, but only after it has sealed the part.
            if chunks is not None:
                storage.create_json(self._record(part), self._publish(part, chunks).content())
            elif not self._is_sealed(part):
                raise RunError(f"chunks are missing in {self._folder(part)}: run extract again")
        self.discard(part)

    def discard(self, part: int) -> None:
        """Removes the staged chunks of a part."""
        storage.remove(self._folder(part))

    def _chunks(self, part: int) -> list[_Chunk] | None:
        """The part's staged chunks; None if some are missing."""
        folder = self._folder(part)
        names = storage.names(folder)
        if not _staged(names).is_whole:
            return None
        try:
            return [_read_chunk(storage.join(folder, name)) for name in names if _CHUNK.fullmatch(name)]
        except FileNotFoundError:
            return None

    def _publish(self, part: int, chunks: Sequence[_Chunk]) -> PartRecord:
        """Publishes the part's file and its rejects file; returns their record."""
        about = [record for _, record in chunks]
        rows = pa.concat_tables(rows.replace_schema_metadata(None) for rows, _ in chunks)
        rows = rows.sort_by(sort_columns(self.modality))
        rejects = pa.Table.from_pylist(
            sorted((reject for each in about for reject in each.rejects), key=lambda r: (r["key"], r["message"])),
            schema=REJECTS,
        )
        rejects_data = self._publish_table(f"rejects/{part_name(part)}", rejects) if len(rejects) else None
        data = self._publish_table(part_name(part), rows)
        return PartRecord(
            index=part,
            rejects=rejects.num_rows,
            rejects_sha256=storage.sha256(rejects_data) if rejects_data else None,
            **content(rows, data),
            encoder_seconds=sum(each.seconds for each in about),
            joules=total_joules(each.joules for each in about),
            tokens=sum(each.tokens for each in about),
            truncated=sum(each.truncated for each in about),
            batch_reductions=sum(each.batch_reductions for each in about),
            devices=tuple(sorted({each.device for each in about})),
            revisions=tuple(sorted({each.revision for each in about if each.revision})),
            weights_formats=tuple(sorted({each.weights_format for each in about if each.weights_format})),
        )

    def _publish_table(self, name: str, table: pa.Table) -> bytes:
        """Publishes `table` as a Parquet file, unless the file exists.

        Returns:
            the bytes of the file. Another driver's file has the same rows, but perhaps other bytes if its version of
            pyarrow differs. A leftover with other rows, which no manifest names, is replaced.
        """
        path, data = storage.join(self.uri, name), parquet(table)
        if storage.create_bytes(path, data):
            return data
        there = storage.read_bytes(path)
        if there == data or _read_parquet(there) == table or is_complete(self.uri):
            return there
        storage.write_bytes(path, data)
        return data

    def finish(
        self,
        shards: Sequence[Shard],
        origin: Origin,
        *,
        gpus: float,
        wall_seconds: float,
        planned: Prediction | None = None,
    ) -> Manifest:
        """Writes the manifest from the records of all parts, unless it exists, then removes the staging area.

        Args:
            gpus: GPUs per actor.
            wall_seconds: wall seconds of all runs on the set.

        Raises:
            RunError: a part is not sealed, its record is damaged, or its files are missing; the next run repairs it.
        """
        try:
            parts = [self._recorded(shard.index) for shard in shards]
        except FileNotFoundError:
            # Another driver has finished the set and removed the records.
            if not is_complete(self.uri):
                raise RunError(f"{self.uri} lacks parts: run extract again") from None
        else:
            self._require_files(parts)
            with storage.open_read(storage.join(self.uri, parts[0].name)) as stream:
                dim = int(pq.read_schema(stream).field("embedding").type.list_size)
            manifest = Manifest(
                **dict(origin),
                **totals(parts),
                modality=self.modality,
                dim=dim,
                dtype=self.stored_dtype,
                inputs=tuple(
                    Input(name=shard.name, uri=shard.uri, bytes=shard.bytes, version=shard.version) for shard in shards
                ),
                wall_seconds=round(wall_seconds, 2),
                gpu_hours=round(sum(part.encoder_seconds for part in parts) * gpus / 3600, 6),
                planned=planned,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            storage.create_json(storage.join(self.uri, MANIFEST), manifest.content())
        remove_leftovers(self.uri)
        return read_manifest(self.uri)

    def _recorded(self, part: int) -> Part:
        """The record of a part; a damaged one is removed."""
        path = self._record(part)
        try:
            return read_document(PartRecord, path, _ANEW)
        except RunError:
            storage.remove(path)
            raise

    def _require_files(self, parts: Sequence[Part]) -> None:
        """Raises RunError if a part's file is missing; removes other part files.

        A power failure may have lost a part but not its record. An earlier set in the same folder may have had more
        parts or more rejects.
        """
        rows = storage.entries(self.uri)
        rejects = storage.names(storage.join(self.uri, "rejects"))
        for part in parts:
            name = part.name
            if rows.get(name) != part.bytes or (part.rejects and name not in rejects):
                if is_complete(self.uri):
                    return
                storage.remove(self._record(part.index))
                raise RunError(f"{name} of {self.uri} is gone: run extract again, which makes it anew")
        for name in part_files(self.uri) - {name for part in parts for name in part.files}:
            # Once the set is complete, a retry may have replaced parts.
            if not is_complete(self.uri):
                storage.remove(storage.join(self.uri, name))

    def _folder(self, part: int) -> str:
        return storage.join(self.uri, "staging", f"{part:05d}")

    def _record(self, part: int) -> str:
        return storage.join(self.uri, "staging", f"{part:05d}.json")


def part_files(uri: str) -> set[str]:
    """Paths within a set of all files of parts and of their rejects, whether or not its manifest names them."""
    folders = {"": uri, "rejects/": storage.join(uri, "rejects")}
    return {f"{prefix}{name}" for prefix, at in folders.items() for name in storage.names(at) if _PART.fullmatch(name)}


def remove_leftovers(uri: str) -> None:
    """Removes what killed runs left of a set that is now complete: staging and unfinished files."""
    storage.remove(storage.join(uri, "staging"))
    for folder in (uri, storage.join(uri, "rejects")):
        storage.remove_unfinished(folder)


@dataclass(frozen=True)
class StagedPart:
    """State of a part."""

    chunks: frozenset[int] = frozenset()
    last: int | None = None
    sealed: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether all chunks are staged, so that the part can be sealed."""
        return self.sealed or (self.last is not None and len(self.chunks) == self.last + 1)

    def with_chunk(self, index: int, last: bool) -> "StagedPart":
        """This state with one more staged chunk."""
        return StagedPart(self.chunks | {index}, index if last else self.last, self.sealed)

    def has_chunk(self, index: int) -> bool:
        """Whether the chunk is staged, or in the sealed part."""
        return self.sealed or index in self.chunks


def _staged(names: Iterable[str]) -> StagedPart:
    """The state of a part, from the names of its staged chunks."""
    found = StagedPart()
    for match in filter(None, map(_CHUNK.fullmatch, names)):
        found = found.with_chunk(int(match["index"]), match["last"] is not None)
    return found


def content(rows: pa.Table, data: bytes) -> dict[str, Any]:
    """The fields of a `Part` that are derived from its rows and its file."""
    return {"sha256": storage.sha256(data), "bytes": len(data), **content_of_rows(rows)}


def content_of_rows(rows: pa.Table) -> dict[str, Any]:
    """The fields that are derived from the rows."""
    values = pc.min_max(rows["embedding"].combine_chunks().flatten().cast(pa.float32())).as_py()
    keys = pc.unique(rows["key"]).to_pylist()
    return {
        "rows": rows.num_rows,
        "keys": len(keys),
        "keys_sha256": keys_digest(keys),
        "min": values["min"],
        "max": values["max"],
    }


def _read_chunk(uri: str) -> _Chunk:
    """A staged chunk; a damaged one is removed."""
    data = storage.read_bytes(uri)
    try:
        try:
            rows = pa.ipc.open_file(pa.BufferReader(data)).read_all()
            rows.validate(full=True)
            about = rows.schema.metadata[b"chunk"]
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{uri} is damaged ({' '.join(str(error).split())[:160]}): {_ANEW}") from None
        return rows, parse_document(ChunkRecord, about, uri, _ANEW)
    except RunError:
        storage.remove(uri)
        raise


def _read_parquet(data: bytes) -> pa.Table | None:
    """The table in `data`; None if it is not Parquet."""
    try:
        return pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError):
        return None


def parquet(table: pa.Table) -> bytes:
    """Parquet bytes, built in memory: writing to the store directly could publish a truncated file."""
    buffer = io.BytesIO()
    # Dictionaries and statistics of embeddings are useless and make writing ten times slower.
    names = [name for name in table.schema.names if name != "embedding"]
    compression = dict.fromkeys(names, "zstd") | (
        {"embedding.list.element": "none"} if "embedding" in table.schema.names else {}
    )
    pq.write_table(
        table,
        buffer,
        row_group_size=_ROWS_PER_GROUP,
        compression=compression,
        use_dictionary=False,
        write_statistics=[name for name in names if name != "text"],
        # Readers of single columns cannot verify the SHA-256 of the file.
        write_page_checksum=True,
    )
    return buffer.getvalue()


def _non_finite_rejects(chunk: EncodedChunk, finite: np.ndarray, stored: np.ndarray, dtype: str) -> dict[str, Reject]:
    """Rejects of samples with non-finite embeddings, by key; each names the first such caption."""
    rejects: dict[str, Reject] = {}
    for row in np.flatnonzero(~finite):
        dimension = int(np.flatnonzero(~np.isfinite(stored[row]))[0])
        value = chunk.embeddings[row, dimension]
        key = str(chunk.columns["key"][row])
        where = f"caption {chunk.columns['caption_id'][row]}, " if "caption_id" in chunk.columns else ""
        message = f"{where}dimension {dimension} is {value:g}, which {dtype} cannot hold"
        rejects.setdefault(key, Reject(key, "encode", "NonFiniteEmbedding", message))
    return rejects
