"""Scores aligned heads on feature sets: the records of an evaluation, and the metrics of a study's trials.

Trials with different batch sizes and losses are scored by the same metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from sharelock_ray.batches.sampling import is_held_out
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.evaluation.names import sharing_note
from sharelock_ray.evaluation.ranks import nearest, ranks
from sharelock_ray.evaluation.result import (
    EvaluationRecord,
    Example,
    GeneralisedRecord,
    RetrievalRecord,
    RetrievalResult,
    ZeroShotRecord,
    ZeroShotResult,
)
from sharelock_ray.evaluation.samples import classified, of_records, retrieved
from sharelock_ray.evaluation.signatures.classes import memorised_classes, wrong_class_order
from sharelock_ray.evaluation.signatures.embeddings import collapsed_embeddings
from sharelock_ray.evaluation.signatures.evidence import Signature
from sharelock_ray.evaluation.tasks.generalised import (
    Decisions,
    Sides,
    best_gamma,
    decisions,
    generalised,
    unseen_accuracy,
)
from sharelock_ray.evaluation.tasks.retrieval import recalls, retrieval
from sharelock_ray.evaluation.tasks.zero_shot import ensemble, targets, zero_shot_ranks
from sharelock_ray.features.featureset import FeatureSet, Pairs
from sharelock_ray.runs.heads import TrainedHeads

_EXAMPLES = 24
_NO_LABELS = np.empty(0, np.int64), np.empty(0, np.int64)


GALLERY = 5000
"""Maximum number of validation pairs in the recall of a trial: the first ones by key."""


class Scored(NamedTuple):
    """What a split's scores are, and what they are made of."""

    records: list[EvaluationRecord]
    notes: list[str]
    """About skipped tasks."""
    signatures: list[Signature]
    """Failure signatures that the embeddings allow to compute."""
    samples: pa.Table
    """See `samples`."""


def evaluate(
    heads: TrainedHeads,
    images: FeatureSet,
    pairs: Pairs | None,
    split: str,
    class_names: Sequence[str] | None,
    prompts: FeatureSet | None,
    templates: Sequence[str],
    recall_at: Sequence[int],
    translations: FeatureSet | None = None,
    seen: np.ndarray | None = None,
) -> Scored:
    """Scores zero-shot classification on the labelled images, retrieval on `pairs`, and both in each language of the
    translations, where captions are the classes.

    A task that the split has no data for is skipped and noted. Only rows that are scored are projected.

    Args:
        images: vision set of the split.
        pairs: its images that have captions. None if its source provides no captions.
        class_names: by label. None if zero-shot classification is not requested.
        prompts: language set of the prompts of these classes. None if there are no labels.
        translations: language set whose keys are the language and the image's key (see `TranslationSource`).
        seen: (C,) bool, whether training named a class. None if it is not known.

    Raises:
        RequestError: the features were made by other encoders than the training's, a label has no name, the split has
            neither captions nor labels, or no translation belongs to an image.
    """
    rows, labels = labelled(images, len(class_names)) if class_names else _NO_LABELS
    captioned = pairs if pairs is not None and len(pairs) else None
    notes = [] if captioned else [f"retrieval is left out: no image of the {split} split has a caption"]
    if class_names is not None and not len(rows):
        why = f"no image of the {split} split has a label" if class_names else "`data.classes` names no class"
        notes.append(f"zero-shot classification is left out: {why}")
    if captioned is None and not len(rows):
        raise RequestError(f"there is nothing to evaluate: {'; '.join(notes)}")
    translated = {} if translations is None else translated_rows(images, translations)
    used = [rows, *([captioned.vision_rows] if captioned else []), *(of_images for _, of_images in translated.values())]
    scored = np.unique(np.concatenate(used))
    projected = heads.project(images, scored)

    def image_of(some: np.ndarray) -> torch.Tensor:
        return projected[np.searchsorted(scored, some)]

    step = heads.checkpoint.position.step
    scope: dict[str, Any] = {"dataset": images.manifest.dataset, "split": split, "model_step": step}
    found: list[tuple[EvaluationRecord, pa.Table]] = []
    signatures: list[Signature | None] = []
    if class_names and len(rows):
        assert prompts is not None, "labelled images without prompts"
        image = image_of(rows)
        prototypes = class_prototypes(heads, prompts, np.arange(len(class_names)))
        examples = _nearest_classes(images, rows, labels, image, prototypes, class_names)
        notes_on_names = tuple(filter(None, [sharing_note(class_names)]))
        of_names = scope | {"templates": tuple(templates), "notes": notes_on_names}
        keys = images.table["key"].take(rows)
        for result, placed, classes in zero_shot_ranks(image, labels, prototypes, class_names):
            shown = () if found else tuple(examples)
            predicted = classes[nearest(image, prototypes[classes])]
            samples = classified(keys, pa.array(labels, pa.int32()), predicted, placed)
            found.append((ZeroShotRecord(**of_names, result=result, examples=shown), samples))
        signatures.append(wrong_class_order(image, labels, prototypes, class_names))
        if seen is not None:
            signatures.append(memorised_classes(image, labels, prototypes, class_names, seen))
        if captioned is None:
            different = torch.from_numpy(targets(class_names)[0])
            signatures.append(collapsed_embeddings(image, prototypes[different], "classes"))
    if captioned is not None:
        image = image_of(captioned.vision_rows)
        text = heads.project(captioned.language, captioned.caption_rows)
        owner = np.repeat(np.arange(len(captioned)), np.diff(captioned.caption_start))
        nearest_texts = tuple(_nearest_texts(captioned, image, text))
        keys = images.table["key"].take(captioned.vision_rows)
        captions = _captions(captioned.language, captioned.caption_rows)
        recall, samples = _retrieval(image, text, owner, keys, captions, recall_at)
        found.append((RetrievalRecord(**scope, result=recall, examples=nearest_texts), samples))
        signatures.append(collapsed_embeddings(image, text[_different_texts(captioned)], "captions"))
    for language, (of_language, of_images) in translated.items():
        assert translations is not None, "translated captions without a set"
        some, owner = np.unique(of_images, return_inverse=True)
        keys = images.table["key"].take(some)
        captions = _captions(translations, of_language)
        image, text = image_of(some), heads.project(translations, of_language)
        recall, samples = _retrieval(image, text, owner, keys, captions, recall_at)
        found.append((RetrievalRecord(**scope, language=language, result=recall), samples))
        named, samples = zero_shot_captions(image, text, owner, captions["text"].to_pylist(), keys)
        found.append((ZeroShotRecord(**scope, templates=(), language=language, result=named), samples))
    return Scored(
        [record for record, _ in found],
        notes,
        [signature for signature in signatures if signature is not None],
        of_records(found),
    )


