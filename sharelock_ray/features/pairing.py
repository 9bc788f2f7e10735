"""Which images and texts are trained on together: masks over existing feature sets, which are not extracted again."""

from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.config import Config, content_hash
from sharelock_ray.errors import RequestError
from sharelock_ray.features.featureset import FeatureSet, Pairs, join, join_by_label

_KEY, _CAPTION = "key", "caption_id"
_SHOWN = 3


class Removed(Config):
    """Images and captions to leave out: a Parquet file with the column `key`, and a column `caption_id` for captions.

    A row without a caption's id leaves out the image with all its captions.
    """

    uri: storage.Uri
    sha256: str

    @classmethod
    def of(cls, uri: str) -> "Removed":
        """Raises:
        RequestError: there is no such file.
        """
        with storage.reading(uri, "table of removed captions"):
            return cls(uri=uri, sha256=storage.sha256(storage.read_bytes(uri)))

    def table(self) -> pa.Table:
        """The columns `key`, and `caption_id` with nulls.

        Raises:
            RequestError: the file is missing, is no such table, or was changed.
        """
        with storage.reading(self.uri, "table of removed captions"):
            data = storage.read_bytes(self.uri)
        if storage.sha256(data) != self.sha256:
            raise RequestError(f"{self.uri} was changed after the run had read it: run the same command again")
        try:
            table = pq.read_table(pa.BufferReader(data))
            ids = table[_CAPTION] if _CAPTION in table.column_names else pa.nulls(len(table))
            return pa.table({_KEY: table[_KEY].cast(pa.string()), _CAPTION: ids.cast(pa.int32())})
        except (pa.ArrowException, KeyError) as error:
            reason = " ".join(str(error).split())
            raise RequestError(f"{self.uri} is no Parquet table with the column `{_KEY}`: {reason}") from None


class Pairing(Config):
    """How images and texts are paired, and which pairs are trained on. By default all images with their own captions.

    Args:
        by: `key` pairs an image with its own captions, `label` with the texts of its class.
        classes: labels of the images that are trained on; None: all images.
        class_count: number of classes that `classes` was chosen from.
        removed: images and captions that are not trained on.
        concepts: hash of the split of concepts that `classes` and `removed` belong to.
    """

    by: Literal["key", "label"] = "key"
    classes: tuple[int, ...] | None = None
    class_count: int | None = None
    removed: Removed | None = None
    concepts: str | None = None

    @property
    def identity(self) -> dict[str, str]:
        """What tells trainings on the same feature sets apart; empty for the default."""
        found: dict[str, Any] = {
            "by": self.by if self.by != "key" else None,
            "concepts": self.concepts,
            "classes": content_hash(self.classes) if self.classes is not None else None,
            "removed": self.removed.sha256 if self.removed else None,
        }
        return {name: value for name, value in found.items() if value is not None}

    def joined(self, vision: FeatureSet, language: FeatureSet) -> Pairs:
        """All pairs of both sets.

        Raises:
            RequestError: the sets do not match.
        """
        return join_by_label(vision, language) if self.by == "label" else join(vision, language)

    def kept(self, pairs: Pairs) -> Pairs:
        """The pairs that are trained on.

        Raises:
            RequestError: the sets do not match the split: there are no labels, a label or a removed key is unknown, or
                no pair is left.
        """
        found = pairs
        labels = pairs.vision.labels[pairs.vision_rows]
        # Without labels, the removed captions alone tell what is seen.
        if self.classes is not None and not (self.removed and np.isnan(labels).all()):
            self._require_classes(pairs.vision, labels)
            found = found.select(np.isin(labels, self.classes))
        if self.removed is not None:
            found = _without(found, self.removed)
        if len(pairs) and not len(found):
            raise RequestError(
                f"the split of concepts {self.concepts} leaves none of the {len(pairs):,} pairs of {pairs.vision.uri}: "
                f"check that it was made for these classes"
            )
        return found

    def pairs(self, vision: FeatureSet, language: FeatureSet) -> Pairs:
        """The pairs of both sets that are trained on; raises as `joined` and `kept`."""
        return self.kept(self.joined(vision, language))

    def _require_classes(self, vision: FeatureSet, labels: np.ndarray) -> None:
        if np.isnan(labels).all() and len(labels):
            raise RequestError(
                f"{vision.uri} has no labels, by which a split of concepts selects images: give labels, or the "
                f"captions to leave out, as `data.concepts.removed`"
            )
        if self.class_count is not None and (bad := labels[(labels < 0) | (labels >= self.class_count)]).size:
            raise RequestError(
                f"{vision.uri} has the label {bad[0]:.0f}, but the split of concepts {self.concepts} is of "
                f"{self.class_count:,} classes: take the split of these classes"
            )


def _without(pairs: Pairs, removed: Removed) -> Pairs:
    table = removed.table()
    known = [pairs.vision.table[_KEY], pairs.language.table[_KEY]]
    unknown = table[_KEY].filter(pc.invert(pc.or_(*(pc.is_in(table[_KEY], value_set=keys) for keys in known))))
    # An input that could not be encoded is no pair anyway.
    missing = sorted(set(unknown.to_pylist()) - pairs.vision.rejected_keys - pairs.language.rejected_keys)
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
        raise RequestError(
            f"{len(missing):,} keys of {removed.uri} are not in {pairs.vision.uri} ({shown}): take the table that was "
            f"made from these data"
        )
    whole = pc.is_null(table[_CAPTION])
    images = pc.is_in(pairs.vision.table[_KEY], value_set=table[_KEY].filter(whole)).to_numpy()
    found = pairs.select(~images[pairs.vision_rows])
    if _CAPTION not in pairs.language.table.column_names or pc.all(whole).as_py():
        return found
    captions = pc.is_in(_captions(pairs.language.table), value_set=_captions(table.filter(pc.invert(whole)))).to_numpy()
    return found.without_captions(captions[found.caption_rows])


def _captions(table: pa.Table) -> pa.ChunkedArray:
    """One string per caption."""
    return pc.binary_join_element_wise(table[_CAPTION].cast(pa.string()), table[_KEY], "/")
