"""The base of every setting a recipe can hold: frozen, closed to unknown fields, and hashable by content."""

import hashlib
import json
from collections.abc import Set
from typing import Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_jsonable_python


class Config(BaseModel):
    """A frozen group of settings; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    _always_hashed: ClassVar[str] = ""
    """Names, with spaces between them, of fields that `content_hash` covers at their defaults too: those that a class
    had when names began to cover only what differs from the defaults. Never add a field."""


def content_hash(*values: object) -> str:
    """Eight hex digits of the SHA-256 of the canonical JSON of what `hashed` keeps of `values`."""
    return hashlib.sha256(json.dumps(hashed(values), sort_keys=True).encode()).hexdigest()[:8]


def hashed(value: object, exclude: Set[str] = frozenset()) -> Any:
    """What names are made of, as plain JSON values: of each model, also a nested one, the fields that count.

    A field counts where it differs from its default, so that a new field with a default renames nothing. Tags (literals
    of one value), which tell models apart, and the fields of `_always_hashed` always count. The default of a field that
    does not always count may never change: sets of both defaults would have one name.

    Args:
        exclude: fields of `value` itself that do not count.
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
