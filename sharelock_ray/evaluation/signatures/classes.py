"""Signatures of zero-shot classification: a wrong order of the class names, and memorised training classes."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from sharelock_ray.evaluation.ranks import nearest
from sharelock_ray.evaluation.signatures.evidence import (
    MemorisedClasses,
    WrongClassOrder,
    above_chance,
    at_chance,
    percent,
    sample,
    sentence,
)
from sharelock_ray.evaluation.statistics import Estimate, proportion
from sharelock_ray.evaluation.tasks.zero_shot import class_ranks, targets

_MOST = 10_000
"""Number of images that are looked at, at most, drawn at random."""
_MOST_CLASSES = 4000
"""Largest number of classes that an assignment is sought for: its time grows as their third power."""
_GAIN, _SKILL = 0.1, 0.25
"""What another order must gain in accuracy, and its accuracy as a share of the way from the largest class to 1."""
_FEWEST = 5
"""Number of classes below which nothing is said about others of their kind."""
_EXAMPLES = 8
_BATCH = 1 << 17
"""Number of texts that are split into words at a time."""


def wrong_class_order(
    image: torch.Tensor, labels: np.ndarray, prototypes: torch.Tensor, class_names: Sequence[str]
) -> WrongClassOrder | None:
    """Compares the accuracy with that under the best assignment of names to labels.

    The assignment maximises the number of correct images of one half of each class (`linear_sum_assignment` of the
    confusion matrix); both accuracies are of the other half, since the best one of many assignments is always good on
    the images that it was chosen on. Present if the accuracy then rises significantly, by at least 0.1, and at least a
    quarter of the way from the share of the largest class to 1: names that match nothing are no wrong order, and any
    name can be assigned to the largest class. Classes that share a name are one target. At most 10,000 images are used.

    Args:
        image: (N, D) unit vectors.
        labels: (N,)
        prototypes: (C, D) unit vectors.
        class_names: C names.

    Returns:
        None if no class has two images, or there is only one name or more than 4,000.
    """
    first, of_class = targets(class_names)
    some = sample(len(labels), _MOST)
    truth = of_class[labels[some]]
    chosen_on = _halves(truth)
    if not 1 < len(first) <= _MOST_CLASSES or not chosen_on.any():
        return None
    predicted = nearest(image[torch.from_numpy(some)], prototypes[torch.from_numpy(first)])
    fits = best_assignment(truth[chosen_on], predicted[chosen_on], len(first))
    truth, predicted = truth[~chosen_on], predicted[~chosen_on]
    accuracy, permuted = proportion(predicted == truth), proportion(predicted == fits[truth])
    largest = np.bincount(truth).max() / len(truth)
    good = permuted.value >= largest + _SKILL * (1 - largest)
    present = bool(good and permuted.low > accuracy.high and permuted.value - accuracy.value >= _GAIN)
    moved = np.intersect1d(np.flatnonzero(fits != np.arange(len(fits))), truth)
    examples = {class_names[first[i]]: class_names[first[fits[i]]] for i in moved[:_EXAMPLES]}
    if present:
        pairs = ", ".join(f"{theirs} for {given}" for given, theirs in list(examples.items())[:3])
        text = (
            f"with other names for {len(moved):,} classes ({pairs}), the accuracy on {len(truth):,} images is "
            f"{percent(permuted)}, not {percent(accuracy)}: check the order of `data.classes`"
        )
    else:
        text = (
            f"no other order of the class names fits far better: accuracy {percent(permuted)} under the best one, "
            f"{percent(accuracy)} under the given one, on {len(truth):,} images"
        )
    return WrongClassOrder(
        present=present,
        statement=sentence(text),
        images=len(truth),
        accuracy=accuracy,
        permuted=permuted,
        moved=len(moved),
        examples=examples,
    )


def best_assignment(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """The permutation of names under which most predictions are right; classes of which nothing is known stay.

    Args:
        truth: (N,) class of each image.
        predicted: (N,)

    Returns:
        (classes,) the name that fits each class.
    """
    from scipy.optimize import linear_sum_assignment

    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (truth, predicted), 1)
    # Of equally good permutations, the one that moves the fewest classes.
    confusion[np.arange(classes), np.arange(classes)] += 0.5 / classes
    return np.asarray(linear_sum_assignment(confusion, maximize=True)[1])


def memorised_classes(
    image: torch.Tensor, labels: np.ndarray, prototypes: torch.Tensor, class_names: Sequence[str], seen: np.ndarray
) -> MemorisedClasses | None:
    """Compares classes that were seen in training with others, each among their own kind.

    Among all classes, a model may prefer the seen ones although it knows the unseen ones apart. Present if the seen
    classes are clearly above chance and the unseen ones are at chance (see `at_chance`). The sampling unit of the
    intervals is the class. At most 10,000 images of each kind are used.

    Args:
        image: (N, D) unit vectors.
        labels: (N,)
        prototypes: (C, D) unit vectors.
        class_names: C names.
        seen: (C,) bool: whether training named the class, such as by `named_in`.

    Returns:
        None if fewer than five seen or five unseen names have images.
    """
    scores: list[tuple[int, Estimate, float]] = []
    for kind in (seen, ~seen):
        images = np.flatnonzero(kind[labels])
        images = images[sample(len(images), _MOST)]
        own, group = np.unique(labels[images], return_inverse=True)
        if len({class_names[c] for c in own}) < _FEWEST:
            return None
        some = image[torch.from_numpy(images)]
        found, candidates = class_ranks(some, labels[images], prototypes, class_names, own)
        scores.append((len(own), proportion(found.ahead == 0, group), 1 / candidates))
    (seen_count, known, known_chance), (unseen_count, unknown, chance) = scores
    skill = (known.value - known_chance) / (1 - known_chance)
    present = above_chance(known, known_chance) and at_chance(unknown, chance, chance + skill * (1 - chance))
    if present:
        verdict = "are recognised, those that none names are not"
    elif not above_chance(known, known_chance):
        verdict = "are themselves near chance"
    elif unknown.low > chance:
        verdict = "are not the only ones that are recognised"
    else:
        verdict = "are recognised, and there are too few of others to tell"
    return MemorisedClasses(
        present=present,
        statement=sentence(
            f"classes that training captions name {verdict}: {percent(known)} among {seen_count:,} seen classes "
            f"(chance {percent(known_chance)}), {percent(unknown)} among {unseen_count:,} unseen ones "
            f"(chance {percent(chance)})"
        ),
        seen_classes=seen_count,
        unseen_classes=unseen_count,
        seen=known,
        seen_chance=known_chance,
        unseen=unknown,
        unseen_chance=chance,
    )


def named_in(class_names: Sequence[str], texts: pa.ChunkedArray) -> np.ndarray:
    """Finds the classes that texts name: the words of the name, in order and whole, in any case; plurals do not count.

    Args:
        class_names: C names.
        texts: strings.

    Returns:
        (C,) bool.
    """
    of_names = _words(pa.array(class_names))
    vocabulary = pc.unique(of_names.flatten()).filter(pc.not_equal(pc.unique(of_names.flatten()), ""))
    # A tree of words, in which a name is a path from node 0; `child` is by node * words + word.
    words, child = len(vocabulary), dict[int, int]()
    place = {word: i for i, word in enumerate(vocabulary.to_pylist())}
    ends = []
    for name in of_names.to_pylist():
        node = 0
        for word in filter(None, name):
            node = child.setdefault(node * words + place[word], len(child) + 1)
        ends.append(node)
    branches = np.array(sorted(child), np.int64)
    children = np.array([child[branch] for branch in branches.tolist()], np.int64)
    reached = np.zeros(len(child) + 1, bool)
    for start in range(0, len(texts) if child else 0, _BATCH):
        flat = _words(texts.slice(start, _BATCH).combine_chunks()).flatten()
        word = pc.index_in(flat, value_set=vocabulary).fill_null(-1).to_numpy().astype(np.int64)
        at = np.flatnonzero(word >= 0)
        nodes = np.zeros(len(at), np.int64)
        while len(at):
            # A text ends with an empty word, so a name never goes on in the next one.
            branch = np.where(word[at] < 0, -1, nodes * words + word[at])
            found = np.minimum(np.searchsorted(branches, branch), len(branches) - 1)
            known = branches[found] == branch
            at, nodes = at[known] + 1, children[found[known]]
            reached[nodes] = True
    return reached[ends]


def _words(texts: pa.Array) -> pa.ListArray:
    """The words of each text, in lower case, and at least one empty one at its end."""
    return pc.split_pattern_regex(pc.binary_join_element_wise(pc.utf8_lower(texts), "", " "), r"[^\pL\pN]+")


def _halves(classes: np.ndarray) -> np.ndarray:
    """(N,) bool: every second item of each class, beginning with the second."""
    order = np.argsort(classes, kind="stable")
    start = np.searchsorted(classes[order], classes[order])
    chosen = np.zeros(len(classes), bool)
    chosen[order] = (np.arange(len(classes)) - start) % 2 == 1
    return chosen
