"""Scores a model on a benchmark in one language, or its frozen features: a record, and what it did with each sample.

A question knows the right answers without projecting anything, so an equal one of an earlier evaluation need not be
asked again.
"""

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.accuracy import accuracies
from sharelock_ray.evaluation.attributes import Attributes
from sharelock_ray.evaluation.benchmark import Benchmark, Classes, check_labels
from sharelock_ray.evaluation.ceilings import ceiling_of
from sharelock_ray.evaluation.choices import Choice
from sharelock_ray.evaluation.names import digest, sharing_note
from sharelock_ray.evaluation.ranks import Ranks, nearest, ranks
from sharelock_ray.evaluation.result import (
    AnyLabelRecord,
    AnyLabelResult,
    BenchmarkRequest,
    CompositionalRecord,
    EvaluationRecord,
    FeatureSetUse,
    FrozenTask,
    MultiLabelRecord,
    NeighboursRecord,
    ProbeRecord,
    RetrievalRecord,
    Ties,
    ZeroShotRecord,
    ZeroShotResult,
)
from sharelock_ray.evaluation.samples import classified, retrieved
from sharelock_ray.evaluation.scoring import class_prototypes, require_all, translated_rows
from sharelock_ray.evaluation.statistics import proportion
from sharelock_ray.evaluation.tasks.compositional import choices, compositional
from sharelock_ray.evaluation.tasks.multi_label import multi_label
from sharelock_ray.evaluation.tasks.neighbours import neighbours
from sharelock_ray.evaluation.tasks.probe import linear_probe
from sharelock_ray.evaluation.tasks.retrieval import recalls
from sharelock_ray.evaluation.tasks.zero_shot import any_class_ranks, class_ranks
from sharelock_ray.features.featureset import FeatureSet, join
from sharelock_ray.features.manifest import Manifest
from sharelock_ray.runs.heads import TrainedHeads

_SOFTWARE = ("sharelock-ray", "torch", "numpy", "scipy")
_PREPROCESSING = ("image_size", "resize", "crop_mode", "interpolation")


class Gallery:
    """The images of a benchmark as a model sees them; projected on first use, once for all languages."""

    def __init__(self, features: FeatureSet, heads: TrainedHeads) -> None:
        self.features = features
        self.heads = heads

    @cached_property
    def projected(self) -> torch.Tensor:
        """(N, D) unit vectors."""
        return self.heads.project(self.features)


@dataclass(frozen=True, kw_only=True)
class Question(ABC):
    """What is asked of a benchmark.

    Args:
        name: of the benchmark.
        language: of the class names and other texts.
        folder: of the images.
    """

    name: str
    benchmark: Benchmark
    language: str
    folder: str
    ties: Ties
    images: FeatureSet

    @property
    @abstractmethod
    def request(self) -> BenchmarkRequest:
        """Names what is measured."""

    @abstractmethod
    def answer(self, gallery: Gallery) -> tuple[EvaluationRecord, pa.Table]:
        """Scores the model of `gallery`, or the features.

        Returns:
            The record, and a table with a row for each sample.

        Raises:
            RequestError: the features were made by other encoders than the training's, or nothing can be scored.
            RunError: a text could not be encoded.
        """

    @cached_property
    def _classes(self) -> Classes | None:
        if self.benchmark.templates is None:
            return None
        return self.benchmark.classes_in(self.language, self.folder)

    @property
    def _names(self) -> tuple[str, ...]:
        assert self._classes is not None, "a task without classes"
        return self._classes.names

    def _request(self, **fields: Any) -> BenchmarkRequest:
        encoder = self.images.manifest.encoder
        return BenchmarkRequest(
            name=self.name,
            ties=self.ties,
            images=_use(self.images),
            preprocessing={name: encoder[name] for name in _PREPROCESSING if name in encoder},
            class_digest=None if self._classes is None else digest(self._names),
            **fields,
        )

    def _class_of_label(self, features: FeatureSet) -> dict[int, int]:
        assert self._classes is not None, "a task without classes"
        folders = _class_folders(features.manifest)
        place = features.manifest.inputs[0].uri.rpartition("/")[0] if folders else self.folder
        return self._classes.of_labels(folders, place)

    def _labelled(self, features: FeatureSet) -> tuple[np.ndarray, np.ndarray]:
        """(M,) rows of the images of the classes, and (M,) their classes."""
        assert self._classes is not None, "a task without classes"
        labels, of_label = features.labels, self._class_of_label(features)
        known = np.flatnonzero(~np.isnan(labels))
        present, place = np.unique(labels[known].astype(np.int64), return_inverse=True)
        if self._classes.labels is None and _class_folders(features.manifest) is None:
            check_labels(present.tolist(), len(self._names), self.name)
        classes = np.array([of_label.get(label, -1) for label in present.tolist()], np.int64)[place]
        if not (classes >= 0).any():
            raise RequestError(
                f"no {features.manifest.split} image of {self.name} has the label of a class: check {self.folder}"
            )
        return known[classes >= 0], classes[classes >= 0]

    def _table(self, rows: np.ndarray, labels: pa.Array, predicted: np.ndarray, found: Ranks) -> pa.Table:
        return classified(self.images.table["key"].take(rows), labels, predicted, found)

    def _fields(self, scored: int, *notes: str | None) -> dict[str, Any]:
        """Fields of every record; `scored` is the number of images or examples."""
        size, title = self.benchmark.size, self.request.title
        notes = (
            *notes,
            _unread(self.images, self.name),
            f"{title}: {scored:,} of {size:,} are scored" if size not in (None, scored) else None,
        )
        return {
            "benchmark": self.request,
            "software": {name: importlib.metadata.version(name) for name in _SOFTWARE},
            "dataset": self.name,
            "split": "test",
            "notes": tuple(filter(None, notes)),
        }