def _captions(texts: FeatureSet, rows: np.ndarray) -> pa.Table:
    return texts.table.select(["caption_id", "text"]).take(rows)


def _retrieval(
    image: torch.Tensor,
    text: torch.Tensor,
    owner: np.ndarray,
    keys: pa.Array,
    captions: pa.Table,
    recall_at: Sequence[int],
) -> tuple[RetrievalResult, pa.Table]:
    """The recalls of both directions, and their samples; see `retrieval` and `samples.retrieved`."""
    by_image, by_text = ranks(image, text, owner)
    return recalls(by_image, by_text, owner, recall_at, "strict"), retrieved(keys, owner, captions, by_image, by_text)


@dataclass(frozen=True)
class Unseen:
    """How the unseen classes of a split of concepts are scored.

    Args:
        concepts: hash of the split.
        sides: the seen classes, also those for validation, and the unseen ones.
        validation: the classes that were trained on, and those for validation; None if there are none.
        training: vision set of the training, for images of `validation`.
        held_out: fraction of the training pairs that were for validation.
    """

    concepts: str
    sides: Sides
    validation: Sides | None
    training: FeatureSet
    held_out: float


def unseen_classes(
    heads: TrainedHeads,
    images: FeatureSet,
    prompts: FeatureSet,
    class_names: Sequence[str],
    templates: Sequence[str],
    split: str,
    unseen: Unseen,
) -> GeneralisedRecord:
    """Scores the unseen classes of a split of concepts, alone and together with the seen ones.

    The calibration is the one with the best harmonic mean on images of the training set that were not trained on: those
    of validation classes, as unseen ones, and those held out of the other seen classes.

    Args:
        images: vision set of the split.
        prompts: language set of the texts of classes, with one key per class.
        class_names: by label.
        templates: of the prompts, for the record.

    Raises:
        RequestError: no image has an unseen class, a label has no name, the features were made by other encoders than
            the training's, or there are no images to calibrate with.
    """
    prototypes = class_prototypes(heads, prompts, np.arange(len(class_names)))

    def decided(features: FeatureSet, rows: np.ndarray, labels: np.ndarray, sides: Sides) -> Decisions:
        return decisions(heads.project(features, rows), labels, prototypes, sides)

    rows, labels = labelled(images, len(class_names))
    some = unseen.sides.rows(labels)
    if not np.isin(labels, unseen.sides.unseen).any():
        raise RequestError(f"no image of {images.uri} has an unseen class of the split of concepts {unseen.concepts}")
    gamma = None
    if unseen.validation is not None:
        known, of_known = labelled(unseen.training, len(class_names))
        used = np.isin(of_known, unseen.validation.unseen)
        used |= np.isin(of_known, unseen.validation.seen) & is_held_out(unseen.training, known, unseen.held_out)
        of_side = [np.isin(of_known[used], side) for side in (unseen.validation.seen, unseen.validation.unseen)]
        if not all(some.any() for some in of_side):
            raise RequestError(
                f"{unseen.training.uri} has no images of validation classes, or none held out of other classes, to "
                f"calibrate with: set `data.concepts.validation_fraction` to 0, or give more images"
            )
        gamma = best_gamma(decided(unseen.training, known[used], of_known[used], unseen.validation))
    found = decided(images, rows[some], labels[some], unseen.sides)
    return GeneralisedRecord(
        dataset=images.manifest.dataset,
        split=split,
        model_step=heads.checkpoint.position.step,
        templates=tuple(templates),
        concepts=unseen.concepts,
        result=generalised(found, unseen.sides, class_names, gamma),
    )


