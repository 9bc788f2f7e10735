"""Encoder against decoder: what is chosen, and the paired differences, against a naive oracle."""

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sharelock_ray.study.matched import Matched, compare_matched
from sharelock_ray.study.trials import Double, Reading, Study, Trial

SEEDS = (0, 1, 2)
PAIRS = (("bert-s", "gpt-s"), ("bert-l", "gpt-l"))
READINGS = {
    f"{model}-{pooling}-{layer or 'final'}": Reading(model=model, pooling=pooling, layer=layer)
    for model, pooling, layer in itertools.product(
        (model for pair in PAIRS for model in pair), ("mean", "last"), (1, 2, None)
    )
}
DATA = ("photos", "drawings")


def made_up(name: str, data: str, seed: int) -> tuple[float, float]:
    """Recall on validation pairs, and zero-shot accuracy on the test split, which do not agree on the best reading."""
    recall, score = np.random.default_rng([seed, list(READINGS).index(name), DATA.index(data)]).uniform(0.2, 0.8, 2)
    return float(recall), float(score)


def study(values: Any = made_up, data: tuple[str, ...] = DATA, seeds: tuple[int, ...] = SEEDS, **changes: Any) -> Study:
    trials = []
    for name, of, seed in itertools.product(READINGS, data, seeds):
        found = dict(zip(("recall_at_1", "zero_shot"), values(name, of, seed), strict=False))
        point = {"language": name} | ({"data": of} if len(data) > 1 else {})
        run = f"{name}-{of}-{seed}"
        trials.append(Trial(point=point, seed=seed, run=run, state="finished", values=found))
    fields: dict[str, Any] = {
        "name": "study-1",
        "title": "A study",
        "note": "",
        "axes": {"language": tuple(READINGS)} | ({"data": data} if len(data) > 1 else {}),
        "objective": ("recall_at_1",),
        "seeds": seeds,
        "sampler": "grid",
        "scheduler": "none",
        "trials": tuple(trials),
        "matched": PAIRS,
        "readings": READINGS,
        "storage": "",
    }
    return Study(**(fields | changes))


def best(model: str, data: str, pooling: str | None = None) -> str:
    """By a loop over the readings."""
    found, most = "", -1.0
    for name, reading in READINGS.items():
        if reading.model != model or pooling not in (None, reading.pooling):
            continue
        recall = sum(made_up(name, data, seed)[0] for seed in SEEDS) / len(SEEDS)
        if recall > most:
            found, most = name, recall
    return found


def test_each_model_is_read_as_is_best_on_validation_pairs_of_each_data_set() -> None:
    found = compare_matched(study())
    assert found.score == "zero_shot"
    models = [model for pair in PAIRS for model in pair]
    assert {(each.model, each.data): each.encoder for each in found.choices} == {
        (model, f"data {data}"): best(model, data) for model in models for data in DATA
    }
    for each in found.choices:
        reading = READINGS[each.encoder]
        assert (each.pooling, each.layer, each.candidates) == (reading.pooling, reading.layer, 6)
        values = [made_up(each.encoder, each.data.removeprefix("data "), seed) for seed in SEEDS]
        assert (each.validation, each.score) == pytest.approx(tuple(np.mean(values, axis=0)))


@pytest.mark.parametrize("pooling", [None, "mean", "last"])
def test_differences_are_of_the_same_data_and_seed(pooling: str | None) -> None:
    found = compare_matched(study())
    for pair in PAIRS:
        (one,) = [each for each in found.differences if (each.encoder, each.decoder, each.pooling) == (*pair, pooling)]
        values = []
        for data in DATA:
            names = [best(model, data, pooling) for model in pair]
            scores = [[made_up(name, data, seed)[1] for seed in SEEDS] for name in names]
            values.append([encoder - decoder for encoder, decoder in zip(*scores, strict=True)])
        np.testing.assert_allclose(one.values, values)
        seeds, sets = np.mean(values, axis=0), np.mean(values, axis=1)
        for interval, units in ((one.over_seeds, seeds), (one.over_data, sets)):
            expected = stats.t.interval(0.95, len(units) - 1, loc=np.mean(units), scale=stats.sem(units))
            assert interval is not None
            assert interval.value == pytest.approx(np.mean(values))
            assert (interval.low, interval.high) == pytest.approx(expected)


