"""What became of the trials of a study, as it is stored and shown. Needs no torch."""

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
"""Objectives between 0 and 1."""
CHOSEN_ON_TEST = (
    "This setting was chosen by the test split, so its zero-shot accuracy there is flattered: report another split's."
)
"""What is said wherever the best of a study with the objective `zero_shot` is shown."""
_LEVEL = 0.05
"""Of the tests that tell points apart."""


class Trial(Document):
    """`trial.json`, in the folder of a trial's run: what it was, and how it ended."""

    point: dict[str, Any]
    """Its value on each axis of the study."""
    seed: int
    run: str
    """Its folder."""
    without_effect: tuple[str, ...] = ()
    """Axes whose other values would give the same model, as any activation does at depth 1."""
    state: State
    reason: str = ""
    """Why it ended otherwise than finished."""
    values: dict[str, float] = Field(default_factory=dict)
    """By objective; where it did not finish, what was known last."""
    steps: int = 0
    device: str = ""
    gpus: float = 0.0
    joules: float | None = None
    """Of its share of a GPU, where the device counts them."""

    @property
    def over(self) -> bool:
        """Whether another attempt would end alike. A lack of memory, or a lost machine, may not come again."""
        return self.state in ("finished", "pruned", "diverged")


class Double(Config):
    """A point that is the same model as another one, which is trained in its place."""

    point: dict[str, Any]
    same_as: dict[str, Any]


class Study(Document):
    """`study.json`: what a report is made from."""

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
    storage: str
    """Of the Optuna study: what `optuna-dashboard` opens."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, which is None where it cannot be known, as of a single seed."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Point:
    """A point of the space over its seeds."""

    point: dict[str, Any]
    seeds: int
    """That finished."""
    values: dict[str, Interval]
    """By objective."""
    runs: tuple[str, ...]
    by_seed: dict[int, float]
    """Of the objective that points are ranked by."""
    without_effect: tuple[str, ...] = ()
    """Axes, as of its trials."""
    p: float | None = None
    """That the seeds alone make a difference from the best point as large as is seen (see `study.effects.ranked`);
    None for the best one, and where fewer than two seeds are shared with it."""

    @property
    def is_tied(self) -> bool:
        """Whether the seeds do not tell it apart from the best one."""
        return self.p is None or self.p >= _LEVEL


def write_trial(trial: Trial) -> None:
    storage.write_json(storage.join(trial.run, TRIAL), trial.content())


def read_trial(run: str) -> Trial | None:
    """The record in a run's folder; None where there is none."""
    path = storage.join(run, TRIAL)
    return read_document(Trial, path) if storage.exists(path) else None
