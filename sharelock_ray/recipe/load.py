"""Reads recipes with overrides; errors are one line."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from sharelock_ray import storage
from sharelock_ray.errors import RequestError
from sharelock_ray.recipe.schema import Recipe

SHIPPED = Path(__file__).parent / "recipes"


def read_recipe(path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads the recipe at `path` and applies `overrides` (`a.b=c`, with `c` in YAML).

    Args:
        path: a file, a URI, or the name of a shipped recipe such as `demo`.

    Raises:
        RequestError: the file is missing or not YAML, or a field is invalid; the message names the field.
    """
    place = str(SHIPPED / f"{path}.yaml") if path.isidentifier() and not storage.exists(path) else path
    try:
        with storage.reading(place, "recipe"):
            content = yaml.safe_load(storage.read_bytes(place))
    except yaml.YAMLError as error:
        raise RequestError(f"{place} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RequestError(f"{place} is not a recipe: it must hold fields, such as `name:`")
    for override in overrides:
        _put(content, override)
    return parse_recipe(content, place)


def parse_recipe(content: dict[str, Any], place: str) -> Recipe:
    """Validates `content`; errors name `place`."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RequestError(f"{place}: {_explain(error)}") from None


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


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = _where(first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(sorted(known))}"
        return f"there is no field `{where}`: {hint}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"the field `{where}` is missing"
    given = f" (it is {first['input']!r})" if where and not isinstance(first["input"], dict) else ""
    return f"`{where}`: {message}{given}" if where else message


def _where(path: Sequence[int | str]) -> str:
    """Pydantic's path in the notation of `--set`."""
    return ".".join(_walk(path)[0])


def _fields(path: Sequence[int | str]) -> list[str]:
    """Names of the schema's fields at `path`."""
    return sorted({name for model in _walk(path)[1] for name in model.model_fields})


def _walk(path: Sequence[int | str]) -> tuple[list[str], list[type[BaseModel]]]:
    """The parts of a path without union tags (such as `vision`), which are not fields, and the models at its end."""
    shown: list[str] = []
    models: list[type[BaseModel]] = [Recipe]
    for part in path:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        tagged = [] if fields else [model for model in models if _has_tag(model, part)]
        if not tagged:
            shown.append(str(part))
        # A list index does not change the model.
        models = [inner for field in fields for inner in _models(field.annotation)] or tagged or models
    return shown, models


def _has_tag(model: type[BaseModel], tag: int | str) -> bool:
    return isinstance(tag, str) and any(tag in get_args(field.annotation) for field in model.model_fields.values())


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
