"""Seconds of each stage of a run, kept in `seconds.json`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sharelock_ray import storage
from sharelock_ray.recipe.schema import Recipe


@contextmanager
def timed(recipe: Recipe, stage: str) -> Iterator[None]:
    """Notes the seconds of a stage that ends well; those of its first run are kept."""
    started = time.monotonic()
    yield
    seconds = time.monotonic() - started
    known = seconds_of(recipe)
    if stage not in known:
        storage.write_json(_path(recipe), known | {stage: round(seconds, 2)})


def seconds_of(recipe: Recipe) -> dict[str, float]:
    """Seconds by stage."""
    return dict(storage.read_json(_path(recipe))) if storage.exists(_path(recipe)) else {}


def _path(recipe: Recipe) -> str:
    return storage.join(recipe.output, "seconds.json")
