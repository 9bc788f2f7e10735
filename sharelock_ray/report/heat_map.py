"""Scores in many languages as a heat map: languages by script and family, with a column for each measure."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from sharelock_ray.evaluation.result import (
    EvaluationRecord,
    RetrievalRecord,
    Score,
    ZeroShotRecord,
    language_of,
    scores,
)
from sharelock_ray.report.languages import Language, language

_FULL = 16
"""Multiple of chance at which a colour is full."""
_BLUE = (76, 120, 168)
_OPACITY = 0.6
"""Of a full colour, so that black text is readable on it."""


@dataclass(frozen=True)
class Cell:
    """A score in one language."""

    score: Score
    images: int

    @property
    def above_chance(self) -> bool:
        """Whether the whole interval lies above chance."""
        return self.score.chance is not None and self.score.value.low > self.score.chance

    @property
    def colour(self) -> str:
        """White at chance and below, and blue from there, by the logarithm of the multiple of chance."""
        value, chance = self.score.value.value, self.score.chance
        times = value / chance if chance else 1.0
        share = min(1.0, max(0.0, math.log(max(times, 1.0), _FULL)))
        return f"rgba({', '.join(map(str, _BLUE))}, {_OPACITY * share:.2f})"


@dataclass(frozen=True)
class HeatMap:
    """Scores in the languages of a data set or benchmark.

    Args:
        rows: the cell of each measure, None where a language lacks it; languages by script, family and name.
    """

    title: str
    measures: tuple[str, ...]
    rows: tuple[tuple[Language, tuple[Cell | None, ...]], ...]

    @property
    def scripts(self) -> list[tuple[str, list[tuple[Language, tuple[Cell | None, ...]]]]]:
        """The rows of each script."""
        return [(script, list(rows)) for script, rows in groupby(self.rows, lambda row: row[0].script)]

    @property
    def summary(self) -> list[str]:
        """For each measure, in how many languages it is above chance."""
        found = []
        for place, measure in enumerate(self.measures):
            cells = [cells[place] for _, cells in self.rows]
            known = [cell for cell in cells if cell and cell.score.chance is not None]
            if known:
                above = sum(cell.above_chance for cell in known)
                found.append(f"{measure}: {above} of {len(known)} languages above chance")
        return found


def heat_maps(records: Iterable[EvaluationRecord]) -> list[HeatMap]:
    """A heat map of each data set, split and benchmark that has records in several languages.

    Of recalls, those at the largest k are shown.
    """
    found: dict[str, dict[str, dict[str, Cell]]] = {}
    for record in records:
        code = language_of(record)
        if code is not None:
            title = record.benchmark.name if record.benchmark else f"{record.dataset or ''} {record.split}".strip()
            found.setdefault(title, {}).setdefault(code, {}).update(_cells(record))
    return [_heat_map(title, by_code) for title, by_code in found.items() if len(by_code) > 1]


def _heat_map(title: str, by_code: dict[str, dict[str, Cell]]) -> HeatMap:
    measures = tuple(dict.fromkeys(measure for cells in by_code.values() for measure in cells))
    languages = sorted(map(language, by_code), key=lambda found: (found.order, found.code))
    rows = ((found, tuple(by_code[found.code].get(measure) for measure in measures)) for found in languages)
    return HeatMap(title, measures, tuple(rows))


def _cells(record: EvaluationRecord) -> dict[str, Cell]:
    shown = scores(record)
    if isinstance(record, RetrievalRecord):
        shown = [score for score in shown if score.measure.endswith(f"@{max(record.result.image_to_text)}")]
    of_names = "zero-shot " if isinstance(record, ZeroShotRecord) else ""
    return {f"{of_names}{score.measure}": Cell(score, record.result.images) for score in shown}
