"""Captions of known images in several languages, as a source of texts for language encoders."""

from collections.abc import Iterator
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.config import Config, content_hash
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.sample import CAPTIONS, Content, Reject, Sample, Shard

COLUMNS = ("key", "language", "caption")
"""Columns of a table of translations, all of strings."""


class TranslationSource(Config):
    """One shard per language, and one sample per image that has captions in it.

    The key is the language and the image's key: `de/00000/000000001`.
    """

    captions: tuple[tuple[str, tuple[tuple[str, tuple[str, ...]], ...]], ...]
    """Each language with its images; each image is its key and its captions."""

    @classmethod
    def of_table(cls, uri: str, languages: tuple[str, ...] = ()) -> Self:
        """Reads a Parquet file with the columns `key`, `language` and `caption`.

        Args:
            languages: languages to keep; () keeps all.

        Raises:
            RequestError: the file is missing or is not such a table, or lacks a language.
        """
        filesystem, path = storage.resolve(uri)
        try:
            with storage.reading(uri, "table of translations"), filesystem.open(path, "rb") as file:
                table = pq.read_table(file, columns=list(COLUMNS))
            rows = zip(*(table[name].cast(pa.string()).to_pylist() for name in COLUMNS), strict=True)
        except (pa.ArrowException, KeyError) as error:
            raise RequestError(
                f"{uri} is not a Parquet table with the columns {', '.join(COLUMNS)}: {' '.join(str(error).split())}"
            ) from None
        found: dict[str, dict[str, tuple[str, ...]]] = {}
        for row, (key, language, caption) in enumerate(rows):
            if not key or not language or "/" in language:
                raise RequestError(f"{uri}: row {row:,} needs a key and a language without `/`")
            if caption:
                of_image = found.setdefault(language, {})
                of_image[key] = (*of_image.get(key, ()), caption)
        if unknown := sorted(set(languages) - found.keys()):
            raise RequestError(f"{uri} has no captions in {', '.join(unknown)}: it has {', '.join(sorted(found))}")
        return cls(captions=tuple((name, tuple(found[name].items())) for name in sorted(languages or found)))

    @property
    def provides(self) -> frozenset[Content]:
        return frozenset({CAPTIONS})

    def shards(self) -> list[Shard]:
        """One shard per language."""
        return [self._shard(index) for index in range(len(self.captions))]

    def version(self, shard: Shard) -> str:
        """Digest of the captions of the shard's language."""
        return self._shard(shard.index).version

    def keys_of(self, shard: Shard) -> Iterator[str]:
        """One key per image."""
        return (f"{shard.name}/{key}" for key, _ in self.captions[shard.index][1])

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """One sample per image."""
        for key, captions in self.captions[shard.index][1]:
            yield Sample(f"{shard.name}/{key}", None, captions)

    def _shard(self, index: int) -> Shard:
        language, images = self.captions[index]
        size = sum(len(text.encode()) for _, captions in images for text in captions)
        return Shard(index, language, f"translations/{language}", size, content_hash(images))
