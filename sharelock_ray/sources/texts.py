"""Texts without images, such as class names or prompts: the lines of a text file, or a column of a list."""

from typing import Any, ClassVar, Literal

from sharelock_ray.errors import RequestError
from sharelock_ray.sources.listing import captions, value
from sharelock_ray.sources.lists import CAPTION_COLUMNS, ListSource, spoken
from sharelock_ray.sources.sample import CAPTIONS, Content, Reject, Sample


class TextSource(ListSource):
    """Samples with captions and no image: one per line of a `.txt` file, or per row of another list.

    An empty line is a sample without captions, which encoders reject; so row numbers equal line numbers.
    """

    endings: ClassVar[tuple[str, ...]] = ("txt", *ListSource.endings)

    format: Literal["texts"] = "texts"

    @property
    def provides(self) -> frozenset[Content]:
        return frozenset({CAPTIONS})

    def _check(self, columns: list[str]) -> None:
        if not self._has_captions(columns):
            raise RequestError(f"{self.path} has no text column: set `caption_column` to one of {', '.join(columns)}")
        self._named(columns, self.caption_column, self.key_column)

    def _sample(self, key: str, row: dict[str, Any]) -> Sample | Reject:
        try:
            return Sample(key, None, captions(spoken(value(row, self.caption_column, CAPTION_COLUMNS))))
        except ValueError as error:
            return Reject.of(key, "read", error)
