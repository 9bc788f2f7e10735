"""Writes one feature set exactly once, whatever is killed in between.

Work arrives in chunks of a part, in any order and perhaps twice. A chunk is staged as one small file with a name that
follows from the input alone; when all chunks of a part are there, the part is sealed: rows sorted by key, one Parquet
file, one for its rejects, then a record that says both are whole. The manifest, written last, gathers the records.
Every file is published whole or not at all, every name and content follows from the input, so repeating any step after
a kill changes nothing.

    staging/begun.json                             what the set was begun from
    staging/00003/00000.arrow … 00007-last.arrow   staged chunks of part 3
    staging/00003.json                             the record of part 3, once sealed
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.errors import RequestError
from sharelock_ray.features.manifest import MANIFEST, Input, Manifest, Part
from sharelock_ray.features.schema import REJECTS, embedding_column, part_name, rows_schema, sort_columns
from sharelock_ray.sources.sample import Reject, Shard

_ROWS_PER_GROUP = 4096
_LAST = "-last"


@dataclass
class EncodedChunk:
    """One encoder's output over one chunk of a shard.

    `embeddings` is (N, D) float32; `columns` holds the other columns of the rows, without the embedding.
    """

    columns: dict[str, list[object]]
    embeddings: np.ndarray
    rejects: list[Reject] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0
    truncated: int = 0
    device: str = "cpu"
    revision: str | None = None
    """Commit of a model that came from the hub."""


@dataclass(frozen=True)
class FeatureSetWriter:
    """Writes the feature set at `uri`. Stateless, so that any process may hold a copy."""

    uri: str
    modality: str
    stored_dtype: str

    def start(self, shards: Sequence[Shard], chunk_size: int) -> int:
        """Fixes the listing of inputs that parts are cut from, and the size of the chunks that a part is cut into.

        Returns:
            the chunk size that holds for this set: that of the run which began it.

        Raises:
            RequestError: the set was begun from another listing.
        """
        listing = [{"name": shard.name, "bytes": shard.bytes} for shard in shards]
        path = storage.join(self.uri, "staging", "begun.json")
        if storage.exists(path):
            begun = storage.read_json(path)
            if begun["listing"] != listing:
                raise RequestError(
                    f"{self.uri} was begun from other inputs than are listed now: "
                    f"restore them, or delete that folder to begin again"
                )
            return int(begun["chunk_size"])
        storage.write_json(path, {"listing": listing, "chunk_size": chunk_size})
        return chunk_size

    def staged(self) -> dict[int, "StagedPart"]:
        """What earlier runs left, by part."""
        found: dict[int, StagedPart] = {}
        for name in storage.names(storage.join(self.uri, "staging")):
            stem = name.removesuffix(".json")
            if not stem.isdigit():
                continue
            if name.endswith(".json"):
                found[int(stem)] = StagedPart(sealed=True)
            elif int(stem) not in found:
                found[int(stem)] = self._staged_part(int(stem))
        return found

    def staged_chunks(self, part: int) -> frozenset[int]:
        """The chunks of a part that are staged now."""
        return self._staged_part(part).chunks

    def _staged_part(self, part: int) -> "StagedPart":
        found = StagedPart()
        for name in storage.names(self._folder(part)):
            stem = name.removesuffix(".arrow")
            found = found.with_chunk(int(stem.removesuffix(_LAST)), stem.endswith(_LAST))
        return found

    def stage(self, part: int, index: int, last: bool, source: str, chunk: EncodedChunk) -> None:
        """Stages one chunk. Rows whose embedding cannot be stored finitely become rejects."""
        dim = chunk.embeddings.shape[1]
        with np.errstate(over="ignore"):
            stored = chunk.embeddings.astype(self.stored_dtype)
        finite = np.isfinite(stored).all(axis=1)
        rejects = [*chunk.rejects, *_non_finite_rejects(chunk, finite, stored, self.stored_dtype)]
        schema = rows_schema(self.modality, dim, self.stored_dtype)
        columns = [
            embedding_column(stored, dim)
            if name == "embedding"
            else pa.array(chunk.columns[name], schema.field(name).type)
            for name in schema.names
        ]
        rows = pa.Table.from_arrays(columns, schema=schema).filter(pa.array(finite))
        about = {
            "rejects": [{"source": source, **vars(reject)} for reject in rejects],
            "seconds": chunk.seconds,
            "tokens": chunk.tokens,
            "device": chunk.device,
            "revision": chunk.revision,
            "truncated": chunk.truncated,
        }
        buffer = io.BytesIO()
        rows = rows.replace_schema_metadata({"chunk": json.dumps(about)})
        with pa.ipc.new_file(buffer, rows.schema) as writer:
            writer.write_table(rows)
        name = f"{index:05d}{_LAST if last else ''}.arrow"
        storage.write_bytes(storage.join(self._folder(part), name), buffer.getvalue())

    def seal(self, part: int) -> None:
        """Makes the part's files from its staged chunks and records them."""
        folder = self._folder(part)
        chunks = [_read_arrow(storage.join(folder, name)) for name in storage.names(folder)]
        about = [json.loads(chunk.schema.metadata[b"chunk"]) for chunk in chunks]
        rows = pa.concat_tables(chunk.replace_schema_metadata(None) for chunk in chunks)
        rows = rows.sort_by(sort_columns(self.modality))
        rejects = pa.Table.from_pylist(
            sorted((reject for each in about for reject in each["rejects"]), key=lambda r: (r["key"], r["message"])),
            schema=REJECTS,
        )
        data = _parquet(rows)
        rejects_data = _parquet(rejects) if rejects.num_rows else None
        if rejects_data:
            storage.write_bytes(storage.join(self.uri, "rejects", part_name(part)), rejects_data)
        storage.write_bytes(storage.join(self.uri, part_name(part)), data)
        values = pc.min_max(rows["embedding"].combine_chunks().flatten().cast(pa.float32())).as_py()
        keys = pc.unique(rows["key"]).to_pylist()
        record = Part(
            index=part,
            sha256=storage.sha256(data),
            rows=rows.num_rows,
            bytes=len(data),
            rejects=rejects.num_rows,
            rejects_sha256=storage.sha256(rejects_data) if rejects_data else None,
            keys=len(keys),
            keys_sha256=keys_digest(keys),
            min=values["min"],
            max=values["max"],
            encoder_seconds=sum(each["seconds"] for each in about),
            tokens=sum(each["tokens"] for each in about),
            truncated=sum(each["truncated"] for each in about),
            devices=tuple(sorted({each["device"] for each in about})),
            revisions=tuple(sorted({each["revision"] for each in about if each["revision"]})),
        )
        storage.write_json(self._record(part), record.model_dump(mode="json"))
        storage.remove(folder)

    def finish(
        self,
        *,
        dataset: str,
        split: str,
        encoder: dict[str, object],
        weights_sha256: str | None,
        dim: int,
        shards: Sequence[Shard],
        software: dict[str, str],
        gpus: float,
        wall_seconds: float,
    ) -> Manifest:
        """Writes the manifest from the records of all parts, then removes the staging area."""
        parts = [Part.model_validate(storage.read_json(self._record(shard.index))) for shard in shards]
        lows = [part.min for part in parts if part.min is not None]
        highs = [part.max for part in parts if part.max is not None]
        seconds = sum(part.encoder_seconds for part in parts)
        manifest = Manifest(
            dataset=dataset,
            split=split,
            modality=self.modality,
            encoder=encoder,
            weights_sha256=weights_sha256,
            dim=dim,
            dtype=self.stored_dtype,
            rows=sum(part.rows for part in parts),
            rejects=sum(part.rejects for part in parts),
            keys=sum(part.keys for part in parts),
            keys_sha256=keys_digest([part.keys_sha256 for part in parts]),
            min=min(lows, default=None),
            max=max(highs, default=None),
            tokens=sum(part.tokens for part in parts),
            truncated=sum(part.truncated for part in parts),
            inputs=tuple(Input(name=shard.name, uri=shard.uri, bytes=shard.bytes) for shard in shards),
            parts=tuple(parts),
            software=software,
            devices=tuple(sorted({device for part in parts for device in part.devices})),
            revisions=tuple(sorted({revision for part in parts for revision in part.revisions})),
            wall_seconds=round(wall_seconds, 2),
            encoder_seconds=round(seconds, 2),
            gpu_hours=round(seconds * gpus / 3600, 6),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        storage.write_json(storage.join(self.uri, MANIFEST), manifest.model_dump(mode="json"))
        storage.remove(storage.join(self.uri, "staging"))
        return manifest

    def dim(self) -> int:
        """Width of the embeddings of the parts sealed so far."""
        with storage.open_read(storage.join(self.uri, part_name(0))) as stream:
            return int(pq.read_schema(stream).field("embedding").type.list_size)

    def _folder(self, part: int) -> str:
        return storage.join(self.uri, "staging", f"{part:05d}")

    def _record(self, part: int) -> str:
        return storage.join(self.uri, "staging", f"{part:05d}.json")


@dataclass(frozen=True)
class StagedPart:
    """How far a part has come."""

    chunks: frozenset[int] = frozenset()
    last: int | None = None
    sealed: bool = False

    @property
    def is_whole(self) -> bool:
        """All chunks are staged, so the part can be sealed."""
        return self.sealed or (self.last is not None and len(self.chunks) == self.last + 1)

    def with_chunk(self, index: int, last: bool) -> "StagedPart":
        """This part, with one more chunk staged."""
        return StagedPart(self.chunks | {index}, index if last else self.last, self.sealed)


def keys_digest(keys: Sequence[str]) -> str:
    return storage.sha256("\n".join(keys).encode())


def _read_arrow(uri: str) -> pa.Table:
    return pa.ipc.open_file(pa.BufferReader(storage.read_bytes(uri))).read_all()


def _parquet(table: pa.Table) -> bytes:
    """Parquet bytes built in memory: a writer that fails half-way on the store itself would publish a short file."""
    buffer = io.BytesIO()
    # Dictionaries and statistics of embeddings cost ten times the writing and tell nothing.
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
    )
    return buffer.getvalue()


def _non_finite_rejects(chunk: EncodedChunk, finite: np.ndarray, stored: np.ndarray, dtype: str) -> list[Reject]:
    rejects = []
    for row in np.flatnonzero(~finite):
        dimension = int(np.flatnonzero(~np.isfinite(stored[row]))[0])
        value = chunk.embeddings[row, dimension]
        key = str(chunk.columns["key"][row])
        message = f"dimension {dimension} is {value:g}, which {dtype} cannot hold"
        rejects.append(Reject(key, "encode", "NonFiniteEmbedding", message))
    return rejects
