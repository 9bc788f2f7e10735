"""A folder of images and a list of them with captions: CSV, TSV, JSON lines, or a JSON list as of LLaVA-CC3M."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

from sharelock_ray import storage
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.sources.listing import called, captions, class_label, raise_unless_its_own, read_image, value
from sharelock_ray.sources.lists import CAPTION_COLUMNS, ListSource, spoken
from sharelock_ray.sources.sample import CAPTIONS, IMAGES, LABELS, Content, Reject, Sample, Shard, printable

# A store with more images than this among a tenth of the rows at hand, or with most of them, is one that a list needs.
_MANY = 100
# Other stores that are asked whether the network is there.
_PROBES = 8
_IMAGE_COLUMNS = ("image", "file_name", "filename", "filepath", "image_path", "path")


class TableSource(ListSource):
    """Images that a list names; a column that is left out is found by its usual names. Labels have to be named."""

    format: Literal["table"] = "table"
    images: storage.Uri | None = None
    """The folder that the list's paths start from; without one, the list's own."""
    image_column: str | None = None
    label_column: str | None = None
    """Holds class indices."""

    @property
    def provides(self) -> frozenset[Content]:
        found: set[Content] = {IMAGES}
        if self.caption_column != "":
            found.add(CAPTIONS)
        if self.label_column:
            found.add(LABELS)
        return frozenset(found)

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

    def _samples(self, shard: Shard) -> Iterator[Sample | Reject]:
        # Stores that rows name: whether they answered, or what they failed with.
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
                        f"{key}: the image {printable(uri)} cannot be read ({why}): see that its storage can be "
                        f"reached, and run the same command again to continue, or take the row out of the list"
                    ) from error
                if isinstance(error, storage.NoAnswerError):
                    failed[store] = error
                item = Reject.of(key, "read", error)
            if isinstance(item, Sample) and store is not None:
                answered.add(store)
            yield item

    def _is_of_few(self, uri: str, store: str, shard: Shard, answered: set[str]) -> bool:
        """Whether that an image cannot be had from its store is a matter of few rows, and not of a storage as a whole.

        A row may name a host that is gone for good, which must not keep the others from being read. But where the store
        that holds the images is down, or the network is, rows would be lost that the next run can read. Which it is,
        the rows of the shard and the first ones of the list tell, and whether others answer.
        """
        first = islice(self._spans(), self.rows_per_shard)
        records = (record for span in first for record in self._records(span))
        rows = [*(row for _, row in self._rows(shard)), *map(self._readable, records)]
        named = (self._uri_of(row) for row in rows if isinstance(row, dict))
        uris = [each for each in named if each is not None]
        same = [each for each in uris if _store(each) == store]
        # Unlike S3, which refuses everything by the same answer, a web server may refuse one image.
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
    """What answers for a URI, or fails, as a whole: its host, or all of S3; None for this machine's own disk."""
    if storage.is_local(uri):
        return None
    protocol, _, rest = uri.partition("://")
    return "s3" if protocol in ("s3", "s3a") else f"{protocol}://{rest.partition('/')[0]}"


def _answers(uri: str) -> bool:
    """Whether the store of a URI can be reached; it may say that there is no such image."""
    try:
        read_image(uri)
    except Exception as error:
        try:
            raise_unless_its_own(error)
        except Exception:
            return False
    return True
