"""The page of a study: what it says, what it draws, and that it fetches nothing."""

import itertools
import re
import warnings
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pages import Page
from sharelock_ray.documents import read_document
from sharelock_ray.report.study_page import verdict, write_study
from sharelock_ray.runs.folder import RunFolder, TrainingResult
from sharelock_ray.study.matched import Matched
from sharelock_ray.study.trials import Double, Reading, Study, Trial

AXES = {
    "alignment.language.depth": (2, 4),
    "alignment.language.width": (32, 64),
    "alignment.language.activation": ("relu", "gelu"),
}


def recall(point: dict[str, object], seed: int) -> float:
    """Decided by the depth; the seeds shift each point otherwise, by the same in the mean."""
    shift = (point["alignment.language.width"] == 64) + (point["alignment.language.activation"] == "gelu")
    return 0.1 * int(point["alignment.language.depth"]) + 0.001 * ((seed + shift) % 3)


def study(folder: Path, seeds: tuple[int, ...] = (0, 1, 2), **changes: object) -> Study:
    trials = []
    for index, (values, seed) in enumerate(itertools.product(itertools.product(*AXES.values()), seeds)):
        point = dict(zip(AXES, values, strict=True))
        run = RunFolder(str(folder / "trials" / str(index)))
        run.write_metrics([{"step": step, "validation_loss": 5.0 - step} for step in (1, 2)])
        numbers = {
            "recall_at_1": recall(point, seed),
            "validation_loss": 3.0,
            "parameters": 1e4 * values[1],
            "seconds": 36,
        }
        trials.append(
            Trial(point=point, seed=seed, run=run.uri, state="finished", values=numbers, gpus=0.5, device="a GPU")
        )
    fields = {
        "name": "study-1",
        "title": "A study & its <title>",
        "note": "Made-up data.",
        "axes": AXES,
        "objective": ("recall_at_1",),
        "seeds": seeds,
        "sampler": "grid",
        "scheduler": "none",
        "trials": tuple(trials),
        "storage": "optuna.journal",
    }
    return Study(**(fields | changes))


def page_of(of: Study, folder: Path) -> Page:
    return Page(Path(write_study(of, str(folder)).page).read_text())


def test_ranks_points_and_says_what_mattered(tmp_path: Path) -> None:
    (tmp_path / "winner.yaml").write_text("name: the-winner\n")
    page = page_of(study(tmp_path), tmp_path)
    assert "24 trials: 24 finished" in page.text
    assert "40.1% (39.9% to 40.3%)" in page.text
    assert "name: the-winner" in page.text
    assert "A study & its <title>" in page.text
    # Depth decides all but what the seeds do, and is named first.
    assert page.text.partition("factorsharep")[2].split()[0].startswith("alignment.language.depth")
    assert page.text.count("not significant") >= 5
    assert [tag for tag, _ in page.tags].count("svg") == 5


def test_draws_a_heat_map_for_each_activation_over_depth_and_width(tmp_path: Path) -> None:
    content = Path(write_study(study(tmp_path), str(tmp_path)).page).read_text()
    for text in ("activation relu", "activation gelu", "depth", "width", "0.401", "recall at 1"):
        assert f"<!-- {text} -->" in content


def test_counts_the_cost(tmp_path: Path) -> None:
    # 24 trials of 36 seconds on half a GPU each.
    text = page_of(study(tmp_path), tmp_path).text
    assert "0.24 hours" in text
    assert "GPU-hours0.12" in text
    assert "not reported by the devices" in text
    base = study(tmp_path)
    counted = base.model_copy(update={"trials": tuple(t.model_copy(update={"joules": 3.6e6}) for t in base.trials)})
    assert "24.000 kWh" in page_of(counted, tmp_path).text


def test_fetches_nothing_and_shows_names_as_text(tmp_path: Path) -> None:
    hostile = '<script src="http://x">'
    base = study(tmp_path)
    failed = base.trials[0].model_copy(update={"state": "failed", "reason": hostile, "values": {}})
    page = page_of(base.model_copy(update={"trials": (failed, *base.trials[1:]), "title": hostile}), tmp_path)
    assert not {"script", "link", "iframe", "img"} & {tag for tag, _ in page.tags}
    assert page.text.count(hostile) >= 3
    assert "23 finished" in page.text
    assert "need a complete grid with all seeds" in page.text


