"""Near duplicates of test images in the training set, found by their frozen features."""

import torch

from sharelock_ray.evaluation.ranks import blocks, units
from sharelock_ray.evaluation.signatures.evidence import DuplicatePair, TrainingDuplicates, percent, sample, sentence
from sharelock_ray.features.featureset import FeatureSet
from sharelock_ray.onednn import product

_NEARER = 0.1
"""Distance of near duplicates, as a fraction of the usual one to the nearest training image."""
_LEAST, _MOST = 0.9, 0.999
"""Limits of the threshold: features of one image that is compressed again differ a little."""
_WORK = 2 * 10**10
"""Number of multiplications in an evaluation: some seconds on a CPU."""
_FEWEST = 1000
"""Number of test images that are compared, if there are as many; the training images then become fewer."""
_SHOWN = 8


def training_duplicates(
    test: FeatureSet, training: FeatureSet, threshold: float | None = None, work: int | None = _WORK
) -> TrainingDuplicates | None:
    """Looks for test images that are also in the training set, resized or compressed again.

    Features are centred, by the mean training feature, and compared by cosine: uncentred ones of many encoders are all
    alike. What is near depends on the encoder: see `duplicate_threshold`.

    Args:
        test: vision set.
        training: vision set of the same encoder.
        threshold: cosine of near duplicates. None: by the rule above, within 0.9 and 0.999.
        work: number of multiplications, N M D for N test images, M training images and D features. If all images need
            more, images are compared that are drawn at random: at least 1,000 test images, and a part of the training
            images if even these are too many. None: all images.

    Returns:
        None if one of the sets is empty.
    """
    of = test.manifest.rows, training.manifest.rows
    if not all(of):
        return None
    dim = test.manifest.dim
    budget = of[0] * of[1] if work is None else work // dim
    tested = sample(of[0], max(_FEWEST, budget // of[1]))
    trained = sample(of[1], max(1, budget // len(tested)))
    ours, theirs = torch.from_numpy(tested), torch.from_numpy(trained)
    mean = mean_of(training.embeddings, theirs)
    cosine, nearest = nearest_by_cosine(test.embeddings, training.embeddings, ours, theirs, mean)
    if threshold is None:
        threshold = duplicate_threshold(cosine)
    order = cosine.argsort(descending=True, stable=True)
    found = int((cosine >= threshold).sum())
    shown = order[: min(found, _SHOWN)]
    keys = (
        features.table["key"].take(rows.numpy()).to_pylist()
        for features, rows in ((test, ours[shown]), (training, theirs[nearest[shown]]))
    )
    pairs = tuple(
        DuplicatePair(test=own, training=other, cosine=value)
        for own, other, value in zip(*keys, cosine[shown].tolist(), strict=True)
    )
    compared = len(ours), len(theirs)
    number = f"{found:,} ({percent(found / compared[0])})" if found else "none"
    are = "is a near duplicate" if found < 2 else "are near duplicates"
    tests, trainings = map(_count, compared, of, ("test", "training"))
    return TrainingDuplicates(
        present=bool(found),
        statement=sentence(
            f"{number} of {tests} {are} of one of {trainings}: "
            f"the cosine of their centred features is at least {threshold:.3f}"
        ),
        found=found,
        compared=compared,
        of=of,
        threshold=threshold,
        pairs=pairs,
    )


def duplicate_threshold(cosine: torch.Tensor) -> float:
    """The cosine of near duplicates, within 0.9 and 0.999, from the (N,) cosines of test images to the nearest others.

    A near duplicate is ten times nearer, by 1 - cosine, than test images usually are to their nearest training image:
    the third quartile, so that up to three quarters can be duplicates.
    """
    usual = float(cosine.quantile(0.25))
    return min(max(_LEAST, 1 - _NEARER * (1 - usual)), _MOST)


def mean_of(embeddings: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(D,) float32 mean of the rows with indices (N,), at least one, read in blocks."""
    sums = [embeddings[rows[part]].double().sum(0) for part in blocks(len(rows))]
    return (torch.stack(sums).sum(0) / len(rows)).float()


def nearest_by_cosine(
    embeddings: torch.Tensor,
    others: torch.Tensor,
    rows: torch.Tensor,
    other_rows: torch.Tensor,
    mean: torch.Tensor,
    axes: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the nearest of `other_rows` to each of `rows` by the cosine <x - m, y - m> / (|x - m| |y - m|).

    Both sets may be mapped files: they are read in blocks.

    Args:
        embeddings: (A, D) of any type.
        others: (B, D)
        rows: (N,) indices.
        other_rows: (M,) indices, at least one.
        mean: (D,) m.
        axes: (D, K) by which centred features are multiplied first.

    Returns:
        (N,) cosines and (N,) positions in `other_rows`.
    """

    def placed(values: torch.Tensor) -> torch.Tensor:
        centred = values.float() - mean
        return units(centred if axes is None else centred @ axes)

    best, place = torch.full((len(rows),), -torch.inf), torch.zeros(len(rows), dtype=torch.int64)
    for part in blocks(len(rows)):
        queries = placed(embeddings[rows[part]])
        for columns in blocks(len(other_rows)):
            values, found = product(queries, placed(others[other_rows[columns]])).max(1)
            nearer = values > best[part]
            best[part] = torch.where(nearer, values, best[part])
            place[part] = torch.where(nearer, found + columns.start, place[part])
    return best, place


def _count(compared: int, of: int, kind: str) -> str:
    return f"{compared:,} {kind} images" if compared == of else f"{compared:,} of {of:,} {kind} images"
