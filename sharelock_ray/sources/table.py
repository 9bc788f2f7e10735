"""A list of image paths with captions: CSV, TSV, JSON lines, or a JSON list as in LLaVA-CC3M."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

from sharelock_ray import storage
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.sources.listing import (
    captions,
    class_label,
    matching_column,
    raise_unless_its_own,
    read_image,
    value,
)
from sharelock_ray.sources.lists import CAPTION_COLUMNS, ListSource, spoken
from sharelock_ray.sources.sample import CAPTIONS, IMAGES, LABELS, Content, Reject, Sample, Shard, escaped

# A failing store ends the run if it holds more than a tenth of the images examined, and also more than this number or
# more than half of them.
_MANY = 100
# Maximum number of other stores that are asked, to tell a dead store from a dead network.
_PROBES = 8
_IMAGE_COLUMNS = ("image", "file_name", "filename", "filepath", "image_path", "path")


class TableSource(ListSource):
    """Images listed in a table.

    A column that is not set is searched by its usual names, except `label_column`.
    """

    format: Literal["table"] = "table"
    images: storage.Uri | None = None
    """The folder of relative image paths; the list's own folder by default."""
    image_column: str | None = None
    label_column: str | None = None
    """Column of class indices."""

    @property
    def provides(self) -> frozenset[Content]:
        found: set[Content] = {IMAGES}
        if self.caption_column != "":
            found.add(CAPTIONS)
        if self.label_column:
            found.add(LABELS)
        return frozenset(found)

    def require_captions(self) -> None:
        """Raises RequestError if the list has no caption column, unless `caption_column` is `""`."""
        columns = self._columns(self._runs())
        if self.caption_column is None and not self._has_captions(columns):
            raise RequestError(
                f"{self.path} has no captions for the language encoders: name their column as `caption_column`, "
                f'or set `caption_column: ""` for none; the columns are {", ".join(columns)}'
            )

    def _check(self, columns: list[str]) -> None:
        if not self.image_column and not any(matching_column(column, columns) for column in _IMAGE_COLUMNS):
            raise RequestError(f"{self.path} has no image column: set `image_column` to one of {', '.join(columns)}")
        self._named(columns, self.image_column, self.caption_column, self.label_column, self.key_column)

    def _samples(self, shard: Shard) -> Iterator[Sample | Reject]:
        # Stores that answered, and the errors of those that failed.
        answered: set[str] = set()
        failed: dict[str, Exception] = {}
        for key, row in self._rows(shard):
            if isinstance(row, Exception):
                yield Reject.of(key, "read", row)
                continue
            uri = self._uri_of(row)
            store = None if uri is None else _store(uri)
            if store in failed:
                yield Reject.of(key, "read", failed[store])
                continue
            try:
                item = self._sample(key, row)
            except Exception as error:
                if uri is None or store is None or isinstance(error, MemoryError):
                    raise
                if not self._is_of_few(uri, store, shard, answered):
                    kind = RequestError if isinstance(error, RequestError) else RunError
                    why = " ".join(str(error).split()) or type(error).__name__
                    raise kind(
                        f"{key}: the image {escaped(uri)} cannot be read ({why}): check that its storage can be "
                        f"reached, and run the same command again to continue, or remove the row from the list"
                    ) from error
                if isinstance(error, storage.NoAnswerError):
                    failed[store] = error
                item = Reject.of(key, "read", error)
            if isinstance(item, Sample) and store is not None:
                answered.add(store)
            yield item

    def _is_of_few(self, uri: str, store: str, shard: Shard, answered: set[str]) -> bool:
        """Whether a store's failure concerns few rows only, so that they become rejects; otherwise the run must end.

        A dead host in a few rows must not block the others. But if the main store or the network is down, rejects would
        lose rows that a later run can read. The decision uses the share of the store among the rows of the shard and
        the first rows of the list, and whether other stores answer.
        """
        first = islice(self._spans(), self.rows_per_shard)
        records = (record for span in first for record in self._records(span))
        rows = [*(row for _, row in self._rows(shard)), *map(self._readable, records)]
        named = (self._uri_of(row) for row in rows if isinstance(row, dict))
        uris = [each for each in named if each is not None]
        same = [each for each in uris if _store(each) == store]
        # A web server may refuse a single image; S3 gives the same answer for every object.
        if store.startswith("http") and any(map(_answers, [each for each in same if each != uri][:1])):
            return True
        if len(same) > max(len(uris) / 10, min(_MANY, len(uris) / 2)):
            return False
        others = {of: each for each in uris if (of := _store(each)) not in (None, store)}
        if answered - {store} or not others:
            return True
        return any(map(_answers, list(others.values())[:_PROBES]))

    def _uri_of(self, row: dict[str, Any]) -> str | None:
        image = value(row, self.image_column, _IMAGE_COLUMNS)
        return self._image_uri(image) if isinstance(image, str) else None

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


def _store(uri: str) -> str | None:
    """The unit that answers or fails as a whole: a URI's host, or all of S3; None for the local disk."""
    if storage.is_local(uri):
        return None
    protocol, _, rest = uri.partition("://")
    return "s3" if protocol in ("s3", "s3a") else f"{protocol}://{rest.partition('/')[0]}"


def _answers(uri: str) -> bool:
    """Whether the store of a URI can be reached, even if it has no such image."""
    try:
        read_image(uri)
    except Exception as error:
        try:
            raise_unless_its_own(error)
        except Exception:
            return False
    return True
