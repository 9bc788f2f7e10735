"""Examples of compositional benchmarks: one or two images, and the captions to choose from."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.content import decoded


class Choices(Config):
    """Where the examples are, and which fields of a record hold what."""

    file: storage.Uri
    """A list of records: `.json`, `.jsonl`, `.csv` or `.tsv`. A JSON object counts as the list of its values.
    `{kind}` stands for each of `kinds`."""
    images: tuple[str, ...] | str
    """Fields with the names of the images, or one field with a list of them."""
    captions: tuple[str, ...] | str
    """Fields with the captions, or one field with a list. Of two images, caption n describes image n; of one image, the
    first caption is true."""
    image_key: str = "{}"
    """Key of an image in the source, with `{}` in place of its name."""
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
    found = []
    for kind in spec.kinds or ("",):
        uri = spec.file.replace("{kind}", kind)
        for number, record in enumerate(_records(uri)):
            found.append(_choice(spec, record, kind, images, f"{uri}, record {number:,}"))
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


def _choice(spec: Choices, record: object, kind: str, images: int, place: str) -> Choice:
    keys = tuple(spec.image_key.replace("{}", name) for name in _texts(record, spec.images, place))
    captions = tuple(_texts(record, spec.captions, place))
    if len(keys) != images or len(captions) < 2 or (images == 2 and len(captions) != 2):
        wanted = "2 images and 2 captions" if images == 2 else "1 image and 2 captions or more"
        raise RequestError(f"{place} has {len(keys)} images and {len(captions)} captions: {wanted} are needed")
    return Choice(_texts(record, (spec.kind,), place)[0] if spec.kind else kind, keys, captions)


def _texts(record: object, fields: tuple[str, ...] | str, place: str) -> list[str]:
    """The texts in `fields` of a record; for a single field, the list of texts in it."""
    content = record if isinstance(record, dict) else {}
    named = (fields,) if isinstance(fields, str) else fields
    for field in named:
        if field not in content:
            raise RequestError(f"{place} has no field `{field}`")
    found = content[fields] if isinstance(fields, str) else [content[field] for field in named]
    if not isinstance(found, list) or not all(isinstance(text, str) and text for text in found):
        raise RequestError(
            f"{place}: `{'`, `'.join(named)}` must hold {'texts' if isinstance(fields, str) else 'text'}"
        )
    return found