HOSTILE_NAMES = ["$\\frac{1}$ and \\$5 $", '--></svg>"><img src=x onerror=alert(1)>\n\x1b\u202e', "x" * 5000]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_any_name_of_a_setting_is_text_in_plots_and_tables(tmp_path: Path, name: str) -> None:
    base = study(tmp_path, seeds=(0,))
    # As a value and as the name of an axis; another one is of named choices.
    axes = {name: AXES["alignment.language.depth"], "head": (name, "other"), "third": ("relu", name)}
    values = {"relu": "relu", "gelu": name, 32: name, 64: "other"}
    trials = tuple(
        t.model_copy(update={"point": dict(zip(axes, (values.get(v, v) for v in t.point.values()), strict=True))})
        for t in base.trials
    )
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        page = page_of(base.model_copy(update={"axes": axes, "trials": trials}), tmp_path)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert [tag for tag, _ in page.tags].count("svg") == 5
    assert name in page.text
    # What no room is left for is not drawn.
    assert not [each for each in warned if "layout" in str(each.message)]


def test_the_tables_have_a_row_for_each_trial(tmp_path: Path) -> None:
    of = study(tmp_path)
    write_study(of, str(tmp_path))
    parquet = pq.read_table(tmp_path / "study.parquet")
    assert parquet.num_rows == pyarrow.csv.read_csv(tmp_path / "study.csv").num_rows == 24
    assert parquet["recall_at_1"].to_pylist() == [trial.values["recall_at_1"] for trial in of.trials]
    assert set(parquet["alignment.language.activation"].to_pylist()) == {"relu", "gelu"}


def test_says_which_points_are_one_model(tmp_path: Path) -> None:
    base = study(tmp_path)
    gelu, relu = ({"alignment.language.activation": name} for name in ("gelu", "relu"))
    doubles = tuple(
        Double(point=t.point, same_as=t.point | relu)
        for t in base.trials
        if t.seed == 0 and t.point == t.point | gelu | {"alignment.language.depth": 2}
    )
    trials = tuple(
        t.model_copy(update={"without_effect": tuple(gelu) if t.point["alignment.language.depth"] == 2 else ()})
        for t in base.trials
        if t.point not in [double.point for double in doubles]
    )
    summary = write_study(base.model_copy(update={"trials": trials, "doubles": doubles}), str(tmp_path))
    page = Page(Path(summary.page).read_text()).text
    assert "2 points describe the same model as another point and were not trained again" in page
    assert "depth 2, width 32, activation gelu: as depth 2, width 32, activation relu" in page
    assert "without the values at which another factor has no" in page
    assert summary.as_json()["points"][-1]["without_effect"] == list(gelu)
    table = pq.read_table(tmp_path / "study.parquet")
    assert table["without_effect"].to_pylist().count("alignment.language.activation") == 6


def test_a_study_of_an_older_version_has_its_page(tmp_path: Path) -> None:
    stored = study(tmp_path).model_dump(mode="json")
    del stored["doubles"]
    for trial in stored["trials"]:
        del trial["without_effect"]
    assert "24 trials" in page_of(Study.model_validate(stored), tmp_path).text


