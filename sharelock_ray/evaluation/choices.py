"""Examples of compositional benchmarks: one or two images, and the captions to choose from."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.boxes import boxed
from sharelock_ray.sources.content import decoded


class Choices(Config):
    """Where the examples are, and which fields of a record hold what.

    The fields of a list are its positions, from "0" on.
    """

    file: storage.Uri
    """A list of records: `.json`, `.jsonl`, `.csv` or `.tsv`. A JSON object counts as the list of its values.
    `{kind}` stands for each of `kinds`."""
    images: tuple[str, ...] | str
    """Fields with the names of the images, or one field with a list of them."""
    captions: tuple[str, ...] | str
    """Fields with the captions, or one field with a list. Of two images, caption n describes image n; of one image, the
    first caption is true."""
    image_key: str = "{}"
    """Key of an image in the source, with `{}` in place of its name, and `{field}` of other fields of the record. The
    name of a URL is its last part."""
    box: tuple[str, str, str, str] | None = None
    """Fields with left, top, width and height, in pixels, of the box that is cut out of the image. None: the image."""
    caption_text: str = "{}"
    """What is embedded of a caption, with `{}` in its place."""
    records: Annotated[int, Field(ge=1)] = 1
    """Number of consecutive records that make an example; each has its part of the images and captions."""
    kind: str | None = None
    """Field with the kind of change between the captions."""
    kinds: tuple[str, ...] = ()
    """Kinds that have a file each."""


@dataclass(frozen=True)
class Choice:
    """One example: the captions, and the keys of the images."""

    kind: str
    images: tuple[str, ...]
    captions: tuple[str, ...]


def read_choices(spec: Choices, images: int) -> list[Choice]:
    """Reads the examples in the order of the files.

    Args:
        images: number of images per example. Of two, each has a caption; of one, there are two captions or more.

    Raises:
        RequestError: a file is missing or unreadable, a record lacks a field or has another number of images or
            captions, or there are no examples.
    """
    found: list[Choice] = []
    for kind in spec.kinds or ("",):
        uri = spec.file.replace("{kind}", kind)
        found += _examples(spec, list(_records(uri)), kind, images, uri)
    if not found:
        raise RequestError(f"{spec.file} has no examples")
    return found


def _records(uri: str) -> Iterator[object]:
    with storage.reading(uri, "examples"):
        text = decoded(storage.read_bytes(uri), uri)
    ending = uri.rpartition(".")[2]
    try:
        if ending in ("csv", "tsv"):
            yield from csv.DictReader(io.StringIO(text), delimiter="\t" if ending == "tsv" else ",")
        elif ending == "jsonl":
            yield from (json.loads(line) for line in text.split("\n") if line.strip())
        else:
            found = json.loads(text)
            yield from found.values() if isinstance(found, dict) else found
    except (ValueError, TypeError, RecursionError, csv.Error) as error:
        raise RequestError(f"{uri} cannot be read as a list of examples: {error}") from None


def _examples(spec: Choices, records: Sequence[object], kind: str, images: int, uri: str) -> Iterator[Choice]:
    if len(records) % spec.records:
        raise RequestError(f"{uri} has {len(records):,} records: {spec.records} make an example")
    for start in range(0, len(records), spec.records):
        place = f"{uri}, record {start:,}"
        group = [_fields(record) for record in records[start : start + spec.records]]
        keys = tuple(_key(spec, name, of, place) for of in group for name in _texts(of, spec.images, place))
        captions = tuple(
            spec.caption_text.replace("{}", text) for of in group for text in _texts(of, spec.captions, place)
        )
        if len(keys) != images or len(captions) < 2 or (images == 2 and len(captions) != 2):
            wanted = "2 images and 2 captions" if images == 2 else "1 image and 2 captions or more"
            raise RequestError(f"{place} has {len(keys)} images and {len(captions)} captions: {wanted} are needed")
        yield Choice(_texts(group[0], (spec.kind,), place)[0] if spec.kind else kind, keys, captions)


def _fields(record: object) -> dict[str, Any]:
    if isinstance(record, list):
        return {str(position): value for position, value in enumerate(record)}
    return record if isinstance(record, dict) else {}


def _key(spec: Choices, name: str, record: Mapping[str, Any], place: str) -> str:
    """The key of an image, or of its box: `image_key` with its name and the fields of the record."""
    last = name.rpartition("/")[2] if "://" in name else name

    def filled(match: re.Match[str]) -> str:
        return str(_value(record, match[1], place)) if match[1] else last

    key = re.sub(r"\{([^{}]*)\}", filled, spec.image_key)
    return boxed(key, [_value(record, field, place) for field in spec.box]) if spec.box else key


def _texts(record: Mapping[str, Any], fields: tuple[str, ...] | str, place: str) -> list[str]:
    """The texts in `fields` of a record; for a single field, the list of texts in it."""
    named = (fields,) if isinstance(fields, str) else fields
    values = [_value(record, field, place) for field in named]
    found = values[0] if isinstance(fields, str) else values
    if not isinstance(found, list) or not all(isinstance(text, str) and text for text in found):
        raise RequestError(
            f"{place}: `{'`, `'.join(named)}` must hold {'texts' if isinstance(fields, str) else 'text'}"
        )
    return found


def _value(record: Mapping[str, Any], field: str, place: str) -> Any:
    if field not in record:
        raise RequestError(f"{place} has no field `{field}`")
    return record[field]
