"""A corpus of captions in parts: a language set, or files of captions as extraction reads them.

Keys are those that an extraction of the same files gives, so that captions can be left out of existing feature sets.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.errors import RequestError
from sharelock_ray.features.featureset import FeatureSet, open_features
from sharelock_ray.features.manifest import is_complete
from sharelock_ray.features.schema import rows_schema
from sharelock_ray.sources.listing import captions, file_shards, row_name, sample_key
from sharelock_ray.sources.sample import Reject, Shard, Source
from sharelock_ray.sources.texts import TextSource
from sharelock_ray.sources.webdataset import WebDatasetSource

KEY, CAPTION_ID, TEXT = "key", "caption_id", "text"
_COLUMNS = [KEY, CAPTION_ID, TEXT]
SCHEMA = pa.schema([rows_schema("language", 1, "float32").field(name) for name in _COLUMNS])
"""Columns of a part."""
_TEXTS, _KEYS = ("text", "caption", "captions", "txt"), ("key", "__key__")
_TAR = re.compile(r"\.(tar(\.gz|\.bz2|\.xz)?|tgz)$")


class Part(Protocol):
    """A part of a corpus, which other processes can read too."""

    def read(self) -> pa.Table:
        """The captions: `key`, `caption_id` and `text`."""
        ...


@dataclass(frozen=True)
class Corpus:
    """A corpus of captions.

    Args:
        captions: their number; None if it is not known before they are read.
    """

    place: str
    parts: Sequence[Part]
    captions: int | None = None


def open_corpus(place: str) -> Corpus:
    """Lists a corpus.

    Args:
        place: a language set, or a file or pattern: Parquet, tars, CSV, TSV, JSON, JSON lines, or text with a caption
            per line.

    Raises:
        RequestError: there is none, it is a set of images, or it has no column of texts.
    """
    place = storage.absolute(place)
    if is_complete(place):
        features = open_features(place)
        if features.manifest.modality != "language":
            raise RequestError(f"{place} is a {features.manifest.modality} set: give the one of its captions")
        parts = [_SetPart(features, at) for at in range(len(features.manifest.parts))]
        return Corpus(place, parts, features.manifest.rows)
    if place.lower().endswith(".parquet"):
        return Corpus(place, [_ParquetPart(shard) for shard in file_shards(place, "Parquet file", r"\.parquet")])
    if storage.is_folder(place):
        raise RequestError(f"{place} is no language set: extract it, or give a pattern such as {place}/*.parquet")
    source: Source = WebDatasetSource(urls=place) if _TAR.search(place.lower()) else TextSource(path=place)
    return Corpus(place, [_SourcePart(source, shard) for shard in source.shards()])


@dataclass(frozen=True)
class _SetPart:
    features: FeatureSet
    at: int

    def read(self) -> pa.Table:
        return self.features.read(self.features.manifest.parts[self.at], _COLUMNS).select(_COLUMNS)


@dataclass(frozen=True)
class _SourcePart:
    source: Source
    shard: Shard

    def read(self) -> pa.Table:
        samples = (each for each in self.source.read(self.shard) if not isinstance(each, Reject))
        return _table((each.key, each.captions) for each in samples)


@dataclass(frozen=True)
class _ParquetPart:
    """A file with the columns of a language set, or with a text or a list of texts per image."""

    shard: Shard

    def read(self) -> pa.Table:
        uri = self.shard.uri
        try:
            with storage.reading(uri, "Parquet file"), storage.open_read(uri) as stream:
                file = pq.ParquetFile(stream)
                has = file.schema_arrow.names
                text = next((name for name in _TEXTS if name in has), None)
                if text is None:
                    raise RequestError(f"{uri} has no captions: name a column {TEXT}; the columns are {', '.join(has)}")
                key = next((name for name in _KEYS if name in has), None)
                of_set = set(_COLUMNS) <= set(has)
                table = file.read(_COLUMNS if of_set else [name for name in (key, text) if name])
            if of_set:
                return table.select(_COLUMNS).cast(SCHEMA)
            keys = table[key].to_pylist() if key else [None] * len(table)
            named = ((row_name(row) if name in (None, "") else name) for row, name in enumerate(keys))
            rows = zip(named, table[text].to_pylist(), strict=True)
            return _table((sample_key(self.shard, name), captions(found)) for name, found in rows)
        except (pa.ArrowException, ValueError) as error:
            raise RequestError(f"{uri} cannot be read: {' '.join(str(error).split())}") from None


def _table(samples: Iterator[tuple[str, Sequence[str]]]) -> pa.Table:
    rows = [(key, number, text) for key, texts in samples for number, text in enumerate(texts)]
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table([pa.array(of, kind) for of, kind in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA)
