"""Stored documents: JSON files that say by which version of their schema they were written.

Documents of earlier versions open for ever: a field that one lacks has its default. One of a newer version is refused
by its number, before its fields are looked at. An unknown field of a known version is an error.
"""

import json
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError, model_validator

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.errors import RequestError, RunError

REMEDY = "restore it, or delete it and run the same command again"


class NewerVersionError(RequestError):
    """A document was written by a version of this package that is newer than this one."""


class Document(Config):
    """What one JSON file stores.

    A class that gains a field, also in a model within it, raises its `schema_version`, and gives the field a default. A
    document that says no version is of version 1. Documents within a document are of the version that the outer one
    says.
    """

    schema_version: ClassVar[int] = 1
    """The newest version that is read, which is also the one that is written."""

    @model_validator(mode="before")
    @classmethod
    def _is_of_a_known_version(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "schema_version" not in content:
            return content
        version = content["schema_version"]
        if not isinstance(version, int) or version < 1:
            raise ValueError(f"the schema version is {version!r}")
        if version > cls.schema_version:
            raise NewerVersionError(
                f"was made by a newer version of sharelock_ray (schema {version}, this one reads up to "
                f"{cls.schema_version}): upgrade"
            )
        return {name: value for name, value in content.items() if name != "schema_version"}

    def content(self) -> dict[str, Any]:
        """What is stored: the version and the fields, as plain JSON values."""
        return {"schema_version": self.schema_version, **self.model_dump(mode="json")}


_Document = TypeVar("_Document", bound=Document)


def read_document(kind: type[_Document], uri: str, remedy: str = REMEDY) -> _Document:
    """The document at `uri`.

    Args:
        remedy: what a person can do where it is damaged.

    Raises:
        FileNotFoundError: there is no object.
        NewerVersionError: a newer version of this package wrote it.
        RunError: it is damaged: it is no JSON, or has other fields.
    """
    return parse_document(kind, storage.read_bytes(uri), uri, remedy)


def parse_document(kind: type[_Document], data: bytes, place: str, remedy: str = REMEDY) -> _Document:
    """The document that `data` holds; errors, which are as above, name `place`."""
    try:
        return kind.model_validate(json.loads(data))
    except NewerVersionError as error:
        raise NewerVersionError(f"{place} {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "".join(f"`{'.'.join(map(str, first['loc']))}`: " if first["loc"] else "")
        reason = where + first["msg"].removeprefix("Value error, ")
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
    raise RunError(f"{place} is damaged ({reason}): {remedy}")
