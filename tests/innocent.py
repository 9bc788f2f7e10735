"""The hand-checked pairs that must not alarm: what only looks like a leak, with the reason for each."""

import csv
from pathlib import Path
from typing import NamedTuple

from sharelock_ray.concepts.concept import Concept

PAIRS = Path(__file__).parent / "concepts" / "innocent_pairs.csv"


class Pair(NamedTuple):
    """A concept of training and one of a test, the kind of their likeness, and why it is no leak."""

    kind: str
    seen: Concept
    unseen: Concept
    reason: str


def read_pairs() -> list[Pair]:
    with PAIRS.open(newline="", encoding="utf-8") as file:
        return [
            Pair(
                row["kind"],
                Concept(name=row["seen"], wnid=row["seen_wnid"] or None, language=row["seen_language"]),
                Concept(name=row["unseen"], wnid=row["unseen_wnid"] or None),
                row["reason"],
            )
            for row in csv.DictReader(file)
        ]
