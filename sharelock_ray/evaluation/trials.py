"""What became of the trials of a study, as it is stored and shown. Needs no torch."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from sharelock_ray import storage
from sharelock_ray.config import Config

Objective = Literal["validation_loss", "recall_at_1", "zero_shot", "parameters", "seconds"]
State = Literal["running", "finished", "pruned", "diverged", "out of memory", "failed"]

TRIAL, STUDY = "trial.json", "study.json"
LOWER_IS_BETTER = ("validation_loss", "parameters", "seconds")


class Trial(Config):
    """`trial.json`, in the folder of a trial's run: what it was, and how it ended."""

    point: dict[str, Any]
    """Its value on each axis of the study."""
    seed: int
    run: str
    """Its folder."""
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


class Study(Config):
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
    storage: str
    """Of the Optuna study: what `optuna-dashboard` opens."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, which is None where it cannot be known, as of a single seed."""

    value: float
    low: float | None = None
    high: float | None = None

    def overlaps(self, other: "Interval") -> bool | None:
        """Whether both intervals have a value in common; None where one of them is not known."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return None
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Point:
    """A point of the space over its seeds."""

    point: dict[str, Any]
    seeds: int
    """That finished."""
    values: dict[str, Interval]
    """By objective."""
    runs: tuple[str, ...]


def write_trial(trial: Trial) -> None:
    storage.write_json(storage.join(trial.run, TRIAL), trial.model_dump(mode="json"))


def read_trial(run: str) -> Trial | None:
    """The record in a run's folder; None where there is none."""
    path = storage.join(run, TRIAL)
    return Trial.model_validate(storage.read_json(path)) if storage.exists(path) else None
