"""Parquet files with the images in them, as img2dataset and Hugging Face `datasets` write them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.listing import (
    called,
    captions,
    class_label,
    file_shards,
    file_version,
    row_name,
    sample_key,
    unique,
    value,
)
from sharelock_ray.sources.sample import Reject, Sample, Shard

_IMAGE = ("jpg", "image", "jpeg", "png", "webp", "img")
_CAPTION = ("caption", "captions", "text", "txt")
_LABEL = ("label", "cls")
_KEY = ("key", "__key__")
# With these, and without pre-buffering, memory holds a few pages at a time and not a whole row group.
_BATCH_ROWS = 32
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class _Columns:
    image: str | None
    captions: tuple[str, ...]
    """A row's caption is in the first of them that is not empty."""
    label: str | None
    key: str | None

    def names(self) -> list[str]:
        return [name for name in (self.image, *self.captions, self.label, self.key) if name is not None]


class ParquetSource(Config):
    """Parquet files named by one or more patterns; a column that is left out is found by its usual names.

    A column that is named `""` is none.
    """

    format: Literal["parquet"] = "parquet"
    urls: tuple[storage.Uri, ...] | storage.Uri
    image: str | None = None
    """Holds encoded images: bytes, or a struct with a field `bytes`."""
    caption: str | None = None
    """Holds a text, or a list of texts, for each image."""
    label: str | None = None
    """Holds class indices."""
    key: str | None = None
    """Names the rows of a file; without one, they are numbered."""

    def shards(self) -> list[Shard]:
        """The files, sorted, each with a name unique in the listing.

        Raises:
            RequestError: a pattern matches nothing, a file is missing, two files would have the same name, or a
                column of the first file that can be read is missing or of a wrong type.
        """
        shards = file_shards(self.urls, "Parquet file", r"\.parquet")
        for uri, schema in _first_schema(shards):
            self._columns(schema, uri)
        return shards

    def keys_of(self, shard: Shard) -> Iterator[str]:
        """Those of the key column, or the numbers of the rows."""
        return (item.key for item in self._items(shard, keys_only=True))

    def version(self, shard: Shard) -> str:
        """Size and ETag, or time, of the file."""
        return file_version(shard.uri)

    def require_captions(self) -> None:
        """Raises RequestError where the first file has no column of captions, and none is not what was asked for."""
        for uri, schema in _first_schema(self.shards()):
            if self.caption is None and not self._columns(schema, uri).captions:
                raise RequestError(
                    f"{uri} has no captions for the language encoders: name their column as `caption`, "
                    f'or set `caption: ""` for none; {_listed(schema)}'
                )

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The rows of one file; a damaged row group gives what comes before the damage, then one reject for the rest.

        Raises:
            RequestError: a column is missing or of a wrong type.
        """
        yield from unique(self._items(shard))

    def _items(self, shard: Shard, keys_only: bool = False) -> Iterator[Sample | Reject]:
        try:
            with storage.open_read(shard.uri) as stream:
                file = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
                yield from self._samples(shard, file, keys_only)
        except (pa.ArrowException, OSError) as error:
            _raise_unless_damage(error)
            yield Reject.of(sample_key(shard, ""), "read", error)

    def _samples(self, shard: Shard, file: Any, keys_only: bool) -> Iterator[Sample | Reject]:
        columns = self._columns(file.schema_arrow, shard.uri)
        if keys_only:
            columns = _Columns(None, (), None, columns.key)
        row = 0
        for group in range(file.num_row_groups):
            end = row + file.metadata.row_group(group).num_rows
            try:
                # A batch that went over the end of a row group would be lost with the next one.
                for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns.names()):
                    for i in range(batch.num_rows):
                        yield _sample(shard, row, columns, {name: batch.column(name)[i] for name in columns.names()})
                        row += 1
            except (pa.ArrowException, OSError) as error:
                _raise_unless_damage(error)
                key = sample_key(shard, f"@{row}")
                yield Reject(key, "read", type(error).__name__, f"rows {row:,} to {end - 1:,}: {error}")
            row = end

    def _columns(self, schema: Any, uri: str) -> _Columns:
        def find(field: str, usual: tuple[str, ...], fits: Callable[[Any], bool]) -> tuple[str, ...]:
            asked = getattr(self, field)
            names = usual if asked is None else (asked,) if asked else ()
            there = [place for name in names if (place := called(name, schema.names)) is not None]
            # A column that holds nothing in this file may have lost its type there.
            found = [name for name in there if pa.types.is_null(kind := schema.field(name).type) or fits(kind)]
            if there and not found:
                problem = f"the {field} column {there[0]!r} holds {schema.field(there[0]).type}"
                none = "" if field == "image" else f', or set `{field}: ""` for none'
                raise RequestError(f"{uri}: {problem}: name another as `{field}`{none}; {_listed(schema)}")
            if asked and not found:
                raise RequestError(f"{uri}: the {field} column {asked!r} is missing; {_listed(schema)}")
            return tuple(found)

        images = find("image", _IMAGE, _is_image)
        if not images:
            raise RequestError(f"{uri} has no column of images: name it as `image`; {_listed(schema)}")
        labels = find("label", _LABEL, lambda kind: bool(pa.types.is_integer(_decoded(kind))))
        keys = find("key", _KEY, lambda kind: _is_string(kind) or bool(pa.types.is_integer(_decoded(kind))))
        return _Columns(
            images[0], find("caption", _CAPTION, _is_text), next(iter(labels), None), next(iter(keys), None)
        )


def _first_schema(shards: list[Shard]) -> list[tuple[str, Any]]:
    """URI and schema of the first file that can be read, if one can."""
    for shard in shards:
        try:
            with storage.open_read(shard.uri) as stream:
                return [(shard.uri, pq.read_schema(stream))]
        except (pa.ArrowException, OSError) as error:
            _raise_unless_damage(error)
    return []


def _raise_unless_damage(error: Exception) -> None:
    """Raises what storage says, such as that it cannot be reached: trying again helps, unlike with a damaged file."""
    # pyarrow reports damage as its own classes and as a plain OSError without a number.
    if isinstance(error, OSError) and not (type(error) is OSError and error.errno is None):
        raise error


def _sample(shard: Shard, row: int, columns: _Columns, cells: dict[str, Any]) -> Sample | Reject:
    key = sample_key(shard, row_name(row))
    try:
        found = {name: cell.as_py() for name, cell in cells.items()}
        name = found[columns.key] if columns.key else None
        if name not in (None, ""):
            key = sample_key(shard, name)
        image = found[columns.image] if columns.image else None
        label = found[columns.label] if columns.label else None
        return Sample(
            key,
            image["bytes"] if isinstance(image, dict) else image,
            captions(value(found, None, columns.captions)),
            None if label is None else class_label(label),
        )
    except ValueError as error:
        return Reject.of(key, "read", error)


def _decoded(kind: Any) -> Any:
    """The type of the values in a column, which a dictionary may stand for."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_string(kind: Any) -> bool:
    return bool(pa.types.is_string(_decoded(kind)) or pa.types.is_large_string(_decoded(kind)))


def _is_text(kind: Any) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return _is_string(kind.value_type if listed else kind)


def _is_image(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_image(kind.field(place).type)
    inner = _decoded(kind)
    return bool(pa.types.is_binary(inner) or pa.types.is_large_binary(inner) or pa.types.is_null(inner))


def _listed(schema: Any) -> str:
    return f"the columns are {', '.join(schema.names)}"
