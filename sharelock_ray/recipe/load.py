"""Reads recipes with overrides; errors are one line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sharelock_ray import storage
from sharelock_ray.config import explain
from sharelock_ray.errors import RequestError
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.sources.content import read_yaml

SHIPPED = Path(__file__).parent / "recipes"


def read_recipe(path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads the recipe at `path` and applies `overrides` (`a.b=c`, with `c` in YAML).

    Args:
        path: a file, a URI, or the name of a shipped recipe such as `demo`.

    Raises:
        RequestError: the file is missing or not YAML, or a field is invalid; the message names the field.
    """
    place = str(SHIPPED / f"{path}.yaml") if path.isidentifier() and not storage.exists(path) else path
    content = read_yaml(place, "recipe")
    for override in overrides:
        _put(content, override)
    return parse_recipe(content, place)


def parse_recipe(content: dict[str, Any], place: str) -> Recipe:
    """Validates `content`; errors name `place`."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RequestError(f"{place}: {explain(error, Recipe)}") from None


def write_recipe(recipe: Recipe) -> None:
    """Saves the resolved recipe beside its output."""
    content = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    storage.write_bytes(storage.join(recipe.output, "recipe.yaml"), content.encode())


def with_settings(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """A copy of `recipe` with changed fields, named as for `--set`."""
    content = recipe.model_dump(mode="json")
    for name, value in settings.items():
        _place(content, name, value)
    return parse_recipe(content, "the grid of `tuning`")


def _put(content: dict[str, Any], override: str) -> None:
    name, separator, value = override.partition("=")
    if not separator:
        raise RequestError(f"--set {override}: write it as field=value, such as --set alignment.steps=100")
    try:
        _place(content, name, yaml.safe_load(value))
    except yaml.YAMLError:
        raise RequestError(f"--set {override}: {value} is not a YAML value") from None


def _place(content: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    place: Any = content
    try:
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[int(last) if isinstance(place, list) else last] = value
    except (TypeError, AttributeError, ValueError, IndexError):
        raise RequestError(f"{name} is not a place in the recipe") from None
