"""The one type of every reader, told apart by `format`."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from sharelock_ray.sources.folders import ClassFolderSource
from sharelock_ray.sources.parquet import ParquetSource
from sharelock_ray.sources.table import TableSource
from sharelock_ray.sources.texts import TextSource
from sharelock_ray.sources.webdataset import WebDatasetSource


def _with_format(value: Any) -> Any:
    """Tars go without saying."""
    return {"format": "webdataset"} | value if isinstance(value, dict) else value


SourceSpec = Annotated[
    WebDatasetSource | ParquetSource | TableSource | TextSource | ClassFolderSource,
    Field(discriminator="format"),
    BeforeValidator(_with_format),
]


def require_captions(source: SourceSpec) -> None:
    """Raises RequestError where a table that is to be read for language encoders has no column of captions.

    What tars hold is seen when they are read, and class folders are never asked for captions.
    """
    if isinstance(source, ParquetSource | TableSource):
        source.require_captions()
