"""Base class of settings: frozen, without unknown fields, and hashable by content."""

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
