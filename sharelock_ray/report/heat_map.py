"""Scores in many languages as a heat map: languages by script and family, with a column for each measure."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from statistics import median

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
    def ranges(self) -> list[tuple[str, str]]:
        """Each measure with its lowest, median and highest score."""
        found = []
        for place, measure in enumerate(self.measures):
            cells = ((row[place], of.code) for of, row in self.rows)
            values = sorted((cell.score.value.value, code) for cell, code in cells if cell)
            (low, first), (high, last) = values[0], values[-1]
            middle = median(value for value, _ in values)
            text = f"{low:.1%} ({first}) to {high:.1%} ({last}), median {middle:.1%}"
            found.append((f"{measure} in {len(values)} languages", text))
        return found

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
            found.setdefault(title_of(record), {}).setdefault(code, {}).update(_cells(record))
    return [_heat_map(title, by_code) for title, by_code in found.items() if len(by_code) > 1]


def title_of(record: EvaluationRecord) -> str:
    """The title of the heat map that a record in some language belongs to."""
    return record.benchmark.name if record.benchmark else f"{record.dataset or ''} {record.split}".strip()


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