class TestVerdict:
    @staticmethod
    def of(folder: Path, **changes: object) -> str:
        return write_study(study(folder, **changes), str(folder)).verdict

    def test_calls_a_tie_a_tie(self, tmp_path: Path) -> None:
        said = self.of(tmp_path)
        assert "does not differ significantly from 3 of 7 other points (paired t-tests over 3 seeds" in said

    def test_does_not_judge_by_one_seed(self, tmp_path: Path) -> None:
        assert "A single seed does not show the variation by chance" in self.of(tmp_path, seeds=(0,))

    def test_of_a_study_that_failed(self, tmp_path: Path) -> None:
        lost = tuple(trial.model_copy(update={"state": "diverged"}) for trial in study(tmp_path).trials)
        assert self.of(tmp_path, trials=lost) == "No trial finished." == verdict([], ["recall_at_1"])

    def test_says_that_accuracy_on_the_split_of_selection_is_optimistic(self, tmp_path: Path) -> None:
        base = study(tmp_path)
        trials = tuple(t.model_copy(update={"values": t.values | {"zero_shot": 0.5}}) for t in base.trials)
        of = base.model_copy(update={"trials": trials, "objective": ("recall_at_1", "zero_shot")})
        summary = write_study(of, str(tmp_path))
        for text in (summary.verdict, Path(summary.page).read_text(), summary.as_json()["verdict"]):
            assert "selected on the test split, so its zero-shot accuracy there is optimistic" in text
        assert "selected on the test split" not in self.of(tmp_path)

    def test_of_a_clear_winner(self, tmp_path: Path) -> None:
        depths = tuple(t for t in study(tmp_path).trials if {**t.point, "alignment.language.depth": 0} == FIRST)
        assert "It differs significantly from every other point (paired t-tests over 3 seeds" in self.of(
            tmp_path, trials=depths
        )


FIRST = {"alignment.language.depth": 0, "alignment.language.width": 32, "alignment.language.activation": "relu"}


@pytest.mark.parametrize("objective", ["validation_loss", "recall_at_1"])
def test_two_objectives_and_pruned_trials_have_a_page(tmp_path: Path, objective: str) -> None:
    base = study(tmp_path)
    pruned = base.trials[0].model_copy(update={"state": "pruned", "values": {"validation_loss": 9.0}})
    of = base.model_copy(update={"trials": (pruned, *base.trials[1:]), "objective": (objective, "parameters")})
    assert "1 pruned" in page_of(of, tmp_path).text


class TestDifferencesFromTheBest:
    def test_are_in_the_ranking(self, tmp_path: Path) -> None:
        page = page_of(study(tmp_path), tmp_path)
        assert "difference from the best" in page.text
        # Depth 2 is worse than depth 4 by 0.2 with each seed.
        assert "-20.0% (-20.0% to -20.0%)" in page.text


class TestDataScale:
    """Recall rises as .6 - n^(-.5) with the number of pairs."""

    @staticmethod
    def of(folder: Path, sizes: tuple[int | None, ...], **changes: object) -> Study:
        trials = []
        for size, seed in itertools.product(sizes, (0, 1, 2)):
            noise = 0.002 * np.random.default_rng([size or 0, seed]).normal()
            run = RunFolder(str(folder / f"{size}-{seed}"))
            run.write_metrics([{"step": 1, "validation_loss": 1.0}])
            values = {"recall_at_1": 0.6 - (size or 3200) ** -0.5 + noise, "parameters": 1.0, "seconds": 1.0}
            point = {"alignment.training_pairs": size}
            trials.append(Trial(point=point, seed=seed, run=run.uri, state="finished", values=values))
        axes = {"alignment.training_pairs": sizes}
        return study(folder, axes=axes, trials=tuple(trials), **changes)

    def test_has_a_power_law_with_its_interval(self, tmp_path: Path) -> None:
        summary = write_study(self.of(tmp_path, (50, 100, 200, 400, 800, 1600)), str(tmp_path))
        # 0.6 - 6400^(-.5) = .5875
        found = re.search(r"power law, 6,400 training pairs would give (.*)% \((.*)% to (.*)%\)", summary.verdict)
        assert found is not None
        value, low, high = map(float, found.groups())
        assert low <= 58.75 <= high
        assert value == pytest.approx(58.75, abs=1)
        page = Page(Path(summary.page).read_text())
        assert "Size of the data" in page.text

    def test_counts_the_pairs_of_a_run_on_all_of_them(self, tmp_path: Path) -> None:
        of = self.of(tmp_path, (50, 100, 200, 400, None))
        result = TrainingResult.model_construct(training_pairs=3200)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunFolder, "result", lambda run: result)
            summary = write_study(of, str(tmp_path))
        assert "12,800 training pairs would give" in summary.verdict
        # Without their results, four sizes remain.
        assert "1,600 training pairs would give" in write_study(of, str(tmp_path)).verdict

    def test_says_why_there_is_none(self, tmp_path: Path) -> None:
        summary = write_study(self.of(tmp_path, (50, 100, 200)), str(tmp_path))
        assert "power law" not in summary.verdict
        assert "give scores of at least four sizes, not 3" in Page(Path(summary.page).read_text()).text

    def test_is_fitted_for_each_value_of_another_factor(self, tmp_path: Path) -> None:
        base = self.of(tmp_path, (50, 100, 200, 400))
        trials = [
            trial.model_copy(update={"point": trial.point | {"language": name}})
            for trial in base.trials
            for name in ("gpt", "<b>bert</b>")
        ]
        axes = base.axes | {"language": ("gpt", "<b>bert</b>")}
        page = page_of(base.model_copy(update={"trials": tuple(trials), "axes": axes}), tmp_path)
        assert "language gpt" in page.text
        assert "language <b>bert</b>" in page.text


