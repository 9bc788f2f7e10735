"""What a study varies, how it chooses, and how it uses a cluster. Needs neither Ray nor Optuna."""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from sharelock_ray.config import Config
from sharelock_ray.study.trials import Objective

PASSWORD = "SHARELOCK_OPTUNA_PASSWORD"
"""Environment variable with the password of the database at `tuning.storage`."""
# As SQLAlchemy reads a URL; drivers also take it from the query.
_HAS_PASSWORD = re.compile(r"://[^:/]*:[^@]+@|[?&]\w*(password|passwd|pwd)=", re.IGNORECASE)

Scalar = str | int | float | bool | None

# Losses are means over batches of a kind: those of another kind are other numbers. So is recall within a batch.
_CHANGES_BATCH = r"alignment\.(global_batch_size|accumulation|validation_fraction|positives)|data\..*"
_CHANGES_LOSS = rf"{_CHANGES_BATCH}|alignment\.(loss|logit_scale|learn_logit_scale|logit_bias)"


class Range(Config):
    """Every number from `low` to `high`, both included; whole numbers where both are."""

    _always_hashed = "low high log"

    low: int | float
    high: int | float
    log: bool = False
    """Whether equal factors, not equal steps, are equally likely."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError("`low` must be less than `high`, and more than 0 where `log` is true")
        return self

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


Axis = tuple[Any, ...] | Range | dict[str, dict[str, Any]]
"""Values of one field; a range of it; or named choices, each of which sets several fields."""


def _as_tuple(given: Any) -> Any:
    return (given,) if isinstance(given, str) else given


class TuningSpec(Config):
    """A study: the space that it searches, in what way, for what."""

    space: Annotated[dict[str, Axis], Field(min_length=1)]
    """By field, as for `--set`: `alignment.language.depth: [2, 4]`, `alignment.learning_rate: {low: 1.0e-4, high:
    1.0e-2, log: true}`. `vision` and `language` choose among the recipe's encoders by name. A name of one's own goes
    with named choices: `direction: {to_vision: {alignment.language.depth: 4}, both: {…}}`."""
    sampler: Literal["grid", "random", "tpe"] = "grid"
    """Every point of the space; random ones; or Optuna's TPE, which learns from finished trials."""
    trials: Annotated[int, Field(ge=1)] | None = None
    """Points to try, of samplers other than the grid; each is trained with every seed."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """In place of `alignment.seed`: each decides first weights, order of pairs and dropout, alike for all points."""
    scheduler: Literal["none", "asha", "median"] = "none"
    """Ends weak trials early, by their validations: asynchronous successive halving (arXiv 1810.05934), or below the
    median of the others."""
    objective: Annotated[tuple[Objective, ...], BeforeValidator(_as_tuple), Field(min_length=1)] = ("validation_loss",)
    """What is best. More than one: all trade-offs are sought. The first is what schedulers and the report rank by."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """Trials at a time; without it, as many as the cluster holds."""
    cpus_per_trial: Annotated[float, Field(gt=0)] = 1
    """Logical CPUs of a trial; also its threads."""
    gpus_per_trial: Annotated[float, Field(ge=0)] = 0
    """May be a fraction: with 0.25, four trials share a GPU."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Lost processes after which a trial is given up."""
    storage: str | None = None
    """SQLAlchemy URL of a database for the Optuna study, such as `sqlite:////tmp/s.db`; without it, a journal file.
    Without its password, which is never stored: it is taken from the environment, `SHARELOCK_OPTUNA_PASSWORD`."""

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

    # Of the whole, since an error of the field would show the field.
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
        """Every field that some point sets."""
        return list(dict.fromkeys(self._fields()))

    def _fields(self) -> Iterator[str]:
        for name, axis in self.space.items():
            if isinstance(axis, dict):
                for changes in axis.values():
                    yield from changes
            else:
                yield name

    def labels(self, name: str) -> tuple[Scalar, ...] | None:
        """The values of an axis as they are shown and stored; None for a range."""
        axis = self.space[name]
        if isinstance(axis, Range):
            return None
        return tuple(axis) if isinstance(axis, dict) else tuple(_label(value) for value in axis)

    def points(self) -> Iterator[dict[str, Scalar]]:
        """Every point of a space without ranges, (axis, label), the last axis fastest."""
        for values in itertools.product(*(self.labels(name) or () for name in self.space)):
            yield dict(zip(self.space, values, strict=True))

    @property
    def monitored(self) -> str:
        """What a validation during training has that comes nearest to the first objective."""
        return "validation_loss" if self.objective[0] == "validation_loss" else "recall_at_1"

    def changes(self, point: dict[str, Any]) -> dict[str, Any]:
        """The fields that a point, (axis, label), sets."""
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
