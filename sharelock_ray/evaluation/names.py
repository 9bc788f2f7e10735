"""Class names, templates and synsets: lists in files of installed packages, of the folder of a benchmark, or elsewhere.

Packages are read and never copied, and their code does not run: a variable of a `.py` file is found in its syntax tree.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Annotated, Any

from pydantic import BeforeValidator

from sharelock_ray import storage
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.content import decoded, read_lines

FOLDER = "folder://"
"""Start of a path inside the folder of a benchmark's images."""
_PACKAGE, _TIMM = "package://", "timm://"
_SHOWN = 3

ListUri = storage.Uri
"""A list in a file, as `<file>#<place>`.

`file` is `package://<package>/<file>`, `folder://<file>`, a local path or a URI. A text file has one entry per line. In
a `.json` file, `place` is keys and indices separated by `/`; at its end, `keys()` is the sorted keys of an object, and
`values()` its values in that order. In a `.py` file, `place` is a variable, which may be local to a function.
`{language}` and `{LANGUAGE}` stand for the language's code in small letters and in capitals. `timm://<subset>` is the
WordNet ids of an ImageNet subset in label order, from timm's `ImageNetInfo`.
"""


def _written_out(given: object) -> object:
    """Refuses what is no list, before the errors for each type of one."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list | tuple):
        raise ValueError("write a list, or the file of one, such as folder://names.txt")
    if not all(type(each) is str for each in given):
        raise ValueError("write texts only, with numbers and words such as no in quotation marks")
    return tuple(given)


def _positions(given: object) -> object:
    if isinstance(given, list | tuple) and given and all(type(each) is int for each in given):
        return tuple(given)
    return _written_out(given)


NameList = Annotated[ListUri | tuple[str, ...], BeforeValidator(_written_out)]
IndexList = Annotated[ListUri | tuple[int, ...] | tuple[str, ...], BeforeValidator(_positions)]


def read_list(
    source: str | tuple[int, ...] | tuple[str, ...], what: str, language: str = "", folder: str | None = None
) -> list[Any]:
    """Reads a list.

    Args:
        what: name of its content, for errors ("class names").
        language: code for the placeholders.
        folder: the folder of the benchmark's images.

    Raises:
        RequestError: the file, its package or the place in it is missing; it is in the benchmark's folder, which is not
            given; or it is not a list, or an empty one.
    """
    if isinstance(source, tuple):
        found: Any = list(source)
    elif source.startswith(_TIMM):
        found = _synsets(source.removeprefix(_TIMM))
    else:
        file, _, place = in_language(source, language).partition("#")
        found = _value(in_folder(file, folder, what), place, what)
    if not isinstance(found, list) or not found:
        kind = "an empty list" if found == [] else f"a {type(found).__name__}, not a list"
        raise RequestError(f"the {what} in {source or '()'} are {kind}")
    return found


def read_image_labels(source: ListUri) -> dict[str, list[int]]:
    """Reads labels of images by file name, from a JSON object; `timm://real` is ReaL (arXiv 2006.07159) from timm."""
    if source == f"{_TIMM}real":
        # timm imports torch. The class reads the labels and wants as many file names.
        from timm.data import RealLabelsImagenet

        labels: dict[str, list[int]] = RealLabelsImagenet(range(50_000)).real_labels
        return labels
    found = _value(source, "", "labels of images")
    if not isinstance(found, dict):
        raise RequestError(f"the labels of images in {source} are no JSON object of file names")
    return found


def in_folder(uri: str, folder: str | None, what: str) -> str:
    """`uri` with `folder://` replaced by the folder of the benchmark's images.

    Raises:
        RequestError: that folder is not given.
    """
    if not uri.startswith(FOLDER):
        return uri
    if folder is None:
        raise RequestError(f"the {what} are in the folder of the images, which is not given")
    return storage.join(folder, uri.removeprefix(FOLDER)).rstrip("/")


def missing_package(source: object) -> str | None:
    """The Python package that holds a list and is not installed, or None."""
    if not isinstance(source, str) or not source.startswith(_PACKAGE):
        return None
    try:
        storage.package_path(source)
    except storage.ImpossibleUriError:
        return source.removeprefix(_PACKAGE).partition("/")[0]
    return None


def digest(values: Sequence[Any]) -> str:
    """SHA-256, in hexadecimal, of a list's canonical JSON: UTF-8 without white space or escapes of letters."""
    return hashlib.sha256(json.dumps(list(values), ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def checked_names(names: Iterable[object], place: str, count: int | None = None) -> tuple[str, ...]:
    """Returns class names after checking that each class has one.

    Args:
        place: the benchmark, for errors.
        count: number of classes; None if it is not known.

    Raises:
        RequestError: there are none, one is empty or not a text, or their number is another than `count`.
    """
    found = tuple(names)
    if not found:
        raise RequestError(f"{place} has no class names: give at least one")
    for label, name in enumerate(found):
        if not isinstance(name, str) or not name.strip():
            raise RequestError(f"{place}: class {label:,} of {len(found):,} has no name (it is {name!r})")
    if count is not None and len(found) != count:
        raise RequestError(f"{place} has {len(found):,} class names for {count:,} classes: give one name per class")
    return tuple(str(name) for name in found)


def shared_names(names: Sequence[str]) -> dict[str, list[int]]:
    """The names that several classes share, with the positions of these classes."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return {name: found for name, found in places.items() if len(found) > 1}


def sharing_note(names: Sequence[str]) -> str | None:
    """A warning about shared names, or None. Classes of one name have equal texts, so they cannot be told apart."""
    shared = shared_names(names)
    if not shared:
        return None
    first = ", ".join(f"{name} ({', '.join(map(str, of))})" for name, of in list(shared.items())[:_SHOWN])
    more = f" and {len(shared) - _SHOWN:,} more" if len(shared) > _SHOWN else ""
    count = sum(map(len, shared.values()))
    return f"{count:,} of {len(names):,} classes share their name, and any of these is right: {first}{more}"


def in_language(text: str, language: str) -> str:
    """`text` with the placeholders `{language}` and `{LANGUAGE}` replaced."""
    return text.replace("{language}", language.lower()).replace("{LANGUAGE}", language.upper())


@cache
def _synsets(subset: str) -> list[str]:
    # timm imports torch.
    from timm.data import ImageNetInfo

    try:
        return list(ImageNetInfo(subset).label_names())
    except (AssertionError, KeyError):
        raise RequestError(f"timm knows no ImageNet subset {subset!r}: use imagenet-1k, imagenet-21k, …") from None


def _value(uri: str, place: str, what: str) -> Any:
    if package := missing_package(uri):
        raise RequestError(
            f"the {what} are in the Python package {package}, which is not installed: "
            f"run `pip install 'sharelock-ray[benchmarks]'`, or install that package by itself"
        )
    with storage.reading(uri, what):
        version = storage.version(uri)
    if uri.endswith(".json"):
        return _in_json(_json(uri, what, version), place, f"{uri} has no {what} at {place!r}")
    if uri.endswith(".py"):
        return _in_python(_tree(uri, what, version), place, f"{uri} has no {what} in a variable {place!r}")
    return read_lines(uri, what)


def _in_json(value: Any, place: str, fault: str) -> Any:
    for key in place.split("/") if place else ():
        try:
            if isinstance(value, dict) and key in ("keys()", "values()"):
                value = [name if key == "keys()" else value[name] for name in sorted(value)]
            else:
                value = value[int(key) if isinstance(value, list) else key]
        except (KeyError, IndexError, TypeError, ValueError):
            raise RequestError(fault) from None
    return value


def _in_python(tree: ast.Module, variable: str, fault: str) -> Any:
    """The value of the first assignment to `variable`; the code is not run."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == variable for to in node.targets):
            try:
                return _literal(node.value)
            except ValueError:
                break
    raise RequestError(fault)


def _literal(node: ast.expr) -> Any:
    """The value of a literal. A set is sorted; a function of a name that returns an f-string is a template."""
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        values = [_literal(element) for element in node.elts]
        return sorted(values) if isinstance(node, ast.Set) else values
    if isinstance(node, ast.Lambda) and isinstance(node.body, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.body.values)
    return ast.literal_eval(node)


# `version` changes with the file.
@cache
def _json(uri: str, what: str, version: str) -> Any:
    try:
        return json.loads(_text(uri, what))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the {what} in {uri} are not JSON: {error}") from None


@cache
def _tree(uri: str, what: str, version: str) -> ast.Module:
    try:
        return ast.parse(_text(uri, what))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise RequestError(f"{uri} is not Python: {error}") from None


def _text(uri: str, what: str) -> str:
    with storage.reading(uri, what):
        return decoded(storage.read_bytes(uri), uri)