def test_all_pairs_have_an_interval_over_the_pairs() -> None:
    found = compare_matched(study())
    for each in found.overall:
        means = [one.over_seeds.value for one in found.differences if one.pooling == each.pooling]
        expected = stats.t.interval(0.95, 1, loc=np.mean(means), scale=stats.sem(means))
        assert each.pairs == len(means) == 2
        assert (each.difference.low, each.difference.high) == pytest.approx(expected)


def fixed(name: str, data: str, seed: int) -> tuple[float, float]:
    """Encoders are best by their mean, decoders by their last token; at its best, either is as good but for .02."""
    reading = READINGS[name]
    is_encoder = reading.model.startswith("bert")
    value = 0.5 + 0.02 * is_encoder - 0.2 * ((reading.pooling == "mean") != is_encoder) - 0.01 * (reading.layer or 0)
    return value, value + 0.001 * (seed % 2)


def test_a_pooling_that_would_decide_the_winner_is_named() -> None:
    found = compare_matched(study(fixed))
    by_pooling = {each.pooling: each.difference.value for each in found.overall}
    assert by_pooling == pytest.approx({None: 0.02, "mean": 0.22, "last": -0.18})
    assert found.leads == (["mean"], ["last"])


def test_without_a_test_split_the_score_is_that_of_the_choice_which_is_said() -> None:
    found = compare_matched(study(lambda *of: made_up(*of)[:1], data=("photos",)))
    assert found.score == "recall_at_1"
    assert all(each.score == each.validation and each.data == "" for each in found.choices)
    assert all(each.over_data is None for each in found.differences)
    assert any("chosen and scored on the same validation pairs" in note for note in found.notes)


def without(of: Study, model: str, seed: int | None = None) -> Study:
    """The study in which the trials of a model, or those with a seed, failed."""
    failed = {"state": "failed", "values": {}}
    trials = [
        trial.model_copy(update=failed)
        if READINGS[trial.point["language"]].model == model and seed in (None, trial.seed)
        else trial
        for trial in of.trials
    ]
    return of.model_copy(update={"trials": tuple(trials)})


def test_a_pair_without_all_seeds_is_left_out_and_named() -> None:
    found = compare_matched(without(study(), "gpt-l", seed=1))
    assert {each.encoder for each in found.differences} == {"bert-s"}
    assert "left out, not finished with every seed on any data: bert-l and gpt-l" in found.notes
    nothing = compare_matched(without(without(study(), "gpt-l"), "gpt-s"))
    assert (nothing.differences, nothing.overall, nothing.leads) == ((), (), ([], []))


def test_a_reading_without_all_seeds_is_not_chosen() -> None:
    lost = best("bert-s", "photos")
    of = study()
    trials = tuple(t for t in of.trials if (t.point["language"], t.point["data"], t.seed) != (lost, "photos", 2))
    found = compare_matched(of.model_copy(update={"trials": trials}))
    (choice,) = [each for each in found.choices if (each.model, each.data) == ("bert-s", "data photos")]
    assert choice.encoder != lost
    assert choice.candidates == 5
    assert any("different numbers of readings" in note for note in found.notes)


def test_a_reading_that_is_the_same_model_as_another_counts() -> None:
    of = study()
    point = {"language": "bert-s-mean-1", "data": "photos"}
    doubles = (Double(point=point, same_as=point | {"language": "bert-s-mean-2"}),)
    trials = tuple(trial for trial in of.trials if trial.point != point)
    found = compare_matched(of.model_copy(update={"trials": trials, "doubles": doubles}))
    assert {choice.candidates for choice in found.choices} == {6}


def test_pairs_that_share_a_model_are_not_independent_which_is_said() -> None:
    found = compare_matched(study(matched=(("bert-s", "gpt-s"), ("bert-s", "gpt-l"))))
    assert "The pairs are not independent, since they share models: bert-s" in found.notes


def test_one_seed_has_no_interval() -> None:
    found = compare_matched(study(seeds=(0,), data=("photos",)))
    assert all(each.over_seeds.low is None for each in found.differences)


def test_reads_back_the_same() -> None:
    found = compare_matched(study())
    assert Matched.model_validate(found.content()) == found
