"""The union of all readers, selected by `format`."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from sharelock_ray.sources.folders import ClassFolderSource
from sharelock_ray.sources.parquet import ParquetSource
from sharelock_ray.sources.sample import Shard, Source
from sharelock_ray.sources.table import TableSource
from sharelock_ray.sources.texts import TextSource
from sharelock_ray.sources.webdataset import WebDatasetSource


def _with_format(value: Any) -> Any:
    """Adds the default format, WebDataset tars."""
    return {"format": "webdataset"} | value if isinstance(value, dict) else value


SourceSpec = Annotated[
    WebDatasetSource | ParquetSource | TableSource | TextSource | ClassFolderSource,
    Field(discriminator="format"),
    BeforeValidator(_with_format),
]


def require_captions(source: Source, shards: Sequence[Shard]) -> None:
    """Raises RequestError if a table for language encoders has no caption column.

    Tars are not checked, since their content is unknown until they are read.

    Args:
        shards: the listing of the source.
    """
    if isinstance(source, ParquetSource):
        source.require_captions(shards)
    elif isinstance(source, TableSource):
        source.require_captions()
