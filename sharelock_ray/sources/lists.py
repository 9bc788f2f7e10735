"""A list with a row for each sample, as a file of one of many kinds, read in runs of rows.

What the rows say is for `table` (images and captions) and `texts` (captions alone).
"""

import csv
import io
import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated, Any, ClassVar

from pydantic import Field

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.content import decoded, looks_like, start_of
from sharelock_ray.sources.listing import BOM, called, file_version, row_name, sample_key, unique, value
from sharelock_ray.sources.sample import Reject, Sample, Shard

CAPTION_COLUMNS = ("caption", "blip_caption", "captions", "text", "title", "conversations")
_KEY_COLUMNS = ("id", "key")
# In a TSV a quotation mark is one, as in CC3M's own; in a CSV one that is left open would swallow the rows behind it.
_DIALECTS: dict[str, dict[str, Any]] = {
    "csv": {"delimiter": ",", "strict": True},
    "tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},
}

_Span = tuple[int, int]


class ListSource(Config):
    """What sources that read a list have in common."""

    endings: ClassVar[tuple[str, ...]] = ("csv", "tsv", "jsonl", "json")

    path: storage.Uri
    """The list; its ending says what it is."""
    caption_column: str | None = None
    """Holds a text, a list of texts, or a LLaVA conversation, of which the first answer is the caption; "" for none."""
    key_column: str | None = None
    """Names the rows; without one, they are numbered."""
    rows_per_shard: Annotated[int, Field(ge=1)] = 1000

    def shards(self) -> list[Shard]:
        """Runs of rows; `uri` ends in the byte that a run starts at, so that it is read without those before it.

        Raises:
            RequestError: the list is missing, empty or cannot be read, or lacks a column.
        """
        if self._ending not in self.endings:
            kinds = ", ".join(f".{ending}" for ending in self.endings)
            raise RequestError(f"{self.path} is no list that can be read: its name must end in {kinds}")
        try:
            version = file_version(self.path)
            if (start := start_of(self.path)) and (kind := looks_like(start)):
                raise RequestError(f"{self.path} is no list but {kind}")
            runs = list(self._runs())
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise RequestError(f"no list at {self.path}: check the data's `path`") from None
        except PermissionError:
            raise RequestError(f"{self.path} may not be read by this user") from None
        if not runs:
            raise RequestError(f"{self.path} has no rows")
        self._check(self._columns(runs))
        stem = self.path.rpartition("/")[2].rpartition(".")[0]
        return [
            Shard(index, f"{stem}-{index:05d}", f"{self.path}#{start}", end - start, version)
            for index, (start, end) in enumerate(runs)
        ]

    def keys_of(self, shard: Shard) -> Iterator[str]:
        """Those of the rows."""
        return (key for key, _ in self._rows(shard))

    def version(self, shard: Shard) -> str:
        """Size and ETag, or time, of the list."""
        return file_version(self.path)

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The samples of a run of rows; a row that cannot be one is a reject."""
        yield from unique(self._samples(shard))

    @abstractmethod
    def _check(self, columns: list[str]) -> None:
        """Raises RequestError unless a list with these columns has what is needed."""

    @abstractmethod
    def _sample(self, key: str, row: dict[str, Any]) -> Sample | Reject:
        """What becomes of a row."""

    def _has_captions(self, columns: list[str]) -> bool:
        """Whether there is a column of captions, or one is named, which `_named` looks for."""
        return bool(self.caption_column) or (
            self.caption_column is None and any(called(name, columns) for name in CAPTION_COLUMNS)
        )

    def _named(self, columns: list[str], *asked: str | None) -> None:
        """Raises RequestError where a column that is asked for is missing."""
        for column in asked:
            if column and called(column, columns) is None:
                raise RequestError(f"{self.path} has no column {column!r}: its columns are {', '.join(columns)}")

    def _samples(self, shard: Shard) -> Iterator[Sample | Reject]:
        for key, row in self._rows(shard):
            yield Reject.of(key, "read", row) if isinstance(row, Exception) else self._sample(key, row)

    def _rows(self, shard: Shard) -> Iterator[tuple[str, dict[str, Any] | Exception]]:
        """Key and fields of each row, or what is wrong with it."""
        start = int(shard.uri.rpartition("#")[2])
        first = shard.index * self.rows_per_shard
        for number, record in enumerate(self._records((start, start + shard.bytes)), first):
            key = sample_key(shard, row_name(number))
            try:
                row = self._row(record)
            except (ValueError, RecursionError) as error:
                yield key, error
                continue
            name = value(row, self.key_column, _KEY_COLUMNS)
            yield (sample_key(shard, name) if isinstance(name, str | int) else key), row

    def _row(self, record: object) -> dict[str, Any]:
        if isinstance(record, tuple):
            header, fields = record
            if len(fields) != len(header):
                raise ValueError(f"the row has {len(fields)} fields and the header {len(header)}")
            return dict(zip(header, fields, strict=True))
        if isinstance(record, bytes):
            record = {"text": record.decode()} if self._ending == "txt" else json.loads(record)
        if not isinstance(record, dict):
            raise ValueError("the row is no JSON object")
        return record

    @property
    def _ending(self) -> str:
        return self.path.rpartition(".")[2].lower()

    def _runs(self) -> Iterator[_Span]:
        """Where each run of rows starts and ends, in bytes."""
        spans = self._spans()
        while run := list(islice(spans, self.rows_per_shard)):
            yield run[0][0], run[-1][1]

    def _spans(self) -> Iterator[_Span]:
        """Where each row starts and ends, in bytes."""
        if self._ending in _DIALECTS:
            with storage.open_read(self.path) as stream:
                rows = self._csv_rows(stream)
                next(rows, None)
                yield from (span for span, _ in rows)
        elif self._ending == "json":
            yield from self._json_spans()
        else:
            start = 0
            with storage.open_read(self.path) as stream:
                for line in stream:
                    # An empty line of text is a text, though one that comes to nothing.
                    if self._ending == "txt" or line.strip().removeprefix(BOM):
                        yield start, start + len(line)
                    start += len(line)

    def _csv_rows(self, lines: Iterator[bytes]) -> Iterator[tuple[_Span, list[str]]]:
        """The rows that are not empty, the header first."""
        end = 0

        def texts() -> Iterator[str]:
            nonlocal end
            for line in lines:
                end += len(line)
                # What is no UTF-8 is found again in the row that holds it.
                yield line.decode("utf-8-sig" if end == len(line) else "utf-8", "surrogateescape")

        reader = csv.reader(texts(), **_DIALECTS[self._ending])
        start, line = 0, 1
        try:
            # The reader takes no line beyond the row that it gives.
            for row in reader:
                if row:
                    yield (start, end), row
                start, line = end, reader.line_num + 1
        except csv.Error as error:
            raise RequestError(f"{self.path} cannot be read: the row that begins at line {line}: {error}") from None

    def _json_spans(self) -> Iterator[_Span]:
        content = storage.read_bytes(self.path)
        decoder = json.JSONDecoder()
        try:
            text = decoded(content, self.path)
            place = _skip(text, 0)
            if text[place : place + 1] != "[":
                raise ValueError("it holds no list")
            at, known = len(BOM) * content.startswith(BOM) + len(text[:place].encode()), place
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
        """The rows in a part of the list: JSON values, or the bytes of a line, or a CSV's header with the fields."""
        content = storage.read_bytes(self.path, *span)
        if self._ending == "json":
            yield from json.loads(b"[" + content + b"]")
        elif self._ending in _DIALECTS:
            header = self._header()
            for _, row in self._csv_rows(iter(io.BytesIO(content))):
                yield header, row
        else:
            lines = content.removeprefix(BOM).removesuffix(b"\n").split(b"\n")
            yield from (line for line in lines if self._ending == "txt" or line.strip())

    def _header(self) -> list[str]:
        with storage.open_read(self.path) as stream:
            header = next(self._csv_rows(stream))[1]
        try:
            "".join(header).encode()
        except UnicodeEncodeError:
            raise RequestError(f"{self.path}: its header is no UTF-8 text: save it as UTF-8") from None
        return header

    def _columns(self, runs: Iterable[_Span]) -> list[str]:
        """Those of the header, or of the rows of the first run that has any."""
        if self._ending in _DIALECTS:
            return self._header()
        if self._ending == "txt":
            return ["text"]
        for run in runs:
            rows = (self._readable(record) for record in self._records(run))
            if columns := list(dict.fromkeys(name for row in rows if row for name in row)):
                return columns
        return []

    def _readable(self, record: object) -> dict[str, Any] | None:
        try:
            return self._row(record)
        except (ValueError, RecursionError):
            return None


def spoken(found: object) -> object:
    """The first answer of a LLaVA conversation; anything else as it is."""
    if not isinstance(found, list):
        return found
    turns = [turn for turn in found if isinstance(turn, dict)]
    return next((turn.get("value") for turn in turns if turn.get("from") == "gpt"), None) if turns else found


def _skip(text: str, place: int) -> int:
    """The next place in `text` that is no white space."""
    while text[place : place + 1].isspace():
        place += 1
    return place