@dataclass(frozen=True, kw_only=True)
class FrozenQuestion(Question):
    """A benchmark by the frozen vision features of its training images, whatever is aligned with them.

    It predicts how well an encoder can be aligned (SAIL, arXiv 2412.04616).
    """

    task: FrozenTask
    training: FeatureSet

    @cached_property
    def request(self) -> BenchmarkRequest:
        """Names what is measured: no model, and no texts."""
        truth = [sorted(self._class_of_label(features).items()) for features in (self.images, self.training)]
        return self._request(
            frozen=self.task, recall_at=(), training_images=_use(self.training), truth_digest=digest(truth)
        )

    def answer(self, gallery: Gallery) -> tuple[EvaluationRecord, pa.Table]:
        """Scores the features of `gallery`; see `Question.answer`."""
        self._require_same_folders()
        (known, of_known), (rows, labels) = self._labelled(self.training), self._labelled(self.images)
        if len(known) < 2:
            raise RequestError(f"{self.name} has 1 training image of its classes: give at least 2")
        training = self.training.embeddings[torch.from_numpy(known)]
        images = gallery.features.embeddings[torch.from_numpy(rows)]
        fields = self._fields(len(rows), _unread(self.training, self.name))
        record: EvaluationRecord
        if self.task == "linear_probe":
            probe, found = linear_probe(training, of_known, images, labels, self._names, ties=self.ties)
            record = ProbeRecord(**fields, result=probe)
        else:
            near, found = neighbours(training, of_known, images, labels, self._names, ties=self.ties)
            record = NeighboursRecord(**fields, result=near)
        return record, self._table(rows, pa.array(labels, pa.int32()), found.predicted, found)

    def _require_same_folders(self) -> None:
        """Without names of class folders, labels count them."""
        own, others = _class_folders(self.images.manifest), _class_folders(self.training.manifest)
        if self._classes and self._classes.folders is None and own and others and set(own) != set(others):
            differ = sorted({*own} ^ {*others})[0]
            raise RequestError(
                f"the training images of {self.name} are in other class folders than its images ({differ}): "
                f"give both the same, or name those of the classes in `folders`"
            )


