"""Stored documents: JSON files with the version of their schema.

Documents of earlier versions stay readable: missing fields have their defaults. A newer version is rejected before its
fields are read. An unknown field in a known version is an error.
"""

import json
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError, model_validator

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.errors import RequestError, RunError

REMEDY = "restore it, or delete it and run the same command again"


class NewerVersionError(RequestError):
    """A document was written by a newer version of this package."""


class Document(Config):
    """Content of a JSON file.

    A class that gains a field, also in a nested model, increments its `schema_version` and gives the field a default. A
    document without a version has version 1. Nested documents have the version of the outer one.
    """

    schema_version: ClassVar[int] = 1
    """The version that is written, and the newest that is read."""

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
        """The version and the fields as plain JSON values."""
        return {"schema_version": self.schema_version, **self.model_dump(mode="json")}


_Document = TypeVar("_Document", bound=Document)


def read_document(kind: type[_Document], uri: str, remedy: str = REMEDY) -> _Document:
    """Reads the document at `uri`.

    Args:
        remedy: advice in the error if it is damaged.

    Raises:
        FileNotFoundError: there is no object.
        NewerVersionError: a newer version of this package wrote it.
        RunError: it is damaged: not JSON, or with other fields.
    """
    return parse_document(kind, storage.read_bytes(uri), uri, remedy)


def parse_document(kind: type[_Document], data: bytes, place: str, remedy: str = REMEDY) -> _Document:
    """Parses the document in `data`; raises as `read_document`, and errors name `place`."""
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
