"""A heat map has a row for each language, in the order of scripts and families, and says what is above chance."""

import pytest

from sharelock_ray.evaluation.result import RetrievalRecord, RetrievalResult, Score, ZeroShotRecord, ZeroShotResult
from sharelock_ray.evaluation.statistics import Estimate
from sharelock_ray.report.heat_map import Cell, heat_maps

SCOPE = {"dataset": "stamps", "split": "test", "model_step": 1}
HIGH = Estimate(value=0.4, low=0.3, high=0.5)
LOW = Estimate(value=0.12, low=0.05, high=0.2)


def retrieved(code: str | None, value: Estimate, **scope: object) -> RetrievalRecord:
    recalls = {1: LOW, 10: value}
    chance = {1: 0.01, 10: 0.1}
    result = RetrievalResult(
        images=100,
        texts=100,
        chance_image_to_text=chance,
        chance_text_to_image=chance,
        image_to_text=recalls,
        text_to_image=recalls,
    )
    return RetrievalRecord(**(SCOPE | scope), language=code, result=result)


def named(code: str, value: Estimate) -> ZeroShotRecord:
    result = ZeroShotResult(
        candidate_set="captions",
        images=100,
        candidates=50,
        classes=50,
        chance=0.02,
        top_1=value,
        top_5=value,
        mean_per_class=value.value,
        per_class={},
    )
    return ZeroShotRecord(**SCOPE, templates=(), language=code, result=result)


def test_rows_are_by_script_and_family_and_columns_are_measures() -> None:
    records = [retrieved(code, HIGH) for code in ("ru", "de", "fr")]
    (found,) = heat_maps([retrieved(None, HIGH), *records, named("de", LOW)])
    assert found.title == "stamps test"
    assert found.measures == ("image to text recall@10", "text to image recall@10", "zero-shot top-1")
    assert [(row.code, [cell and cell.score.value for cell in cells]) for row, cells in found.rows] == [
        ("de", [HIGH, HIGH, LOW]),
        ("fr", [HIGH, HIGH, None]),
        ("ru", [HIGH, HIGH, None]),
    ]
    assert [(script, len(rows)) for script, rows in found.scripts] == [("Latin", 2), ("Cyrillic", 1)]


def test_languages_above_chance_are_counted() -> None:
    (found,) = heat_maps([retrieved("de", HIGH), retrieved("hi", LOW), named("de", LOW), named("hi", LOW)])
    assert found.summary == [
        "image to text recall@10: 1 of 2 languages above chance",
        "text to image recall@10: 1 of 2 languages above chance",
        "zero-shot top-1: 2 of 2 languages above chance",
    ]


def test_ranges_name_the_languages_of_the_lowest_and_the_highest_score() -> None:
    (found,) = heat_maps([named("de", HIGH), named("hi", LOW), named("ja", HIGH), retrieved("de", LOW)])
    low, high = f"{LOW.value:.1%}", f"{HIGH.value:.1%}"
    assert found.ranges == [
        ("zero-shot top-1 in 3 languages", f"{low} (hi) to {high} (ja), median {high}"),
        ("image to text recall@10 in 1 languages", f"{low} (de) to {low} (de), median {low}"),
        ("text to image recall@10 in 1 languages", f"{low} (de) to {low} (de), median {low}"),
    ]


def test_each_split_has_its_own_and_one_language_none() -> None:
    other = {"dataset": "photos"}
    records = [retrieved("de", HIGH), retrieved("ja", HIGH), retrieved("de", HIGH, **other)]
    assert [found.title for found in heat_maps(records)] == ["stamps test"]
    records.append(retrieved("ja", HIGH, **other))
    assert [found.title for found in heat_maps(records)] == ["stamps test", "photos test"]


@pytest.mark.parametrize(
    ("value", "chance", "opacity"),
    [(0.01, 0.02, "0.00"), (0.02, 0.02, "0.00"), (0.08, 0.02, "0.30"), (0.32, 0.02, "0.60"), (0.9, 0.02, "0.60")],
)
def test_colours_grow_with_the_multiple_of_chance(value: float, chance: float, opacity: str) -> None:
    estimate = Estimate(value=value, low=value, high=value)
    cell = Cell(Score(measure="top-1", value=estimate, chance=chance), 10)
    assert cell.colour == f"rgba(76, 120, 168, {opacity})"
    assert cell.above_chance == (value > chance)


def test_a_score_without_chance_has_no_colour_and_no_verdict() -> None:
    cell = Cell(Score(measure="recall", value=HIGH, chance=None), 10)
    assert (cell.colour[-5:], cell.above_chance) == ("0.00)", False)
    records = [
        record.model_copy(update={"result": record.result.model_copy(update={"chance_text_to_image": None})})
        for record in (retrieved("de", HIGH), retrieved("fr", HIGH))
    ]
    (found,) = heat_maps(records)
    assert found.summary == ["image to text recall@10: 2 of 2 languages above chance"]
