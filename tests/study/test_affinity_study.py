"""The affinity of seeing and language: which models count, what is said of them, and one line for a wrong request."""

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sharelock_ray.documents import parse_document
from sharelock_ray.errors import RequestError
from sharelock_ray.study.affinity_study import Affinity, Seen, analyse
from sharelock_ray.study.correlation import compare_correlations
from sharelock_ray.study.language_scores import ScoredModel

NAMES = [f"model-{letter}" for letter in "abcdefgh"]
LANGUAGE = [0.12, 0.2, 0.24, 0.31, 0.35, 0.41, 0.44, 0.52]
VISUAL = [0.30, 0.41, 0.38, 0.47, 0.52, 0.50, 0.61, 0.60]


def seen(values: list[float] = VISUAL, **changes: Any) -> list[Seen]:
    fields: dict[str, Any] = {"errors": (0.01,)} | changes
    return [
        Seen(encoder=name, model=f"org/{name}", runs=(f"runs/{name}",), values=(value,), **fields)
        for name, value in zip(NAMES, values, strict=False)
    ]


def scores(values: list[float] = LANGUAGE, metric: str = "MMLU-Pro", **changes: Any) -> dict[str, ScoredModel]:
    """Two models of each family; the larger of each is four times the size of the other."""
    return {
        f"org/{name}": ScoredModel(
            **(
                {
                    "model": f"org/{name}",
                    "metric": metric,
                    "harness": "5-shot",
                    "value": value,
                    "error": 0.004,
                    "chance": 0.111,
                    "family": f"family {i // 2}",
                    "params_b": float(4**i),
                    "source": "a report",
                }
                | changes
            )
        )
        for i, (name, value) in enumerate(zip(NAMES, values, strict=False))
    }


def found(**changes: Any) -> Affinity:
    fields: dict[str, Any] = {"visual": "shapes: top-1", "protocol": "9 queries", "seen": seen(), "chosen": scores()}
    return analyse(**(fields | changes))


class TestCorrelation:
    def test_is_that_of_both_scores_over_the_models(self) -> None:
        affinity = found()
        assert affinity.pearson.value == pytest.approx(stats.pearsonr(LANGUAGE, VISUAL).statistic)
        assert affinity.spearman.value == pytest.approx(stats.spearmanr(LANGUAGE, VISUAL).statistic)
        assert affinity.kendall.value == pytest.approx(stats.kendalltau(LANGUAGE, VISUAL).statistic)
        assert affinity.fisher == pytest.approx(tuple(stats.pearsonr(LANGUAGE, VISUAL).confidence_interval()))
        assert list(affinity.without_model) == NAMES
        assert (affinity.families, list(affinity.without_family)) == (4, [f"family {i}" for i in range(4)])

    def test_given_size_is_that_of_the_residuals(self) -> None:
        size = np.log10([4.0**i for i in range(8)])
        rest = [np.array(each) - np.polyval(np.polyfit(size, each, 1), size) for each in (LANGUAGE, VISUAL)]
        assert found().given_size.value == pytest.approx(stats.pearsonr(*rest).statistic)

    def test_given_size_is_of_the_models_of_known_size(self) -> None:
        chosen = scores()
        chosen["org/model-b"] = scores(params_b=None)["org/model-b"]
        assert found(chosen=chosen).given_size.models == 7
        assert found(chosen=scores(params_b=None)).given_size is None

    def test_is_stored_and_read_again(self) -> None:
        affinity = found(new=["new=0.3"], others=[scores(VISUAL, "HellaSwag")])
        assert parse_document(Affinity, json.dumps(affinity.content()).encode(), "here") == affinity


