"""A folder of images and a list of them with captions: CSV, TSV, JSON lines, or a JSON list as of LLaVA-CC3M."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.listing import captions, class_label, row_name, sample_key, unique
from sharelock_ray.sources.sample import Reject, Sample, Shard

_IMAGE = ("image", "file_name", "filename", "filepath", "image_path", "path")
_CAPTION = ("caption", "blip_caption", "captions", "text", "title", "conversations")
_KEY = ("id", "key")
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_BOM = b"\xef\xbb\xbf"

_Span = tuple[int, int]


class TableSource(Config):
    """Images that a list names; a column that is left out is found by its usual names. Labels have to be named."""

    format: Literal["table"] = "table"
    path: storage.Uri
    """The list; its ending says what it is: csv, tsv, jsonl or json."""
    images: storage.Uri | None = None
    """The folder that the list's paths start from; without one, the list's own."""
    image_column: str | None = None
    caption_column: str | None = None
    """Holds a text, a list of texts, or a LLaVA conversation, of which the first answer is the caption."""
    label_column: str | None = None
    """Holds class indices."""
    key_column: str | None = None
    """Names the rows; without one, they are numbered."""
    rows_per_shard: Annotated[int, Field(ge=1)] = 1000

    def shards(self) -> list[Shard]:
        """Runs of rows; `uri` ends in the byte that a run starts at, so that it is read without those before it.

        Raises:
            RequestError: the list is missing, empty or cannot be read, or lacks a column.
        """
        try:
            spans = list(self._spans())
        except (FileNotFoundError, IsADirectoryError):
            raise RequestError(f"no list of images at {self.path}: check the data's `path`") from None
        if not spans:
            raise RequestError(f"{self.path} lists no images")
        self._check_columns(spans)
        stem = self.path.rpartition("/")[2].rpartition(".")[0]
        shards = []
        for index, first in enumerate(range(0, len(spans), self.rows_per_shard)):
            run = spans[first : first + self.rows_per_shard]
            start, end = run[0][0], run[-1][1]
            shards.append(Shard(index, f"{stem}-{index:05d}", f"{self.path}#{start}", end - start))
        return shards

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The samples of a run of rows; one whose image is missing is a reject."""
        yield from unique(self._samples(shard))

    def _samples(self, shard: Shard) -> Iterator[Sample | Reject]:
        start = int(shard.uri.rpartition("#")[2])
        first = shard.index * self.rows_per_shard
        for row, record in enumerate(self._records((start, start + shard.bytes)), first):
            yield self._sample(shard, row, record)

    def _sample(self, shard: Shard, row: int, record: object) -> Sample | Reject:
        key = sample_key(shard, row_name(row))
        try:
            if isinstance(record, bytes):
                record = json.loads(record)
            if not isinstance(record, dict):
                raise ValueError("the row is no JSON object")
            name = _value(record, self.key_column, _KEY)
            if name is not None:
                key = sample_key(shard, name)
            texts = captions(_spoken(_value(record, self.caption_column, _CAPTION)))
            label = record.get(self.label_column) if self.label_column else None
            image = _value(record, self.image_column, _IMAGE)
            return Sample(
                key,
                None if image is None else storage.read_bytes(self._image_uri(str(image))),
                texts,
                None if label in (None, "") else class_label(str(label)),
            )
        # Other errors of storage, such as that it cannot be reached, are none of the row's: trying again helps.
        except (
            FileNotFoundError,
            IsADirectoryError,
            NotADirectoryError,
            PermissionError,
            ValueError,
            RecursionError,
            RequestError,
        ) as error:
            return Reject.of(key, "read", error)

    def _image_uri(self, name: str) -> str:
        if name.startswith("/") or "://" in name:
            return name
        return storage.join(self.images or self.path.rpartition("/")[0], name)

    @property
    def _ending(self) -> str:
        return self.path.rpartition(".")[2].lower()

    def _spans(self) -> Iterator[_Span]:
        """Where each row starts and ends, in bytes."""
        if self._ending in _DELIMITERS:
            with storage.open_read(self.path) as stream:
                rows = self._csv_rows(stream)
                next(rows, None)
                yield from (span for span, _ in rows)
        elif self._ending == "jsonl":
            start = 0
            with storage.open_read(self.path) as stream:
                for line in stream:
                    if line.strip().removeprefix(_BOM):
                        yield start, start + len(line)
                    start += len(line)
        elif self._ending == "json":
            yield from self._json_spans()
        else:
            raise RequestError(f"{self.path} is no list of images: its name must end in .csv, .tsv, .jsonl or .json")

    def _csv_rows(self, lines: Iterator[bytes]) -> Iterator[tuple[_Span, list[str]]]:
        """The rows that are not empty, the header first."""
        end = 0

        def decoded() -> Iterator[str]:
            nonlocal end
            for line in lines:
                end += len(line)
                # What is no UTF-8 is found again in the row that holds it.
                yield line.decode("utf-8-sig" if end == len(line) else "utf-8", "surrogateescape")

        reader = csv.reader(decoded(), delimiter=_DELIMITERS[self._ending])
        start = 0
        try:
            # The reader takes no line beyond the row that it gives.
            for row in reader:
                if row:
                    yield (start, end), row
                start = end
        except csv.Error as error:
            raise RequestError(f"{self.path} cannot be read at line {reader.line_num}: {error}") from None

    def _json_spans(self) -> Iterator[_Span]:
        content = storage.read_bytes(self.path)
        decoder = json.JSONDecoder()
        try:
            text = content.decode("utf-8")
            place = _skip(text, 1 if text.startswith("\ufeff") else 0)
            if text[place : place + 1] != "[":
                raise ValueError("it holds no list")
            at, known = len(text[:place].encode()), place
            place = _skip(text, place + 1)
            while text[place : place + 1] != "]":
                _, end = decoder.raw_decode(text, place)
                at += len(text[known:place].encode())
                span = at, at + len(text[place:end].encode())
                yield span
                at, known = span[1], end
                place = _skip(text, end)
                if text[place : place + 1] == ",":
                    place = _skip(text, place + 1)
                elif text[place : place + 1] != "]":
                    raise ValueError(f"the list breaks off at character {place}")
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{self.path} cannot be read: {error}") from None

    def _records(self, span: _Span) -> Iterator[object]:
        """The rows in a part of the list: dictionaries, or for JSON lines their bytes."""
        content = storage.read_bytes(self.path, *span)
        if self._ending == "json":
            yield from json.loads(b"[" + content + b"]")
        elif self._ending == "jsonl":
            lines = content.removeprefix(_BOM).split(b"\n")
            yield from (line for line in lines if line.strip())
        else:
            header = self._header()
            for _, row in self._csv_rows(iter(io.BytesIO(content))):
                yield dict(zip(header, row, strict=False))

    def _header(self) -> list[str]:
        with storage.open_read(self.path) as stream:
            return next(self._csv_rows(stream))[1]

    def _check_columns(self, spans: list[_Span]) -> None:
        """Looks for the columns in the first row that is one."""
        if self._ending in _DELIMITERS:
            known = self._header()
        else:
            known = next((list(record) for span in spans if (record := self._object(span))), [])
        asked = (self.image_column, self.caption_column, self.label_column, self.key_column)
        missing = [column for column in asked if column is not None and column not in known]
        if self.image_column is None and not any(column in known for column in _IMAGE):
            raise RequestError(f"{self.path} names no images: set `image_column` to one of {', '.join(known)}")
        if missing:
            raise RequestError(f"{self.path} has no column {missing[0]!r}: its columns are {', '.join(known)}")

    def _object(self, span: _Span) -> dict[str, Any] | None:
        record = next(self._records(span))
        try:
            found = json.loads(record) if isinstance(record, bytes) else record
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None


def _skip(text: str, place: int) -> int:
    """The next place in `text` that is no white space."""
    while text[place : place + 1].isspace():
        place += 1
    return place


def _value(record: dict[str, Any], column: str | None, usual: tuple[str, ...]) -> Any:
    """What a row says in a column, or else in the first of the usual ones that says anything."""
    names = usual if column is None else (column,)
    return next((record[name] for name in names if record.get(name) not in (None, "")), None)


def _spoken(found: object) -> object:
    """The first answer of a LLaVA conversation; anything else as it is."""
    if not isinstance(found, list):
        return found
    turns = [turn for turn in found if isinstance(turn, dict)]
    return next((turn.get("value") for turn in turns if turn.get("from") == "gpt"), None) if turns else found
