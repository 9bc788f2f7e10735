"""Parquet files with embedded images, as written by img2dataset and Hugging Face `datasets`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.content import start_of, with_kind
from sharelock_ray.sources.listing import (
    MAX_CAPTIONS,
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    TooLargeError,
    captions,
    check_captions,
    class_label,
    file_shards,
    file_version,
    matching_column,
    row_name,
    sample_key,
    unique,
)
from sharelock_ray.sources.sample import CAPTIONS, IMAGES, LABELS, Content, Reject, Sample, Shard
from sharelock_ray.sources.tar import MAX_EXPANSION, MIN_EXPANDED_BYTES, DecompressionBombError

_IMAGE = ("jpg", "image", "jpeg", "png", "webp", "img")
_CAPTION = ("caption", "captions", "text", "txt")
_LABEL = ("label", "cls")
_KEY = ("key", "__key__")
_STRINGS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BINARIES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
# With these, and without pre-buffering, memory holds a few pages at a time instead of a whole row group.
_BATCH_ROWS = 32
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class _Columns:
    image: str | None
    captions: tuple[str, ...]
    """In order of preference: the first non-empty one gives a row's captions."""
    label: str | None
    key: str | None

    def names(self) -> list[str]:
        return [name for name in (self.image, *self.captions, self.label, self.key) if name is not None]