class TestModels:
    def test_are_found_by_the_name_of_the_encoder_or_of_the_model(self) -> None:
        chosen = scores()
        own = scores([0.5])["org/model-a"]
        chosen["model-a"] = own
        assert found(chosen=chosen).points[0].language == 0.5
        assert [point.language for point in found(chosen=chosen).points[1:]] == LANGUAGE[1:]

    def test_of_several_seeds_count_once_with_their_mean_and_both_errors(self) -> None:
        one = Seen("model-a", "org/model-a", ("r0", "r1", "r2"), (0.28, 0.30, 0.35), (0.01, 0.01, 0.01))
        [point, *_] = found(seen=[one, *seen()[1:]]).points
        assert point.visual == pytest.approx(0.31)
        assert point.visual_error == pytest.approx(math.hypot(stats.sem([0.28, 0.30, 0.35]), 0.01))
        assert point.runs == ("r0", "r1", "r2")

    def test_of_an_unknown_family_are_their_own(self) -> None:
        assert found(chosen=scores(family="")).families == 8

    def test_that_are_one_language_model_are_refused(self) -> None:
        twice = [*seen(), Seen("deep", "org/model-a", ("r",), (0.4,), (None,))]
        with pytest.raises(RequestError, match="encoders model-a and deep both have the language score of org/model-a"):
            found(seen=twice)

    def test_without_a_language_score_are_left_out_and_said(self) -> None:
        chosen = scores()
        del chosen["org/model-b"]
        affinity = found(chosen=chosen)
        assert len(affinity.points) == 7
        assert "left out, without a score in MMLU-Pro: org/model-b (nearest: org/model-" in affinity.notes[0]

    def test_that_are_not_in_the_study_are_said_in_one_line(self) -> None:
        assert (
            "scores of models that are not in the study: org/model-f, org/model-g, org/model-h"
            in found(seen=seen()[:5]).notes
        )
        assert any("org/model-g and 1 more" in note for note in found(seen=seen()[:4]).notes)

    def test_at_chance_are_marked(self) -> None:
        affinity = found()
        assert [point.encoder for point in affinity.points if point.at_chance] == ["model-a"]
        assert "at chance in MMLU-Pro, which cannot rank them: model-a" in affinity.notes

    def test_of_unknown_error_are_said(self) -> None:
        affinity = found(seen=seen(errors=(None,)), chosen=scores(error=None))
        assert "the error of the visual score of 8 models is unknown and counts as 0" in affinity.notes
        assert affinity.measurement.again == pytest.approx((affinity.pearson.value,) * 2)


class TestDegenerateInput:
    def test_too_few_models_are_one_line(self) -> None:
        with pytest.raises(
            RequestError, match=r"3 of 3 language encoders have a score in MMLU-Pro, and .* at least 4$"
        ):
            found(seen=seen()[:3])
        with pytest.raises(RequestError, match=r"0 of 8 .* needs at least 4; org/model-a has none$"):
            found(chosen={"x": scores()["org/model-a"]})

    def test_scores_that_are_all_equal_are_one_line(self) -> None:
        with pytest.raises(RequestError, match=r"all 8 models have the same visual score, 0\.5"):
            found(seen=seen([0.5] * 8))
        with pytest.raises(RequestError, match=r"all 8 models have the same MMLU-Pro, 0\.3"):
            found(chosen=scores([0.3] * 8))


class TestPredictions:
    def test_are_of_scored_models_or_of_given_scores(self) -> None:
        chosen = scores() | {"org/new": ScoredModel("org/new", "MMLU-Pro", "5-shot", 0.3)}
        affinity = found(chosen=chosen, new=["org/new", "mine=0.6"])
        assert {name: each.language for name, each in affinity.predictions.items()} == {"org/new": 0.3, "mine=0.6": 0.6}
        assert affinity.predictions["org/new"].visual == affinity.line.predict(0.3)
        assert affinity.notes[-1].endswith("which may not hold: mine=0.6")
        assert not any("not in the study" in note for note in affinity.notes)

    def test_of_an_unknown_model_or_score_are_one_line(self) -> None:
        with pytest.raises(RequestError, match=r"to predict, org/model-z, has no language score \(nearest: org/model-"):
            found(new=["org/model-z"])
        for given in ("much", "nan"):
            with pytest.raises(RequestError, match=f"the language score of mine must be a number .*'{given}'"):
                found(new=[f"mine={given}"])


class TestOtherScores:
    def test_have_holms_correction_and_are_compared_with_the_chosen_one(self) -> None:
        noise = [0.3, 0.1, 0.4, 0.15, 0.9, 0.2, 0.6, 0.5]
        one, other = found(others=[scores(noise, "HellaSwag"), scores(VISUAL[::-1], "ARC-C")]).others
        assert (one.metric, one.models) == ("HellaSwag", 8)
        assert one.r == pytest.approx(stats.pearsonr(noise, VISUAL).statistic)
        assert (one.p_holm, other.p_holm) == pytest.approx((max(one.p, 2 * other.p), min(1, 2 * other.p)))
        expected = compare_correlations(*map(np.array, (VISUAL, LANGUAGE, noise)))
        assert one.difference == expected
        assert expected.t > 0

    def test_of_which_lower_is_better_are_compared_by_what_is_better(self) -> None:
        bits = [2 - value for value in LANGUAGE]
        affinity = found(chosen=scores(bits, "bits per byte"), others=[scores(VISUAL, "HellaSwag")])
        assert affinity.lower_is_better
        assert affinity.pearson.value < -0.9
        assert affinity.others[0].difference.t < 0
        assert affinity.others[0].difference == found(others=[scores(VISUAL, "HellaSwag")]).others[0].difference
