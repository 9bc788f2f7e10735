"""Base class of settings: frozen, without unknown fields, and hashable by content; and one line for a fault in them."""

import difflib
import hashlib
import json
from collections.abc import Sequence, Set
from typing import Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_jsonable_python


class Config(BaseModel):
    """A frozen group of settings; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    _always_hashed: ClassVar[str] = ""
    """Names, separated by spaces, of fields that `content_hash` includes even at their defaults. These existed before
    defaults were excluded; never add a field."""


def content_hash(*values: object) -> str:
    """First eight hex digits of the SHA-256 of the canonical JSON of `hashed(values)`."""
    return hashlib.sha256(json.dumps(hashed(values), sort_keys=True).encode()).hexdigest()[:8]


def hashed(value: object, exclude: Set[str] = frozenset()) -> Any:
    """The content that names are derived from, as plain JSON values; nested models are included.

    A field is included if it differs from its default, so that a new field with a default renames nothing. Tags
    (literals of one value), which distinguish models, and the fields of `_always_hashed` are always included. The
    default of any other field must never change: sets made with the old and the new default would share one name.

    Args:
        exclude: fields of `value` itself to leave out.
    """
    if isinstance(value, Config):
        names = type(value).model_fields.keys() - exclude
        return {name: hashed(getattr(value, name)) for name in names if _counts(value, name)}
    if isinstance(value, dict):
        return {name: hashed(of) for name, of in value.items()}
    if isinstance(value, list | tuple):
        return [hashed(of) for of in value]
    return to_jsonable_python(value)


def _counts(model: Config, name: str) -> bool:
    field = type(model).model_fields[name]
    is_tag = get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
    if is_tag or name in model._always_hashed.split():
        return True
    return bool(getattr(model, name) != field.get_default(call_default_factory=True))


def explain(error: ValidationError, schema: type[BaseModel]) -> str:
    """One line about the first fault of a user's settings: its field, and the nearest one if there is no such field.

    Args:
        schema: the model that refused them.
    """
    # A misspelt field is also missing under its right name.
    first = min(error.errors(include_url=False), key=lambda fault: fault["type"] != "extra_forbidden")
    where = _where(first["loc"], schema)
    if first["type"] == "extra_forbidden":
        known = _fields(first["loc"][:-1], schema)
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(sorted(known))}"
        return f"there is no field `{where}`: {hint}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"the field `{where}` is missing"
    given = f" (it is {first['input']!r})" if where and not isinstance(first["input"], dict) else ""
    return f"`{where}`: {message}{given}" if where else message


def _where(path: Sequence[int | str], schema: type[BaseModel]) -> str:
    """Pydantic's path in the notation of `--set`."""
    return ".".join(_walk(path, schema)[0])


def _fields(path: Sequence[int | str], schema: type[BaseModel]) -> list[str]:
    """Names of the schema's fields at `path`."""
    return sorted({name for model in _walk(path, schema)[1] for name in model.model_fields})


def _walk(path: Sequence[int | str], schema: type[BaseModel]) -> tuple[list[str], list[type[BaseModel]]]:
    """The parts of a path without union tags (such as `vision`), which are not fields, and the models at its end."""
    shown: list[str] = []
    models: list[type[BaseModel]] = [schema]
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