def translated_rows(images: FeatureSet, translations: FeatureSet) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Finds the captions of images in each language.

    Returns:
        By language, (M,) rows of `translations` and (M,) the row of the image of each.

    Raises:
        RequestError: no caption belongs to an image.
    """
    language, _, key = (np.array(part) for part in zip(*(k.partition("/") for k in translations.keys), strict=True))
    place = {key: row for row, key in enumerate(images.keys)}
    row = np.array([place.get(each, -1) for each in key])
    known = np.flatnonzero(row >= 0)
    if not len(known):
        raise RequestError(f"no caption of the translations belongs to an image of {images.uri}: check their keys")
    by_language = {name: known[language[known] == name] for name in dict.fromkeys(language[known].tolist())}
    return {name: (captions, row[captions]) for name, captions in by_language.items()}


def zero_shot_captions(
    image: torch.Tensor, text: torch.Tensor, owner: np.ndarray, texts: Sequence[str], keys: pa.Array
) -> tuple[ZeroShotResult, pa.Table]:
    """Classifies images by what they are called in a language.

    Classes are the different captions; the first caption of an image names its class. So images of one name are one
    class, while they are each other's errors in retrieval.

    Args:
        image: (N, D) unit vectors.
        text: (M, D) unit vectors of captions.
        owner: (M,) index of the image of each. Each image has at least one caption.
        texts: M captions.
        keys: (N,) of the images.

    Returns:
        The result, and the samples with the `text` that is the class of each.
    """
    first = np.unique(owner, return_index=True)[1]
    names = [texts[caption] for caption in first]
    place, labels = targets(names)
    prototypes = text[first[place]]
    ((result, found, _),) = zero_shot_ranks(image, labels, prototypes, [names[i] for i in place])
    samples = classified(keys, pa.array(labels, pa.int32()), nearest(image, prototypes), found)
    result = result.model_copy(update={"candidate_set": "captions", "per_class": {}})
    return result, samples.append_column("text", pa.array(names, pa.string()))


def class_prototypes(heads: TrainedHeads, prompts: FeatureSet, classes: np.ndarray) -> torch.Tensor:
    """Averages the projected prompts of each class (CLIP, arXiv 2103.00020, 3.1.4).

    Args:
        prompts: language set with one key per class, in the order of labels.
        classes: (C,) labels.

    Returns:
        (C, D) unit vectors.

    Raises:
        RunError: a prompt could not be encoded.
        RequestError: the set was made by another encoder than the training's.
    """
    require_all(prompts)
    starts = prompts.key_starts
    rows = [np.arange(starts[label], starts[label + 1]) for label in classes]
    of_class = np.repeat(np.arange(len(classes)), [len(some) for some in rows])
    return ensemble(heads.project(prompts, np.concatenate(rows)), of_class, len(classes))


def require_all(texts: FeatureSet) -> None:
    """Raises RunError if a text could not be encoded, since rows are then not where they are expected."""
    if texts.manifest.rejects:
        raise RunError(f"{texts.uri}: a text could not be encoded: {texts.first_reject}")


@dataclass(frozen=True)
class Classes:
    """Images of a test split with the names of their classes and the language set of their prompts."""

    images: FeatureSet
    prompts: FeatureSet
    names: Sequence[str]


def _nearest_classes(
    vision: FeatureSet,
    rows: np.ndarray,
    labels: np.ndarray,
    image: torch.Tensor,
    prototypes: torch.Tensor,
    class_names: Sequence[str],
) -> list[Example]:
    """Returns labelled images with their class and the nearest class among those that have images."""
    present = np.unique(labels)
    some = _spread(len(rows))
    predicted = present[nearest(image[some], prototypes[present])]
    keys = vision.table["key"].take(rows[some]).to_pylist()
    return [
        Example(key=key, truth=class_names[label], predicted=class_names[near])
        for key, label, near in zip(keys, labels[some], predicted, strict=True)
    ]


def labelled(vision: FeatureSet, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the labelled rows of a vision set.

    Returns:
        (M,) rows, and (M,) their labels.

    Raises:
        RequestError: a label is not below `classes`.
    """
    labels = vision.labels
    rows = np.flatnonzero(~np.isnan(labels))
    truth = labels[rows].astype(np.int64)
    if len(truth) and (truth.min() < 0 or truth.max() >= classes):
        raise RequestError(
            f"labels go from {truth.min()} to {truth.max()}, but {classes} classes are named: "
            f"check `data.classes` (line n names label n, from 0)"
        )
    return rows, truth


