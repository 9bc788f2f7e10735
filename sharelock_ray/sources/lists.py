"""Base of the sources that read a list file (CSV, TSV, JSON lines, JSON) with one row per sample.

`table` (images and captions) and `texts` (captions only) interpret the rows.
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
from sharelock_ray.sources.listing import BOM, file_version, matching_column, row_name, sample_key, unique, value
from sharelock_ray.sources.sample import Reject, Sample, Shard

CAPTION_COLUMNS = ("caption", "blip_caption", "captions", "text", "title", "conversations")
_KEY_COLUMNS = ("id", "key")
# A TSV has no quoting, as CC3M's own. In a CSV, `strict` rejects an unclosed quotation mark, which would otherwise
# swallow the following rows.
_DIALECTS: dict[str, dict[str, Any]] = {
    "csv": {"delimiter": ",", "strict": True},
    "tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},
}

_Span = tuple[int, int]


class ListSource(Config):
    """Reads a list file in shards of consecutive rows."""

    endings: ClassVar[tuple[str, ...]] = ("csv", "tsv", "jsonl", "json")

    path: storage.Uri
    """The list file; its extension selects the format."""
    caption_column: str | None = None
    """Column with a text, a list of texts, or a LLaVA conversation (its first answer is the caption); "" for none."""
    key_column: str | None = None
    """Column with the keys; without one, rows are numbered."""
    rows_per_shard: Annotated[int, Field(ge=1)] = 1000

    def shards(self) -> list[Shard]:
        """Shards of `rows_per_shard` rows; `uri` ends in the byte offset of the first row.

        Raises:
            RequestError: the list is missing, empty or unreadable, or lacks a column.
        """
        if self._ending not in self.endings:
            kinds = ", ".join(f".{ending}" for ending in self.endings)
            raise RequestError(f"{self.path} is not a supported list: its name must end in {kinds}")
        with storage.reading(self.path, "list"):
            version = file_version(self.path)
            if (start := start_of(self.path)) and (kind := looks_like(start)):
                raise RequestError(f"{self.path} is not a list but {kind}")
            runs = list(self._runs())
        if not runs:
            raise RequestError(f"{self.path} has no rows")
        self._check(self._columns(runs))
        stem = self.path.rpartition("/")[2].rpartition(".")[0]
        return [
            Shard(index, f"{stem}-{index:05d}", f"{self.path}#{start}", end - start, version)
            for index, (start, end) in enumerate(runs)
        ]

    def keys_of(self, shard: Shard) -> Iterator[str]:
        """The keys of the rows."""
        return (key for key, _ in self._rows(shard))

    def version(self, shard: Shard) -> str:
        """Size, and ETag or modification time, of the list."""
        return file_version(self.path)

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The samples of a shard's rows; an invalid row is a reject."""
        yield from unique(self._samples(shard))

    @abstractmethod
    def _check(self, columns: list[str]) -> None:
        """Raises RequestError if a required column is missing."""

    @abstractmethod
    def _sample(self, key: str, row: dict[str, Any]) -> Sample | Reject:
        """Converts a row to a sample or a reject."""

    def _has_captions(self, columns: list[str]) -> bool:
        """Whether a caption column is set (`_named` checks that it exists) or found by its usual name."""
        return bool(self.caption_column) or (
            self.caption_column is None and any(matching_column(name, columns) for name in CAPTION_COLUMNS)
        )

    def _named(self, columns: list[str], *asked: str | None) -> None:
        """Raises RequestError if one of the columns `asked` is missing."""
        for column in asked:
            if column and matching_column(column, columns) is None:
                raise RequestError(f"{self.path} has no column {column!r}: its columns are {', '.join(columns)}")

    def _samples(self, shard: Shard) -> Iterator[Sample | Reject]:
        for key, row in self._rows(shard):
            yield Reject.of(key, "read", row) if isinstance(row, Exception) else self._sample(key, row)

    def _rows(self, shard: Shard) -> Iterator[tuple[str, dict[str, Any] | Exception]]:
        """Key and fields of each row; for an invalid row, key and error."""
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
                raise ValueError(f"the row has {len(fields)} fields, but the header has {len(header)}")
            return dict(zip(header, fields, strict=True))
        if isinstance(record, bytes):
            record = {"text": record.decode()} if self._ending == "txt" else json.loads(record)
        if not isinstance(record, dict):
            raise ValueError("the row is not a JSON object")
        return record

    @property
    def _ending(self) -> str:
        return self.path.rpartition(".")[2].lower()

    def _runs(self) -> Iterator[_Span]:
        """Start and end of each shard, in bytes."""
        spans = self._spans()
        while run := list(islice(spans, self.rows_per_shard)):
            yield run[0][0], run[-1][1]

    def _spans(self) -> Iterator[_Span]:
        """Start and end of each row, in bytes."""
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
                    # An empty line of a text file is a sample without captions.
                    if self._ending == "txt" or line.strip().removeprefix(BOM):
                        yield start, start + len(line)
                    start += len(line)

    def _csv_rows(self, lines: Iterator[bytes]) -> Iterator[tuple[_Span, list[str]]]:
        """The non-empty rows, the header first."""
        end = 0

        def texts() -> Iterator[str]:
            nonlocal end
            for line in lines:
                end += len(line)
                # Invalid UTF-8 is reported later, for the row that holds it.
                yield line.decode("utf-8-sig" if end == len(line) else "utf-8", "surrogateescape")

        reader = csv.reader(texts(), **_DIALECTS[self._ending])
        start, line = 0, 1
        try:
            # The CSV reader consumes no line beyond the current row, so `end` is exact.
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
                raise ValueError("it is not a JSON list")
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
                    raise ValueError(f"the list is truncated at character {place}")
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{self.path} cannot be read: {error}") from None

    def _records(self, span: _Span) -> Iterator[object]:
        """The records in a part of the list: JSON values, lines as bytes, or pairs of a CSV's header and fields."""
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
            raise RequestError(f"{self.path}: its header is not UTF-8 text: save it as UTF-8") from None
        return header

    def _columns(self, runs: Iterable[_Span]) -> list[str]:
        """Column names: those of the header, or of the rows of the first shard with valid rows."""
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
    """The first answer of a LLaVA conversation; any other value unchanged."""
    if not isinstance(found, list):
        return found
    turns = [turn for turn in found if isinstance(turn, dict)]
    return next((turn.get("value") for turn in turns if turn.get("from") == "gpt"), None) if turns else found


def _skip(text: str, place: int) -> int:
    """The next position in `text` that is not white space."""
    while text[place : place + 1].isspace():
        place += 1
    return place
