"""Published scores of other systems, as data: `published.yaml` beside this file. Does not import torch."""

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sharelock_ray.config import Config
from sharelock_ray.evaluation.benchmark import shipped
from sharelock_ray.sources.content import read_yaml

Metric = Literal[
    "top-1", "image to text recall@1", "text to image recall@1", "text score", "image score", "group score"
]


def _known(benchmark: str) -> str:
    if benchmark not in shipped():
        raise ValueError(f"there is no benchmark {benchmark!r}")
    return benchmark


class Report(Config):
    """Scores of a model in one source."""

    source: str
    second_hand: bool = False
    """Whether the scores were read in a text that quotes the source, and not in the source itself."""
    scores: Annotated[
        dict[
            Annotated[str, AfterValidator(_known)],
            Annotated[dict[Metric, Annotated[float, Field(ge=0, le=100)]], Field(min_length=1)],
        ],
        Field(min_length=1),
    ]
    """Percentages as printed, by shipped benchmark and metric."""


class PublishedModel(Config):
    """A model of others. Fields that its sources do not state are None."""

    model: str
    vision: str | None = None
    """The vision encoder."""
    language: str | None = None
    """The language encoder."""
    data: str | None = None
    """What it was trained or aligned on."""
    note: str | None = None
    reports: Annotated[tuple[Report, ...], Field(min_length=1)]


class _Published(Config):
    models: tuple[PublishedModel, ...]


@cache
def published() -> tuple[PublishedModel, ...]:
    """The published models, in the order of the file."""
    return _Published.model_validate(read_yaml(str(Path(__file__).with_suffix(".yaml")), "list of scores")).models
