"""Seconds of each stage of a run, kept in `seconds.json`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ConfigDict

from sharelock_ray import storage
from sharelock_ray.documents import Document, read_document
from sharelock_ray.recipe.schema import Recipe


class StageSeconds(Document):
    """`seconds.json`: seconds by stage."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]


@contextmanager
def timed(recipe: Recipe, stage: str) -> Iterator[None]:
    """Records the seconds of a stage that succeeds; an earlier record of the stage is kept."""
    started = time.monotonic()
    yield
    seconds = time.monotonic() - started
    known = seconds_of(recipe)
    if stage not in known:
        record = StageSeconds.model_validate(known | {stage: round(seconds, 2)})
        storage.write_json(_path(recipe), record.content())


def seconds_of(recipe: Recipe) -> dict[str, float]:
    """Recorded seconds by stage."""
    return read_document(StageSeconds, _path(recipe)).__pydantic_extra__ if storage.exists(_path(recipe)) else {}


def _path(recipe: Recipe) -> str:
    return storage.join(recipe.output, "seconds.json")