class TestMatched:
    @staticmethod
    def of(folder: Path, last: float, name: str = "gpt") -> Study:
        """Encoders are better by .1 with the mean; `last` is added to encoders that are read at the last token."""
        readings = {
            f"{model}-{pooling}": Reading(model=model, pooling=pooling)
            for model in ("bert", name)
            for pooling in ("mean", "last")
        }
        trials = []
        for (encoder, reading), seed in itertools.product(readings.items(), (0, 1, 2)):
            value = (
                0.5
                + 0.01 * seed
                + (reading.model == "bert") * (0.1 + 0.001 * seed + last * (reading.pooling == "last"))
            )
            run = RunFolder(str(folder / encoder.replace("/", "") / str(seed)))
            run.write_metrics([{"step": 1, "validation_loss": 1.0}])
            values = {"recall_at_1": value, "zero_shot": value - 0.2, "parameters": 1.0, "seconds": 1.0}
            trials.append(Trial(point={"language": encoder}, seed=seed, run=run.uri, state="finished", values=values))
        axes = {"language": tuple(readings)}
        return study(folder, axes=axes, trials=tuple(trials), readings=readings, matched=(("bert", name),))

    def test_says_which_is_better_and_shows_what_was_chosen(self, tmp_path: Path) -> None:
        summary = write_study(self.of(tmp_path, last=0.0), str(tmp_path))
        assert "each with its chosen reading: +10.1% (+9.9% to +10.3%) over the seeds of one pair" in summary.verdict
        assert "With a fixed pooling (mean, last), encoders lead." in summary.verdict
        page = Page(Path(summary.page).read_text())
        for text in ("Encoder against decoder", "Chosen readings", "bert-mean", "zero-shot accuracy"):
            assert text in page.text
        assert read_document(Matched, str(tmp_path / "matched.json")).score == "zero_shot"

    def test_names_the_pooling_that_would_decide_otherwise(self, tmp_path: Path) -> None:
        summary = write_study(self.of(tmp_path, last=-0.3), str(tmp_path))
        assert "A fixed pooling would decide: with mean, encoders lead, and with last, decoders." in summary.verdict

    def test_is_left_out_where_it_was_not_asked_for(self, tmp_path: Path) -> None:
        page = page_of(study(tmp_path), tmp_path)
        assert "Encoder against decoder" not in page.text
        assert not (tmp_path / "matched.json").exists()

    @pytest.mark.parametrize("name", HOSTILE_NAMES)
    def test_shows_names_as_text(self, tmp_path: Path, name: str) -> None:
        readings = self.of(tmp_path, last=0.0)
        hostile = {
            k: r.model_copy(update={"model": name}) if r.model == "gpt" else r for k, r in readings.readings.items()
        }
        page = page_of(readings.model_copy(update={"readings": hostile, "matched": (("bert", name),)}), tmp_path)
        assert not {"script", "img"} & {tag for tag, _ in page.tags}
        assert name in page.text
