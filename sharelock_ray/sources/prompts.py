"""Texts of classes as a source of texts for language encoders: prompts, which are names in templates, or descriptions.

A file of descriptions is a JSON object of a text or a list of texts by class name, or a `.csv` or Parquet table with
the columns `class` and `text`, where a class may have several rows.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Self

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.config import Config, content_hash
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.content import decoded
from sharelock_ray.sources.listing import row_name, sample_key
from sharelock_ray.sources.sample import CAPTIONS, Content, Reject, Sample, Shard

_CLASSES = 100
"""Classes per shard: 8,000 texts with the 80 templates of CLIP."""
_COLUMNS = ("class", "text")
_SHOWN = 3


class _OfClasses(Config, ABC):
    """One sample per class, in label order; its captions are the texts of the class.

    The key ends in the zero-padded label; `caption_id` is the index of the text.
    """

    @property
    def provides(self) -> frozenset[Content]:
        return frozenset({CAPTIONS})

    @property
    @abstractmethod
    def _classes(self) -> int:
        """Number of classes."""

    @abstractmethod
    def _texts(self, some: slice) -> tuple[tuple[str, ...], ...]:
        """The texts of each of some classes."""

    def shards(self) -> list[Shard]:
        """Runs of 100 classes."""
        return [self._shard(index) for index in range(-(-self._classes // _CLASSES))]

    def version(self, shard: Shard) -> str:
        """Digest of the shard's texts."""
        return self._shard(shard.index).version

    def keys_of(self, shard: Shard) -> Iterator[str]:
        """One key per class."""
        first = shard.index * _CLASSES
        labels = range(first, min(first + _CLASSES, self._classes))
        return (sample_key(shard, row_name(label)) for label in labels)

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """One sample per class of the shard."""
        for key, texts in zip(self.keys_of(shard), self._of_shard(shard.index), strict=True):
            yield Sample(key, None, texts)

    def _of_shard(self, index: int) -> tuple[tuple[str, ...], ...]:
        return self._texts(slice(index * _CLASSES, (index + 1) * _CLASSES))

    def _shard(self, index: int) -> Shard:
        texts = self._of_shard(index)
        size = sum(len(text.encode()) for of_class in texts for text in of_class)
        name = f"classes-{index:05d}"
        return Shard(index, name, f"prompts/{name}", size, content_hash(texts))


class PromptSource(_OfClasses):
    """The name of each class in each template."""

    names: tuple[str, ...]
    templates: tuple[str, ...]
    """Texts with `{}` for the name."""

    @property
    def _classes(self) -> int:
        return len(self.names)

    def _texts(self, some: slice) -> tuple[tuple[str, ...], ...]:
        # Many languages have millions of prompts, so they are made where they are read.
        return tuple(tuple(prompts_of(name, self.templates)) for name in self.names[some])


class ClassTextSource(_OfClasses):
    """Texts about each class, such as descriptions; classes may have different numbers of them."""

    texts: tuple[tuple[str, ...], ...]
    """By label."""

    @classmethod
    def of_file(cls, uri: str, names: Sequence[str]) -> Self:
        """Reads the texts of classes; others in the file are ignored.

        Args:
            uri: a file as the module describes it.
            names: by label.

        Raises:
            RequestError: the file is missing or of another form, or a class has no text.
        """
        found = _table(uri) if uri.endswith((".csv", ".parquet")) else _object(uri)
        if missing := [name for name in names if not any(text.strip() for text in found.get(name, ()))]:
            shown = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
            raise RequestError(f"{uri} has no text for {len(missing):,} of {len(names):,} classes ({shown}): add them")
        return cls(texts=tuple(tuple(text for text in found[name] if text.strip()) for name in names))

    @property
    def _classes(self) -> int:
        return len(self.texts)

    def _texts(self, some: slice) -> tuple[tuple[str, ...], ...]:
        return self.texts[some]


def _object(uri: str) -> dict[str, list[str]]:
    with storage.reading(uri, "texts of classes"):
        text = decoded(storage.read_bytes(uri), uri)
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{uri} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise RequestError(f"{uri} is no JSON object of texts by class name")
    found = {name: [texts] if isinstance(texts, str) else texts for name, texts in content.items()}
    for name, texts in found.items():
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            raise RequestError(f"{uri}: {name} has neither a text nor a list of texts")
    return found


def _table(uri: str) -> dict[str, list[str]]:
    try:
        with storage.reading(uri, "texts of classes"):
            data = pa.BufferReader(storage.read_bytes(uri))
        if uri.endswith(".csv"):
            types = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(_COLUMNS, pa.string()))
            options = pyarrow.csv.ParseOptions(newlines_in_values=True)
            table = pyarrow.csv.read_csv(data, parse_options=options, convert_options=types)
        else:
            table = pq.read_table(data)
        rows = zip(*(table[name].cast(pa.string()).to_pylist() for name in _COLUMNS), strict=True)
    except (pa.ArrowException, KeyError) as error:
        raise RequestError(
            f"{uri} is no table with the columns {' and '.join(_COLUMNS)}: {' '.join(str(error).split())}"
        ) from None
    found: dict[str, list[str]] = {}
    for name, text in rows:
        found.setdefault(name, []).append(text or "")
    return found


def prompts_of(name: str, templates: Sequence[str]) -> list[str]:
    """The name inserted into each template; it may contain braces."""
    return [template.replace("{}", name) for template in templates]
