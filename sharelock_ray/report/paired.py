"""Compares runs with the first one on the same samples, and refuses to pair samples that differ."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sharelock_ray.evaluation.result import FrozenTask
from sharelock_ray.evaluation.statistics import compare, holm
from sharelock_ray.report.comparison import Measure, PairedScore, Score, collapsed

_SAME = {"key": "images", "caption_id": "captions", "label": "labels", "text": "captions"}
_SAME_CHOICES = {"example": "examples", "key": "images"}
"""Columns that must be equal in both runs, with their names in notes. Older files have no `text`."""


class UnpairedError(Exception):
    """Two runs have no samples to pair; the message says why."""


def paired_scores(
    groups: Mapping[Measure, Sequence[Score]], read: Callable[[Score], pa.Table]
) -> tuple[list[PairedScore], list[str]]:
    """Compares each run with the first one.

    Args:
        groups: the scores that compare. The first run is that of the first score.
        read: opens the samples of a score; raises UnpairedError if there are none.

    Returns:
        The comparisons, whose p-values have Holm's correction for all of them, and notes about runs that are not
        paired.
    """
    first = next((score.model for scores in groups.values() for score in scores), None)
    of_files: dict[tuple[str | None, str | None], list[tuple[Measure, Score, Score]]] = defaultdict(list)
    for measure, scores in groups.items():
        runs = [score for score in scores if not score.model.published]
        for score in runs[1:] if runs[0].model == first else []:
            of_files[runs[0].samples, score.samples].append((measure, runs[0], score))
    found: list[PairedScore] = []
    unpaired: dict[str, list[str]] = defaultdict(list)
    # The samples of two files are in memory at a time.
    for pairs in of_files.values():
        _, *files = pairs[0]
        try:
            tables = [read(score) for score in files]
        except UnpairedError as error:
            unpaired[str(error)] += [measure.title for measure, _, _ in pairs]
            continue
        for measure, one, other in pairs:
            try:
                found.append(_paired(measure, one, other, *(_rows(table, measure) for table in tables)))
            except UnpairedError as error:
                why = f"{other.model.name} and {one.model.name} are not compared in pairs: {error}"
                unpaired[why].append(measure.title)
    order = {measure: place for place, measure in enumerate(groups)}
    found.sort(key=lambda each: order[each.measure])
    corrected = holm([each.p for each in found])
    notes = collapsed({why: list(dict.fromkeys(titles)) for why, titles in unpaired.items()})
    return [replace(each, p_holm=p) for each, p in zip(found, corrected, strict=True)], notes


def _paired(measure: Measure, one: Score, other: Score, first: pa.Table, second: pa.Table) -> PairedScore:
    shared = set(first.column_names) & set(second.column_names)
    for column, name in (_SAME_CHOICES if "example" in shared else _SAME).items():
        if column in shared and first[column] != second[column]:
            raise UnpairedError(f"their {name} differ")
    if measure.task in get_args(FrozenTask) and first == second:
        raise UnpairedError("their frozen features are the same")
    if measure.metric == "mean average precision":
        return _paired_precision(measure, one, other, first, second)
    found = compare(_hits(first, measure), _hits(second, measure), _images(first))
    return PairedScore(
        measure,
        one.model,
        other.model,
        found.difference,
        "bootstrap" if found.p_mcnemar is None else "McNemar",
        found.p,
        found.p,
        found.first_only,
        found.second_only,
    )


def _paired_precision(measure: Measure, one: Score, other: Score, first: pa.Table, second: pa.Table) -> PairedScore:
    # It imports torch.
    from sharelock_ray.evaluation.tasks.multi_label import compare_precision

    of_first, of_second = (
        table["score"].combine_chunks().flatten().to_numpy().reshape(len(table), -1) for table in (first, second)
    )
    has_class = np.zeros(of_first.shape, bool)
    for row, labels in enumerate(first["label"].to_pylist()):
        has_class[row, labels] = True
    difference, p = compare_precision(of_first, of_second, has_class, measure.ties or "strict")
    return PairedScore(measure, one.model, other.model, difference, "bootstrap", p, p)


def _rows(samples: pa.Table, measure: Measure) -> pa.Table:
    """The samples of a measure, in one order for all models."""
    direction, recall, _ = measure.metric.partition(" recall@")
    of = {
        "task": measure.task,
        "candidate_set": measure.candidate_set,
        "language": measure.language,
        "direction": direction.replace(" ", "_") if recall else None,
    }
    wanted = pc.scalar(True)
    for column, value in of.items():
        if column in samples.column_names:
            wanted &= pc.field(column).is_null() if value is None else pc.field(column) == value
    samples = samples.filter(wanted)
    by = ["example"] if "example" in samples.column_names else ["key", "caption_id"]
    return samples.sort_by([(name, "ascending") for name in by if name in samples.column_names])


def _hits(samples: pa.Table, measure: Measure) -> np.ndarray:
    """(N,) bool: whether the model is right, which the score is the mean of."""
    metric, _, k = measure.metric.partition("@")
    if "rank" in samples.column_names:
        return samples["rank"].to_numpy() < int(k or 1)
    return samples[metric.removesuffix(" score")].to_numpy()


def _images(samples: pa.Table) -> np.ndarray | None:
    """(N,) the image of each sample, or the images; None if no two samples share theirs."""
    keys = samples["key"]
    texts = pc.binary_join(keys, "\n") if pa.types.is_list(keys.type) else keys
    images = texts.combine_chunks().dictionary_encode()
    return None if len(images.dictionary) == len(samples) else images.indices.to_numpy()