@dataclass(frozen=True, kw_only=True)
class ModelQuestion(Question):
    """A benchmark in one language, of an aligned model.

    Args:
        model: SHA-256 of the checkpoint.
    """

    recall_at: tuple[int, ...]
    model: str
    texts: FeatureSet

    @cached_property
    def request(self) -> BenchmarkRequest:
        """Names what is measured."""
        return self._request(
            language=self.language,
            recall_at=self.recall_at if self.benchmark.task == "retrieval" else (),
            model=self.model,
            texts=_use(self.texts),
            template_digest=None if self._classes is None else digest(self._templates),
            truth_digest=self._truth_digest,
        )

    def answer(self, gallery: Gallery) -> tuple[EvaluationRecord, pa.Table]:
        """Scores the model of `gallery`; see `Question.answer`."""
        if self.benchmark.choices is not None:
            return self._compositional(gallery)
        if self._classes is None:
            return self._retrieval(gallery)
        if self.benchmark.image_labels is None:
            return self._zero_shot(gallery)
        if self.benchmark.task == "multi_label_classification":
            return self._multi_label(gallery)
        return self._any_label(gallery)

    @cached_property
    def _templates(self) -> tuple[str, ...]:
        return self.benchmark.templates_in(self.language, self.folder)

    @cached_property
    def _labels_of_images(self) -> list[tuple[int, ...]]:
        return self.benchmark.labels_of_images(self.images.keys.tolist(), self.folder)

    @cached_property
    def _examples(self) -> list[Choice]:
        return self.benchmark.choices_in(self.folder)

    @cached_property
    def _attributes(self) -> Attributes | None:
        return self.benchmark.attributes_in(self.folder)

    @property
    def _truth_digest(self) -> str | None:
        if self.benchmark.choices is not None:
            examples: list[Any] = [[each.kind, each.images, each.captions] for each in self._examples]
            known = self._attributes
            return digest([examples, known.images, known.texts] if known else examples)
        if self._classes is None:
            return None
        if self.benchmark.image_labels is not None:
            return digest(self._labels_of_images)
        return digest(sorted(self._class_of_label(self.images).items()))

    def _zero_shot(self, gallery: Gallery) -> tuple[EvaluationRecord, pa.Table]:
        rows, labels = self._labelled(self.images)
        image, prototypes = gallery.projected[torch.from_numpy(rows)], self._prototypes(gallery)
        every = np.arange(len(self._names))
        found, candidates = class_ranks(image, labels, prototypes, self._names, every, self.ties)
        result = ZeroShotResult(
            candidate_set="all" if self.benchmark.mask is None else "subset",
            **accuracies(found, labels, self._names, candidates, self.ties),
        )
        record = ZeroShotRecord(**self._scope(gallery, len(rows)), templates=self._templates, result=result)
        return record, self._table(rows, pa.array(labels, pa.int32()), found.predicted, found)

    def _any_label(self, gallery: Gallery) -> tuple[EvaluationRecord, pa.Table]:
        rows, has_class, labels = self._several_labels()
        image, prototypes = gallery.projected[torch.from_numpy(rows)], self._prototypes(gallery)
        found, candidates = any_class_ranks(image, has_class, prototypes, self._names, self.ties)
        result = AnyLabelResult(
            images=len(rows),
            ties=self.ties,
            candidates=candidates,
            classes=int(has_class.any(0).sum()),
            chance=float(has_class.sum(1).mean() / candidates),
            top_1=proportion(found.ahead == 0),
            top_5=proportion(found.ahead < 5),
            tied=int(found.tied.sum()),
        )
        record = AnyLabelRecord(**self._scope(gallery, len(rows)), templates=self._templates, result=result)
        return record, self._table(rows, labels, nearest(image, prototypes), found)

    def _multi_label(self, gallery: Gallery) -> tuple[EvaluationRecord, pa.Table]:
        rows, has_class, labels = self._several_labels()
        image, prototypes = gallery.projected[torch.from_numpy(rows)], self._prototypes(gallery)
        result = multi_label(image, has_class, prototypes, self._names, self.ties)
        record = MultiLabelRecord(**self._scope(gallery, len(rows)), templates=self._templates, result=result)
        scores = pa.array((image @ prototypes.T).tolist(), pa.list_(pa.float32()))
        return record, pa.table({"key": self.images.table["key"].take(rows), "label": labels, "score": scores})

    def _retrieval(self, gallery: Gallery) -> tuple[EvaluationRecord, pa.Table]:
        if self.benchmark.translations is None:
            pairs = join(self.images, self.texts)
            captions, of_images = pairs.caption_rows, np.repeat(pairs.vision_rows, np.diff(pairs.caption_start))
            if not len(captions):
                raise RequestError(f"no image of {self.name} has a caption: check {self.folder}")
        else:
            captions, of_images = translated_rows(self.images, self.texts)[self.language]
        rows, owner = np.unique(of_images, return_inverse=True)
        image = gallery.projected[torch.from_numpy(rows)]
        by_image, by_text = ranks(image, gallery.heads.project(self.texts, captions), owner, self.ties)
        result = recalls(by_image, by_text, owner, self.recall_at, self.ties)
        record = RetrievalRecord(**self._scope(gallery, len(rows)), language=self.language, result=result)
        keys, texts = (
            self.images.table["key"].take(rows),
            self.texts.table.select(["caption_id", "text"]).take(captions),
        )
        return record, retrieved(keys, owner, texts, by_image, by_text)

    def _compositional(self, gallery: Gallery) -> tuple[EvaluationRecord, pa.Table]:
        row_of = {key: row for row, key in enumerate(self.images.keys.tolist())}
        examples = self._examples
        here = [place for place, each in enumerate(examples) if all(key in row_of for key in each.images)]
        if not here:
            raise RequestError(
                f"no image of the examples of {self.name} is in {self.folder}: check the names of images"
            )
        captions = {len(each.captions) for each in examples}
        if len(captions) > 1:
            raise RequestError(
                f"the examples of {self.name} have {min(captions)} to {max(captions)} captions: give all "
                f"the same number"
            )
        require_all(self.texts)
        count = captions.pop()
        image_rows = np.array([[row_of[key] for key in examples[place].images] for place in here])
        text_rows = np.array(here)[:, None] * count + np.arange(count)
        image = gallery.projected[torch.from_numpy(image_rows)]
        text = gallery.heads.project(self.texts, text_rows.reshape(-1)).unflatten(0, text_rows.shape)
        kinds = [examples[place].kind for place in here]
        of_images = np.unique(image_rows, axis=0, return_inverse=True)[1].reshape(-1)
        result = compositional(image, text, kinds if any(kinds) else None, self.ties, of_images)
        scope = self._scope(gallery, len(here))
        if len(here) < len(examples):
            lost = f"{len(examples) - len(here):,} of {len(examples):,} examples of {self.name} lack an image"
            scope["notes"] = (*scope["notes"], lost)
        found = choices(image, text, self.ties)
        by_probes: dict[str, pa.Array] = {}
        if self._attributes is not None:
            sets = (self.images, image_rows), (self.texts, text_rows)
            said = [examples[place].captions for place in here]
            limit, by_probes, note = ceiling_of(*sets, said, kinds, found, of_images, self._attributes, self.ties)
            result = result.model_copy(update={"ceiling": limit})
            scope["notes"] = (*scope["notes"], *([f"{self.name}: {note}"] if note else []))
        hits = {"text": found.text, "image": found.image, "group": found.group}
        table = {
            "example": pa.array(here, pa.int32()),
            "key": pa.array([list(examples[place].images) for place in here], pa.list_(pa.string())),
            "kind": kinds,
            **{name: values for name, values in hits.items() if values is not None},
            "tied": found.tied,
            **by_probes,
        }
        return CompositionalRecord(**scope, language=self.language, result=result), pa.table(table)

    def _several_labels(self) -> tuple[np.ndarray, np.ndarray, pa.Array]:
        """(M,) rows of the images that have classes, (M, C) bool of these, and the same as M lists."""
        found = self._labels_of_images
        check_labels((label for labels in found for label in labels), len(self._names), self.name)
        rows = np.array([row for row, labels in enumerate(found) if labels], np.int64)
        has_class = np.zeros((len(rows), len(self._names)), bool)
        for place, row in enumerate(rows.tolist()):
            has_class[place, list(found[row])] = True
        return rows, has_class, pa.array([list(found[row]) for row in rows], pa.list_(pa.int32()))

    def _prototypes(self, gallery: Gallery) -> torch.Tensor:
        return class_prototypes(gallery.heads, self.texts, np.arange(len(self._names)))

    def _scope(self, gallery: Gallery, scored: int) -> dict[str, Any]:
        """Fields of every record; `scored` is the number of images or examples."""
        shared = None if self._classes is None else sharing_note(self._names)
        fields = self._fields(scored, shared and f"{self.request.title}: {shared}")
        return {**fields, "model_step": gallery.heads.checkpoint.position.step}


def _unread(features: FeatureSet, name: str) -> str | None:
    """A note about images of a benchmark that have no features, or None."""
    kind, rejects = "training images" if features.manifest.split == "train" else "images", features.manifest.rejects
    return f"{rejects:,} {kind} of {name} could not be read and do not count" if rejects else None


def _use(features: FeatureSet) -> FeatureSetUse:
    return FeatureSetUse(path="/".join(features.uri.rstrip("/").split("/")[-4:]), digest=features.manifest.digest)


def _class_folders(manifest: Manifest) -> Sequence[str] | None:
    """The class folders that a set was made of, in the order of their labels; None if it was made of files.

    The set may outlive its images, so these are not listed. The name of a file lacks its extension.
    """
    named = all(each.uri.rpartition("/")[2] == each.name for each in manifest.inputs)
    return [each.name for each in manifest.inputs] if named else None
