"""Parquet files with the images in them, as img2dataset and Hugging Face `datasets` write them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.listing import captions, class_label, file_shards, row_name, sample_key, unique
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
    image: str
    caption: str | None
    label: str | None
    key: str | None

    def names(self) -> list[str]:
        return [name for name in (self.image, self.caption, self.label, self.key) if name is not None]


class ParquetSource(Config):
    """Parquet files named by one or more patterns; a column that is left out is found by its usual names."""

    format: Literal["parquet"] = "parquet"
    urls: tuple[str, ...] | str
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
                column is missing from the first file that can be read.
        """
        shards = file_shards(self.urls, "Parquet file", r"\.parquet")
        for shard in shards:
            try:
                with storage.open_read(shard.uri) as stream:
                    self._columns(pq.read_schema(stream), shard.uri)
            except (pa.ArrowException, OSError) as error:
                _raise_unless_damage(error)
            else:
                break
        return shards

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The rows of one file; a damaged file gives what comes before the damage, then one reject that names it.

        Raises:
            RequestError: a column is missing.
        """
        try:
            with storage.open_read(shard.uri) as stream:
                file = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
                yield from unique(self._samples(shard, file))
        except (pa.ArrowException, OSError) as error:
            _raise_unless_damage(error)
            yield Reject.of(sample_key(shard, ""), "read", error)

    def _samples(self, shard: Shard, file: Any) -> Iterator[Sample | Reject]:
        columns = self._columns(file.schema_arrow, shard.uri)
        row = 0
        # A batch that went over the end of a row group would be lost with the next one.
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns.names()):
                for i in range(batch.num_rows):
                    yield _sample(shard, row, columns, {name: batch.column(name)[i] for name in columns.names()})
                    row += 1

    def _columns(self, schema: Any, uri: str) -> _Columns:
        def find(field: str, usual: tuple[str, ...], fits: Callable[[Any], bool]) -> str | None:
            asked = getattr(self, field)
            for name in usual if asked is None else (asked,):
                # A column that holds nothing in this file may have lost its type there.
                if name in schema.names and (pa.types.is_null(kind := schema.field(name).type) or fits(kind)):
                    return name
            if asked is None:
                return None
            problem = f"holds {schema.field(asked).type}" if asked in schema.names else "is missing"
            raise RequestError(f"{uri}: the {field} column {asked!r} {problem}; {_listed(schema)}")

        image = find("image", _IMAGE, _is_image)
        if image is None:
            raise RequestError(f"{uri} has no column of images: name it as `image`; {_listed(schema)}")
        return _Columns(
            image,
            find("caption", _CAPTION, _is_text),
            find("label", _LABEL, pa.types.is_integer),
            find("key", _KEY, lambda kind: _is_string(kind) or pa.types.is_integer(kind)),
        )


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
        image = found[columns.image]
        label = found[columns.label] if columns.label else None
        return Sample(
            key,
            image["bytes"] if isinstance(image, dict) else image,
            captions(found[columns.caption] if columns.caption else None),
            None if label is None else class_label(label),
        )
    except ValueError as error:
        return Reject.of(key, "read", error)


def _is_string(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_text(kind: Any) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    inner = kind.value_type if listed or pa.types.is_dictionary(kind) else kind
    return _is_string(inner)


def _is_image(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_image(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind))


def _listed(schema: Any) -> str:
    return f"the columns are {', '.join(schema.names)}"
