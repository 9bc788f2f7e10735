"""What images and captions show or say, as a table: "the colour of the circle is red".

A Parquet file with the columns `image`, `text`, `attribute` and `value`, all of strings. A row is about an image, by
its key, or about a text, as it is embedded; the other of both is null. What an item has no row of is absent from it. An
item without any row is not annotated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.errors import RequestError

COLUMNS = ("image", "text", "attribute", "value")


@dataclass(frozen=True)
class Attributes:
    """Attributes of images and texts.

    Args:
        images: by key, the value of each attribute.
        texts: the same by text.
    """

    images: dict[str, dict[str, str]]
    texts: dict[str, dict[str, str]]

    def values(self) -> dict[str, list[str]]:
        """The attributes, sorted, each with its values in images or texts."""
        found: dict[str, set[str]] = {}
        for item in (*self.images.values(), *self.texts.values()):
            for attribute, value in item.items():
                found.setdefault(attribute, set()).add(value)
        return {attribute: sorted(found[attribute]) for attribute in sorted(found)}


def codes(items: Sequence[Mapping[str, str]], attribute: str, values: Sequence[str]) -> np.ndarray:
    """(N,) 0 where an item lacks the attribute, else 1 + the position of its value."""
    code = {value: place for place, value in enumerate(values, 1)}
    return np.array([code.get(item.get(attribute, ""), 0) for item in items], np.int64)


def read_attributes(uri: str) -> Attributes:
    """Reads a table of attributes.

    Raises:
        RequestError: the file is missing or no such table, a row names no item or two, lacks attribute or value, or
            gives an attribute a second value.
    """
    filesystem, path = storage.resolve(uri)
    try:
        with storage.reading(uri, "table of attributes"), filesystem.open(path, "rb") as file:
            table = pq.read_table(file, columns=list(COLUMNS))
        rows = zip(*(table[name].cast(pa.string()).to_pylist() for name in COLUMNS), strict=True)
    except (pa.ArrowException, KeyError) as error:
        raise RequestError(
            f"{uri} is not a Parquet table with the columns {', '.join(COLUMNS)}: {' '.join(str(error).split())}"
        ) from None
    images: dict[str, dict[str, str]] = {}
    texts: dict[str, dict[str, str]] = {}
    for row, (image, text, attribute, value) in enumerate(rows):
        if bool(image) == bool(text) or not attribute or not value:
            raise RequestError(f"{uri}: row {row:,} needs an image or a text, an attribute and a value")
        item = images.setdefault(image, {}) if image else texts.setdefault(text, {})
        if item.setdefault(attribute, value) != value:
            raise RequestError(f"{uri}: row {row:,} gives the {attribute} of {image or text!r} a second value")
    if not images or not texts:
        raise RequestError(f"{uri} has no attributes of {'texts' if images else 'images'}: give those of both")
    return Attributes(images, texts)
