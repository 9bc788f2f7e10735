"""Parquet files with the images in them, as img2dataset and Hugging Face `datasets` write them."""

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
    called,
    captions,
    check_captions,
    class_label,
    file_shards,
    file_version,
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

    @property
    def provides(self) -> frozenset[Content]:
        return frozenset(
            content
            for content, column in ((IMAGES, self.image), (CAPTIONS, self.caption), (LABELS, self.label))
            if column != ""
        )

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

    def require_captions(self, shards: Sequence[Shard]) -> None:
        """Raises RequestError where the first file has no column of captions, and none is not what was asked for."""
        for uri, schema in _first_schema(shards):
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
                # A batch that went over the end of a row group would be lost with the next one.
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


def _first_schema(shards: Sequence[Shard]) -> list[tuple[str, Any]]:
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


def _rows_at_once(group: Any, columns: _Columns) -> int:
    """How many rows of a row group memory can hold, from what the file says of it.

    Raises:
        DecompressionBombError: a column grows beyond all measure when it is decompressed.
        TooLargeError: it has more captions than that many rows may have.
    """
    largest = 1
    for chunk in (group.column(i) for i in range(group.num_columns)):
        # Behind a column's own name may follow that of a field or of its elements.
        name = next((n for n in columns.names() if f"{chunk.path_in_schema}.".startswith(f"{n}.")), None)
        if name is None:
            continue
        size = chunk.total_uncompressed_size
        if size > max(MIN_EXPANDED_BYTES, MAX_EXPANSION * chunk.total_compressed_size):
            raise DecompressionBombError(f"the column {name!r} holds {size:,} bytes once decompressed")
        if name in columns.captions and chunk.num_values > MAX_CAPTIONS * group.num_rows:
            raise TooLargeError(f"the column {name!r} holds {chunk.num_values:,} captions")
        largest = max(largest, size)
    # A dictionary may repeat its largest value in each row.
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
    """The texts of a cell, a text or a list of them.

    Raises:
        TooLargeError: there are too many; they are not copied.
    """
    texts = (cell.values or []) if isinstance(cell, pa.ListScalar) else [cell]
    check_captions(len(texts), 0)
    check_captions(len(texts), sum(map(_size, texts)))
    return [text.as_py() for text in texts if _size(text)]


def _size(cell: Any) -> int:
    """Bytes of a text or of binary data, which are not copied; 0 for any other."""
    if isinstance(cell, pa.DictionaryScalar):
        cell = cell.value
    content = cell.as_buffer() if isinstance(cell, pa.BinaryScalar) else None
    return 0 if content is None else int(content.size)


def _decoded(kind: Any) -> Any:
    """The type of the values in a column, which a dictionary may stand for."""
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
