"""`status`: the progress of a run, read from storage only; works from any machine, also after a kill."""

from collections.abc import Iterator
from dataclasses import dataclass

from sharelock_ray import storage
from sharelock_ray.features.state import Live, SetState, state_of
from sharelock_ray.progress import clock
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.runs.folder import newest, pairs_per_second
from sharelock_ray.workflows.inputs import Inputs

# A running driver writes every ten seconds.
_SILENT_S = 60.0


@dataclass(frozen=True)
class StageStatus:
    """`state` is `done`, `running`, `stopped` (started, but silent for a minute) or `waiting`."""

    stage: str
    state: str
    detail: str = ""


def status(recipe: Recipe) -> list[StageStatus]:
    """State of every feature set, of training and of evaluation, in order."""
    return [*_extractions(recipe), _training(recipe), _evaluation(recipe)]


def _extractions(recipe: Recipe) -> Iterator[StageStatus]:
    for split in Inputs(recipe).known_splits:
        for encoder, uri in zip(split.encoders, split.uris, strict=True):
            state = state_of(uri)
            yield StageStatus(f"extract {split.title} {encoder.modality} {encoder.name}", *_extraction(state))


def _extraction(state: SetState) -> tuple[str, str]:
    if state.manifest is not None:
        return "done", f"{state.manifest.rows:,} rows, {state.manifest.rejects:,} rejects"
    if not state.parts:
        return "waiting", ""
    parts = f"{state.sealed:,} of {state.parts:,} parts sealed"
    if state.live is None:
        return "stopped", parts
    if state.live.age > _SILENT_S:
        return "stopped", f"{parts}; last update {clock(state.live.age)} ago: run extract again to continue"
    return "running", f"{parts}; {_pace(state.live)}"


def _pace(live: Live) -> str:
    if not live.seconds:
        return "workers are starting and loading models"
    left = "" if live.seconds_left is None else f", {clock(live.seconds_left)} left"
    pace = f"{live.samples:,} samples ({live.share:.0%}), {live.samples_per_second:,.1f}/s{left}"
    return f"{pace}, {live.rejects:,} rejects; {live.work}"


def _training(recipe: Recipe) -> StageStatus:
    result = recipe.run.result()
    if result is not None:
        best = f"best validation loss {result.best_validation_loss:.3f} at step {result.best_step:,}"
        return StageStatus("train", "done", f"{result.steps:,} steps, {best}")
    rows = recipe.run.metrics()
    if not rows:
        age = recipe.run.begun_age()
        return StageStatus("train", "waiting", "" if age is None else f"started {clock(age)} ago, no step yet")
    step, steps = rows[-1]["step"], recipe.alignment.steps
    detail = f"step {step:,} of {steps:,}, {newest(rows)}"
    if recipe.run.metrics_age() > _SILENT_S:
        return StageStatus("train", "stopped", detail)
    rate = recipe.run.steps_per_second()
    if rate:
        left = f"{clock((steps - step) / rate)} left"
        detail += "; " + ", ".join(filter(None, (f"{rate:,.1f} steps/s", pairs_per_second(rows, rate), left)))
    return StageStatus("train", "running", detail)


def _evaluation(recipe: Recipe) -> StageStatus:
    done = storage.exists(storage.join(recipe.output, "evaluation.json"))
    return StageStatus("evaluate", "done" if done else "waiting")