def _nearest_texts(pairs: Pairs, image: torch.Tensor, text: torch.Tensor) -> list[Example]:
    """Returns images with their first caption and the nearest of all captions.

    Args:
        image: (N, D) unit vectors of the pairs.
        text: (M, D) unit vectors of their captions.
    """
    some = _spread(len(pairs))
    keys = pairs.vision.table["key"].take(pairs.vision_rows[some]).to_pylist()
    captions = pairs.language.table["text"]
    own = captions.take(pairs.caption_rows[pairs.caption_start[some]]).to_pylist()
    found = captions.take(pairs.caption_rows[nearest(image[some], text)]).to_pylist()
    return [Example(key=k, truth=t, predicted=p) for k, t, p in zip(keys, own, found, strict=True)]


def _different_texts(pairs: Pairs) -> torch.Tensor:
    """(M,) positions of the first caption of each text among those of the pairs."""
    texts = pairs.language.table["text"].take(pairs.caption_rows)
    codes = texts.combine_chunks().dictionary_encode().indices.to_numpy()
    return torch.from_numpy(np.unique(codes, return_index=True)[1])


def _spread(count: int) -> np.ndarray:
    """Returns at most `_EXAMPLES` positions, evenly spaced over `count`."""
    return np.unique(np.linspace(0, count - 1, min(count, _EXAMPLES)).round().astype(np.int64))


def recall_at_1(heads: TrainedHeads, validation: Pairs, gallery: int = GALLERY) -> float:
    """Averages recall at 1 of both directions over at most `gallery` validation pairs, each with its first caption.

    Where images share the texts of their classes, it is the share of images whose class has the nearest text.
    """
    rows = torch.from_numpy(validation.vision_rows[:gallery])
    captions, own = np.unique(validation.caption_rows[validation.caption_start[:-1]][:gallery], return_inverse=True)
    image = heads.project_image(validation.vision.embeddings[rows])
    text = heads.project_text(validation.language.embeddings[torch.from_numpy(captions)])
    if len(text) < len(image):
        return float(np.mean(ranks(text, image, own)[1].ahead == 0))
    text = text[torch.from_numpy(own)]
    found = retrieval(image, text, np.arange(len(image)), (1,))
    return (found.image_to_text[1].value + found.text_to_image[1].value) / 2


def required_labels(images: FeatureSet, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Same as `labelled`, but fails if no row has a label.

    Raises:
        RequestError: no image has a label, or a label is not below `classes`.
    """
    rows, labels = labelled(images, classes)
    if not len(rows):
        raise RequestError(f"no image of {images.uri} has a label: give labels, or take `data.classes` away")
    return rows, labels


def zero_shot_accuracy(heads: TrainedHeads, classes: Classes, unseen: Sequence[int] | None = None) -> float:
    """Computes the top-1 accuracy among the classes that have images, by the rules of `zero_shot`.

    Args:
        unseen: labels of the unseen classes of a split of concepts. The accuracy is then the mean over those that have
            images, among all of them, by the rules of `generalised`.

    Raises:
        RequestError: no image has a label, or of an unseen class; a label is not below the number of classes; or the
            features were made by other encoders than the training's.
    """
    rows, labels = required_labels(classes.images, len(classes.names))
    if unseen is not None:
        sides = Sides(np.empty(0, np.int64), np.array(unseen, np.int64))
        some = sides.rows(labels)
        if not len(some):
            raise RequestError(f"no image of {classes.images.uri} has an unseen class of the split of concepts")
        prototypes = class_prototypes(heads, classes.prompts, np.arange(len(classes.names)))
        image = heads.project(classes.images, rows[some])
        return unseen_accuracy(decisions(image, labels[some], prototypes, sides))
    first, of_class = targets(classes.names)
    present, own = np.unique(of_class[labels], return_inverse=True)
    prototypes = class_prototypes(heads, classes.prompts, first[present])
    _, found = ranks(prototypes, heads.project(classes.images, rows), own)
    return float(np.mean(found.ahead == 0))
