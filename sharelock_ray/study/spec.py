"""Settings of a study: search space, sampler, scheduler and resources. Needs neither Ray nor Optuna."""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from sharelock_ray.config import Config
from sharelock_ray.encoders.spec import ModelName
from sharelock_ray.study.trials import Objective

PASSWORD = "SHARELOCK_OPTUNA_PASSWORD"
"""Environment variable with the password of the database at `tuning.storage`."""
# SQLAlchemy reads a password before the host; drivers also accept it in the query.
_HAS_PASSWORD = re.compile(r"://[^:/]*:[^@]+@|[?&]\w*(password|passwd|pwd)=", re.IGNORECASE)

Scalar = str | int | float | bool | None

# Losses and recall depend on the composition of batches, so trials that differ in it cannot be compared.
_CHANGES_BATCH = r"alignment\.(global_batch_size|accumulation|validation_fraction|positives)|data\..*"
_CHANGES_LOSS = rf"{_CHANGES_BATCH}|alignment\.(loss|logit_scale|learn_logit_scale|logit_bias)"


class Range(Config):
    """The numbers from `low` to `high`, both included; integers if both bounds are."""

    _always_hashed = "low high log"

    low: int | float
    high: int | float
    log: bool = False
    """Samples uniformly in the logarithm."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError("`low` must be less than `high`, and more than 0 where `log` is true")
        return self

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


Axis = tuple[Any, ...] | Range | dict[str, dict[str, Any]]
"""Values of one field, a range, or named choices that each set several fields."""


def _as_tuple(given: Any) -> Any:
    return (given,) if isinstance(given, str) else given


class TuningSpec(Config):
    """A study: its search space, search method and objective."""

    space: Annotated[dict[str, Axis], Field(min_length=1)]
    """By field, as for `--set`: `alignment.language.depth: [2, 4]`, `alignment.learning_rate: {low: 1.0e-4, high:
    1.0e-2, log: true}`. `vision` and `language` choose among the recipe's encoders by name, where `*` is any text. A
    name of one's own goes with named choices: `direction: {to_vision: {alignment.language.depth: 4}, both: {…}}`."""
    sampler: Literal["grid", "random", "tpe"] = "grid"
    """Every point of the space, random points, or Optuna's TPE, which learns from finished trials."""
    trials: Annotated[int, Field(ge=1)] | None = None
    """Number of points for `random` and `tpe`; each is trained with every seed."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Replace `alignment.seed`. A seed sets initial weights, order of pairs and dropout alike for all points."""
    matched: tuple[tuple[ModelName, ModelName], ...] = ()
    """Pairs of models, an encoder and a decoder each, to compare with the best of their readings among the encoders of
    the axis `language` (see `study.matched`)."""
    scheduler: Literal["none", "asha", "median"] = "none"
    """Stops weak trials early by their validations: asynchronous successive halving (arXiv 1810.05934), or the median
    stopping rule."""
    objective: Annotated[tuple[Objective, ...], BeforeValidator(_as_tuple), Field(min_length=1)] = ("validation_loss",)
    """One objective, or several for a multi-objective search. Schedulers and the report rank by the first."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of concurrent trials; None: as many as the cluster holds."""
    cpus_per_trial: Annotated[float, Field(gt=0)] = 1
    """Logical CPUs per trial; also its number of threads."""
    gpus_per_trial: Annotated[float, Field(ge=0)] = 0
    """GPUs per trial; with 0.25, four trials share one."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Number of lost processes after which a trial fails."""
    storage: str | None = None
    """SQLAlchemy URL of a database for the Optuna study, such as `sqlite:////tmp/s.db`; None: a journal file. The
    password is not part of it, but read from the environment variable `SHARELOCK_OPTUNA_PASSWORD`."""

    @field_validator("seeds", "objective")
    @classmethod
    def _distinct(cls, given: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(given)) != len(given):
            raise ValueError("each may be named once")
        return given

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name, axis in self.space.items():
            if isinstance(axis, Range):
                if self.sampler == "grid":
                    raise ValueError(f"the grid wants a list of values for `{name}`, not a range")
            elif not axis:
                raise ValueError(f"`{name}` has no value to try")
        if (self.trials is None) != (self.sampler == "grid"):
            raise ValueError("`trials` says how many points random and tpe try; the grid tries all of its own")
        if self.objective[0] in ("parameters", "seconds"):
            raise ValueError(f"`{self.objective[0]}` alone asks for no quality: put a quality first in `objective`")
        return self

    @model_validator(mode="after")
    def _matched_are_pairs(self) -> Self:
        if not self.matched:
            return self
        if self.sampler != "grid" or not isinstance(self.space.get("language"), tuple):
            raise ValueError(
                "`matched` compares encoders of a grid: name them in `space.language`, and take `sampler: grid`"
            )
        for place, pair in enumerate(self.matched):
            if pair[0] == pair[1]:
                raise ValueError(f"`matched` pairs {pair[0]} with itself: name an encoder and a decoder")
            if pair in self.matched[:place] or pair[::-1] in self.matched[:place]:
                raise ValueError(f"`matched` pairs {pair[0]} and {pair[1]} twice: name each pair once")
        return self

    # A model validator, since the error of a field validator would show the password.
    @model_validator(mode="after")
    def _no_password(self) -> Self:
        if _HAS_PASSWORD.search(self.storage or ""):
            raise ValueError(
                f"`storage` holds a password, which would be stored with the run: leave it out of the URL, "
                f"and give it as the environment variable {PASSWORD}"
            )
        return self

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        by_loss = self.objective[0] == "validation_loss"
        for name in self.fields:
            if by_loss and re.fullmatch(_CHANGES_LOSS, name):
                raise ValueError(f"losses of different `{name}` cannot be compared: take `objective: recall_at_1`")
            if self.scheduler != "none" and re.fullmatch(_CHANGES_BATCH, name):
                raise ValueError(f"validations of different `{name}` cannot be compared: take `scheduler: none`")
        return self

    @property
    def fields(self) -> list[str]:
        """All fields that any point sets."""
        return list(dict.fromkeys(self._fields()))

    def _fields(self) -> Iterator[str]:
        for name, axis in self.space.items():
            if isinstance(axis, dict):
                for changes in axis.values():
                    yield from changes
            else:
                yield name

    def labels(self, name: str) -> tuple[Scalar, ...] | None:
        """Values of an axis as they are displayed and stored; None for a range."""
        axis = self.space[name]
        if isinstance(axis, Range):
            return None
        return tuple(axis) if isinstance(axis, dict) else tuple(_label(value) for value in axis)

    def points(self) -> Iterator[dict[str, Scalar]]:
        """All points of a space without ranges, as {axis: label}; the last axis varies fastest."""
        for values in itertools.product(*(self.labels(name) or () for name in self.space)):
            yield dict(zip(self.space, values, strict=True))

    @property
    def monitored(self) -> str:
        """The validation metric closest to the first objective."""
        return "validation_loss" if self.objective[0] == "validation_loss" else "recall_at_1"

    def changes(self, point: dict[str, Any]) -> dict[str, Any]:
        """The fields that a point, {axis: label}, sets."""
        found: dict[str, Any] = {}
        for name, label in point.items():
            axis = self.space[name]
            if isinstance(axis, dict):
                found |= axis[label]
            elif isinstance(axis, Range):
                found[name] = label
            else:
                found[name] = next(value for value in axis if _label(value) == label)
        return found


def _label(value: Any) -> Scalar:
    return value if isinstance(value, Scalar) else json.dumps(value)
