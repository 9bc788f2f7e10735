"""The base of every setting a recipe can hold: frozen, closed to unknown fields, and hashable by content."""

import hashlib
import json

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen group of settings; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def content_hash(*values: object) -> str:
    """Eight hex digits of the SHA-256 of the canonical JSON of `values` (models are dumped first)."""
    plain = [value.model_dump(mode="json") if isinstance(value, BaseModel) else value for value in values]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]
