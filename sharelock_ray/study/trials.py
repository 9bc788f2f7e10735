"""Records of trials and studies. Needs no torch."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.documents import Document, read_document

Objective = Literal["validation_loss", "recall_at_1", "zero_shot", "parameters", "seconds"]
State = Literal["running", "finished", "pruned", "diverged", "out of memory", "failed"]

TRIAL, STUDY = "trial.json", "study.json"
LOWER_IS_BETTER = ("validation_loss", "parameters", "seconds")
SHARES = ("recall_at_1", "zero_shot")
"""Objectives that are proportions."""
CHOSEN_ON_TEST = (
    "This setting was selected on the test split, so its zero-shot accuracy there is optimistic: report another split."
)
"""Shown with the best point of a study that has the objective `zero_shot`."""
_LEVEL = 0.05
"""Significance level of comparisons between points."""


class Trial(Document):
    """`trial.json`, in the folder of a trial's run: its settings and its end."""

    point: dict[str, Any]
    """Label on each axis of the study."""
    seed: int
    run: str
    """Folder of the run."""
    without_effect: tuple[str, ...] = ()
    """Axes whose other values would give the same model, such as the activation at depth 1."""
    state: State
    reason: str = ""
    """Why it did not finish."""
    values: dict[str, float] = Field(default_factory=dict)
    """By objective; if it did not finish, the last known values."""
    steps: int = 0
    device: str = ""
    gpus: float = 0.0
    joules: float | None = None
    """Energy of its share of a GPU; None if the device does not report energy."""

    @property
    def over(self) -> bool:
        """Whether the trial need not be run again. Lack of memory and lost machines may be temporary."""
        return self.state in ("finished", "pruned", "diverged")


class Double(Config):
    """A point that gives the same model as another point, which is trained instead."""

    point: dict[str, Any]
    same_as: dict[str, Any]


class Reading(Config):
    """How a language encoder reads its model."""

    model: str
    pooling: str
    layer: int | None = None


class Study(Document):
    """`study.json`: the input of a study's report."""

    schema_version = 2

    name: str
    title: str
    note: str
    axes: dict[str, tuple[Any, ...] | None]
    """Values of each axis; None for a range."""
    objective: tuple[Objective, ...]
    seeds: tuple[int, ...]
    sampler: str
    scheduler: str
    trials: tuple[Trial, ...]
    doubles: tuple[Double, ...] = ()
    matched: tuple[tuple[str, str], ...] = ()
    """Pairs of models to compare, an encoder and a decoder each."""
    readings: dict[str, Reading] = Field(default_factory=dict)
    """By language encoder, if models are compared in pairs."""
    storage: str
    """Database of the Optuna study, as `optuna-dashboard` opens it."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; None if unknown, as for a single seed."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Point:
    """A point of the search space, summarised over its seeds."""

    point: dict[str, Any]
    seeds: int
    """Number of finished seeds."""
    values: dict[str, Interval]
    """Mean over seeds of each objective."""
    runs: tuple[str, ...]
    by_seed: dict[int, float]
    """Values of the objective that points are ranked by."""
    without_effect: tuple[str, ...] = ()
    """As in `Trial`."""
    difference: Interval | None = None
    """Mean difference from the best point over the shared seeds; None for the best point, and if no seed is shared."""
    p: float | None = None
    """p-value of the difference from the best point (see `study.effects.ranked`); None for the best point, and if fewer
    than two seeds are shared with it."""

    @property
    def is_tied(self) -> bool:
        """Whether it does not differ significantly from the best point."""
        return self.p is None or self.p >= _LEVEL


def write_trial(trial: Trial) -> None:
    storage.write_json(storage.join(trial.run, TRIAL), trial.content())


def read_trial(run: str) -> Trial | None:
    """The record in a run's folder; None where there is none."""
    path = storage.join(run, TRIAL)
    return read_document(Trial, path) if storage.exists(path) else None