class ParquetSource(Config):
    """Parquet files given by one or more patterns.

    A column that is not set is searched by its usual names; `""` disables it.
    """

    format: Literal["parquet"] = "parquet"
    urls: tuple[storage.Uri, ...] | storage.Uri
    image: str | None = None
    """Column of encoded images: bytes, or a struct with a field `bytes`."""
    caption: str | None = None
    """Column of captions: a text or a list of texts per image."""
    label: str | None = None
    """Column of class indices."""
    key: str | None = None
    """Column of keys; without one, rows are numbered."""

    @property
    def provides(self) -> frozenset[Content]:
        return frozenset(
            content
            for content, column in ((IMAGES, self.image), (CAPTIONS, self.caption), (LABELS, self.label))
            if column != ""
        )

    def shards(self) -> list[Shard]:
        """The files, sorted by name; names are unique.

        Raises:
            RequestError: a pattern matches nothing, a file is missing, two files would have the same name, or a
                column of the first readable file is missing or has the wrong type.
        """
        shards = file_shards(self.urls, "Parquet file", r"\.parquet")
        for uri, schema in _first_schema(shards):
            self._columns(schema, uri)
        return shards

    def keys_of(self, shard: Shard) -> Iterator[str]:
        """The values of the key column, or the row numbers."""
        return (item.key for item in self._items(shard, keys_only=True))

    def version(self, shard: Shard) -> str:
        """Size, and ETag or modification time, of the file."""
        return file_version(shard.uri)

    def require_captions(self, shards: Sequence[Shard]) -> None:
        """Raises RequestError if the first readable file has no caption column, unless `caption` is `""`."""
        for uri, schema in _first_schema(shards):
            if self.caption is None and not self._columns(schema, uri).captions:
                raise RequestError(
                    f"{uri} has no captions for the language encoders: name their column as `caption`, "
                    f'or set `caption: ""` for none; {_listed(schema)}'
                )

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The rows of one file; a damaged row group yields the rows before the damage, then one reject for the rest.

        Raises:
            RequestError: a column is missing or has the wrong type.
        """
        yield from unique(self._items(shard))

    def _items(self, shard: Shard, keys_only: bool = False) -> Iterator[Sample | Reject]:
        try:
            with storage.open_read(shard.uri) as stream:
                file = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
                yield from self._samples(shard, file, keys_only)
        except (pa.ArrowException, OSError) as error:
            _raise_unless_damage(error)
            message = with_kind(str(error), start_of(shard.uri))
            yield Reject(sample_key(shard, ""), "read", type(error).__name__, message)

    def _samples(self, shard: Shard, file: Any, keys_only: bool) -> Iterator[Sample | Reject]:
        columns = self._columns(file.schema_arrow, shard.uri)
        if keys_only:
            columns = _Columns(None, (), None, columns.key)
        row = 0
        for group in range(file.num_row_groups):
            end = row + file.metadata.row_group(group).num_rows
            try:
                rows_at_once = _rows_at_once(file.metadata.row_group(group), columns)
                # Batches must not cross row groups: damage in the next group would lose the whole batch.
                for batch in file.iter_batches(rows_at_once, row_groups=[group], columns=columns.names()):
                    for i in range(batch.num_rows):
                        yield _sample(shard, row, columns, {name: batch.column(name)[i] for name in columns.names()})
                        row += 1
            except (pa.ArrowException, OSError, DecompressionBombError, TooLargeError) as error:
                _raise_unless_damage(error)
                key = sample_key(shard, f"@{row}")
                yield Reject(key, "read", type(error).__name__, f"rows {row:,} to {end - 1:,}: {error}")
            row = end

    def _columns(self, schema: Any, uri: str) -> _Columns:
        def find(field: str, usual: tuple[str, ...], fits: Callable[[Any], bool]) -> tuple[str, ...]:
            asked = getattr(self, field)
            names = usual if asked is None else (asked,) if asked else ()
            there = [place for name in names if (place := matching_column(name, schema.names)) is not None]
            # A column that is empty in this file may have the null type.
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
            raise RequestError(f"{uri} has no image column: name it as `image`; {_listed(schema)}")
        labels = find("label", _LABEL, lambda kind: bool(pa.types.is_integer(_decoded(kind))))
        keys = find("key", _KEY, lambda kind: _is_string(kind) or bool(pa.types.is_integer(_decoded(kind))))
        return _Columns(
            images[0], find("caption", _CAPTION, _is_text), next(iter(labels), None), next(iter(keys), None)
        )


def _first_schema(shards: Sequence[Shard]) -> list[tuple[str, Any]]:
    """URI and schema of the first readable file; empty if there is none."""
    for shard in shards:
        try:
            with storage.open_read(shard.uri) as stream:
                return [(shard.uri, pq.read_schema(stream))]
        except (pa.ArrowException, OSError) as error:
            _raise_unless_damage(error)
    return []


def _raise_unless_damage(error: Exception) -> None:
    """Re-raises a storage error, which a retry may solve; returns if the file is damaged."""
    # pyarrow reports damage as its own exceptions, and as a plain OSError without errno.
    if isinstance(error, OSError) and not (type(error) is OSError and error.errno is None):
        raise error


def _rows_at_once(group: Any, columns: _Columns) -> int:
    """Number of rows of a row group to read at a time, from the sizes in the file's metadata.

    Raises:
        DecompressionBombError: a column exceeds the limit of decompression.
        TooLargeError: a column has more captions than its rows may have.
    """
    largest = 1
    for chunk in (group.column(i) for i in range(group.num_columns)):
        # The path is the column's name, perhaps followed by the name of a field or of list elements.
        name = next((n for n in columns.names() if f"{chunk.path_in_schema}.".startswith(f"{n}.")), None)
        if name is None:
            continue
        size = chunk.total_uncompressed_size
        if size > max(MIN_EXPANDED_BYTES, MAX_EXPANSION * chunk.total_compressed_size):
            raise DecompressionBombError(f"the column {name!r} has {size:,} bytes after decompression")
        if name in columns.captions and chunk.num_values > MAX_CAPTIONS * group.num_rows:
            raise TooLargeError(f"the column {name!r} holds {chunk.num_values:,} captions")
        largest = max(largest, size)
    # With dictionary encoding, every row may hold the largest value.
    return min(_BATCH_ROWS, max(1, MAX_IMAGE_BYTES // largest))


def _sample(shard: Shard, row: int, columns: _Columns, cells: dict[str, Any]) -> Sample | Reject:
    key = sample_key(shard, row_name(row))
    try:
        name = cells[columns.key].as_py() if columns.key and _size(cells[columns.key]) <= MAX_TEXT_BYTES else None
        if name not in (None, ""):
            key = sample_key(shard, name)
        image = cells[columns.image] if columns.image else None
        if isinstance(image, pa.StructScalar):
            image = image["bytes"]
        if image is not None and (size := _size(image)) > MAX_IMAGE_BYTES:
            raise TooLargeError(f"the image has {size:,} bytes, more than {MAX_IMAGE_BYTES:,}")
        label = cells[columns.label].as_py() if columns.label else None
        texts = next((found for name in columns.captions if (found := _texts(cells[name]))), [])
        return Sample(
            key,
            None if image is None else image.as_py(),
            captions(texts),
            None if label is None else class_label(label),
        )
    except ValueError as error:
        return Reject.of(key, "read", error)


def _texts(cell: Any) -> list[Any]:
    """The non-empty texts of a cell, which holds a text or a list of texts.

    Raises:
        TooLargeError: the texts exceed the limits of a sample; checked before they are copied.
    """
    texts = (cell.values or []) if isinstance(cell, pa.ListScalar) else [cell]
    check_captions(len(texts), 0)
    check_captions(len(texts), sum(map(_size, texts)))
    return [text.as_py() for text in texts if _size(text)]


def _size(cell: Any) -> int:
    """Bytes of a text or binary value, without copying it; 0 for other types."""
    if isinstance(cell, pa.DictionaryScalar):
        cell = cell.value
    content = cell.as_buffer() if isinstance(cell, pa.BinaryScalar) else None
    return 0 if content is None else int(content.size)


def _decoded(kind: Any) -> Any:
    """The value type of a column, also if it is dictionary-encoded."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_string(kind: Any) -> bool:
    return any(is_one(_decoded(kind)) for is_one in _STRINGS)


def _is_text(kind: Any) -> bool:
    return _is_string(kind.value_type if any(is_one(kind) for is_one in _LISTS) else kind)


def _is_image(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_image(kind.field(place).type)
    return any(is_one(_decoded(kind)) for is_one in (*_BINARIES, pa.types.is_null))


def _listed(schema: Any) -> str:
    return f"the columns are {', '.join(schema.names)}"
