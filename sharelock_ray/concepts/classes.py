"""The classes of a data set on the sides of a split of concepts."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sharelock_ray.concepts.concept import Concept
from sharelock_ray.concepts.split import ConceptSplit
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.names import shared_names

_SHOWN = 3


@dataclass(frozen=True)
class ClassSides:
    """Labels, ascending, of the classes on each side of a split.

    Args:
        validation: seen classes that are held out of the training too.
        seen: the other seen classes.
        removed: classes of neither side.
    """

    seen: tuple[int, ...]
    validation: tuple[int, ...]
    unseen: tuple[int, ...]
    removed: tuple[int, ...]


def class_sides(split: ConceptSplit, names: Sequence[str], place: str, validation_fraction: float = 0.0) -> ClassSides:
    """Finds the concepts of a split among the classes of a data set, by name or wnid.

    Validation classes are chosen by a hash of their names: they do not depend on the order of classes.

    Args:
        names: class names by label.
        place: of the split, for errors.
        validation_fraction: of the seen classes.

    Raises:
        RequestError: the split is not of these classes: a class is no concept of it, or a concept is no class; two
            classes share a name; or no class is left on a side.
    """
    if shared := list(shared_names(names)):
        raise RequestError(
            f"the split {place} cannot tell classes of one name apart ({_listed(shared)}): name each class otherwise"
        )
    labels = {name: label for label, name in enumerate(names)}
    removed = [each.concept for each in split.removed]
    found, missing = [], []
    for side in (split.seen, split.unseen, removed):
        of_side = [(each, _label(each, labels)) for each in side]
        missing += [str(each) for each, label in of_side if label is None]
        found.append(sorted(label for _, label in of_side if label is not None))
    other = sorted(set(range(len(names))).difference(*found))
    if missing or other:
        what = [f"{len(missing):,} of its concepts are no class ({_listed(missing)})"] if missing else []
        what += [f"{len(other):,} classes are not in it ({_listed(names[label] for label in other)})"] if other else []
        raise RequestError(
            f"the split {place} is not of these {len(names):,} classes: {' and '.join(what)}: make a split of the "
            f"names in `data.classes`"
        )
    seen, unseen, of_neither = found
    drawn = sorted(seen, key=lambda label: hashlib.sha256(names[label].encode()).digest())
    count = round(validation_fraction * len(seen))
    validation, training = sorted(drawn[:count]), sorted(drawn[count:])
    if not training or (validation_fraction and len(validation) < 2):
        raise RequestError(
            f"`data.concepts.validation_fraction` {validation_fraction} takes {len(validation):,} of {len(seen):,} "
            f"seen classes, and should leave some and take two at least: give another fraction"
        )
    return ClassSides(tuple(training), tuple(validation), tuple(unseen), tuple(of_neither))


def _label(concept: Concept, labels: dict[str, int]) -> int | None:
    names = (concept.name, concept.words, concept.wnid)
    return next((labels[name] for name in names if name in labels), None)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
