"""A folder of images and a list of them with captions: CSV, TSV, JSON lines, or a JSON list as of LLaVA-CC3M."""

from typing import Any, Literal

from sharelock_ray import storage
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.listing import called, captions, class_label, raise_unless_its_own, read_image, value
from sharelock_ray.sources.lists import CAPTION_COLUMNS, ListSource, spoken
from sharelock_ray.sources.sample import Reject, Sample

_IMAGE_COLUMNS = ("image", "file_name", "filename", "filepath", "image_path", "path")


class TableSource(ListSource):
    """Images that a list names; a column that is left out is found by its usual names. Labels have to be named."""

    format: Literal["table"] = "table"
    images: storage.Uri | None = None
    """The folder that the list's paths start from; without one, the list's own."""
    image_column: str | None = None
    label_column: str | None = None
    """Holds class indices."""

    def require_captions(self) -> None:
        """Raises RequestError where the list has no column of captions, and none is not what was asked for."""
        columns = self._columns(self._runs())
        if self.caption_column is None and not self._has_captions(columns):
            raise RequestError(
                f"{self.path} has no captions for the language encoders: name their column as `caption_column`, "
                f'or set `caption_column: ""` for none; the columns are {", ".join(columns)}'
            )

    def _check(self, columns: list[str]) -> None:
        if not self.image_column and not any(called(column, columns) for column in _IMAGE_COLUMNS):
            raise RequestError(f"{self.path} names no images: set `image_column` to one of {', '.join(columns)}")
        self._named(columns, self.image_column, self.caption_column, self.label_column, self.key_column)

    def _sample(self, key: str, row: dict[str, Any]) -> Sample | Reject:
        try:
            texts = captions(spoken(value(row, self.caption_column, CAPTION_COLUMNS)))
            label = value(row, self.label_column, ())
            image = value(row, self.image_column, _IMAGE_COLUMNS)
            if not isinstance(image, str | None):
                raise ValueError(f"the image is a {type(image).__name__}, not a path")
            return Sample(
                key,
                None if image is None else read_image(self._image_uri(image)),
                texts,
                None if label is None else class_label(str(label)),
            )
        except (OSError, ValueError, RequestError) as error:
            raise_unless_its_own(error)
            return Reject.of(key, "read", error)

    def _image_uri(self, name: str) -> str:
        if name.startswith("/") or "://" in name:
            return name
        return storage.join(self.images or self.path.rpartition("/")[0], name)
