"""`benchmarks`: which benchmarks there are, and whether their names and images are here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sharelock_ray import storage
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.benchmark import Benchmark, read_benchmark, shipped
from sharelock_ray.evaluation.names import digest, missing_package, shared_names, sharing_note

HERE = "here"


@dataclass(frozen=True)
class BenchmarkState:
    """A benchmark in the list.

    Args:
        size: number of images, or of examples of a compositional benchmark.
        names, images: `here`, or what is missing; "" if the benchmark has no such names, or no folder is given.
    """

    name: str
    title: str
    task: str
    languages: tuple[str, ...]
    size: int | None
    licence: str | None
    names: str
    images: str


@dataclass(frozen=True)
class Texts:
    """Class names and templates of a benchmark in one language.

    Args:
        shared: number of classes whose name is also that of another.
        warning: about shared names; "" if there are none.
        class_digest, template_digest: SHA-256 that results name (see `evaluation.names.digest`).
    """

    language: str
    classes: int
    shared: int
    warning: str
    class_digest: str
    templates: int
    template_digest: str


def benchmarks(folders: Mapping[str, str]) -> list[BenchmarkState]:
    """The shipped benchmarks, and those of the user's files that `folders` names.

    Args:
        folders: folder of the images by name, or by path of a user's file.

    Raises:
        RequestError: a name is unknown, or a file is invalid.
    """
    found = {name: read_benchmark(name) for name in [*shipped(), *folders]}
    return [_state(name, benchmark, folders.get(name)) for name, benchmark in found.items()]


def texts(benchmark: Benchmark, folder: str | None = None) -> list[Texts]:
    """Class names and templates in each language; none for a task without classes, or if the folder with the names is
    not given.

    Raises:
        RequestError: a list, or the package that holds it, is missing or invalid.
    """
    if benchmark.templates is None or (benchmark.names_in_folder and folder is None):
        return []
    return [_texts(benchmark, language, folder) for language in benchmark.languages]


def folders_of(given: Sequence[str]) -> dict[str, str]:
    """Parses `NAME=PATH`.

    Raises:
        RequestError: one is written otherwise, or its path does not exist.
    """
    found = {}
    for each in given:
        name, separator, path = each.partition("=")
        if not separator or not path:
            raise RequestError(f"--folder {each}: write it as NAME=PATH, such as --folder imagenet-1k=/data/imagenet")
        if not storage.exists(path):
            raise RequestError(f"--folder {each}: there is nothing at {path}: check the path")
        found[name] = path
    return found


def _texts(benchmark: Benchmark, language: str, folder: str | None) -> Texts:
    names, templates = benchmark.classes_in(language, folder).names, benchmark.templates_in(language, folder)
    return Texts(
        language,
        len(names),
        sum(map(len, shared_names(names).values())),
        sharing_note(names) or "",
        digest(names),
        len(templates),
        digest(templates),
    )


def _state(name: str, benchmark: Benchmark, folder: str | None) -> BenchmarkState:
    return BenchmarkState(
        name,
        benchmark.title,
        benchmark.task,
        benchmark.languages,
        benchmark.size,
        benchmark.licence,
        _names_state(benchmark, folder),
        "" if folder is None else _images_state(benchmark, folder),
    )


def _names_state(benchmark: Benchmark, folder: str | None) -> str:
    if benchmark.templates is None:
        return ""
    missing = {package for source in benchmark.lists() if (package := missing_package(source))}
    if missing:
        return f"install {', '.join(sorted(missing))}"
    if not benchmark.names_in_folder:
        return HERE
    if folder is None:
        return "in its folder"
    try:
        benchmark.classes_in(folder=folder)
    except RequestError as error:
        return str(error)
    return HERE


def _images_state(benchmark: Benchmark, folder: str) -> str:
    try:
        benchmark.source(folder)
    except RequestError as error:
        return str(error)
    return HERE
