"""The texts of a benchmark, as sources for language encoders."""

from collections.abc import Iterator, Sequence

from sharelock_ray.config import content_hash
from sharelock_ray.evaluation.benchmark import Benchmark
from sharelock_ray.evaluation.choices import Choice
from sharelock_ray.evaluation.names import in_folder
from sharelock_ray.sources.prompts import PromptSource
from sharelock_ray.sources.sample import Source
from sharelock_ray.sources.translations import TranslationSource


def texts_of(benchmark: Benchmark, languages: Sequence[str], folder: str) -> Iterator[tuple[str, str, Source | None]]:
    """The texts in each language, named by their content: equal ones of several benchmarks are embedded once.

    Class prompts have one key per class, in order. Captions of images have the language and the image's key as key;
    those of an example, the language and the example's number.

    Args:
        folder: that of the images.

    Yields:
        language, name of the split, and source; None if the source of the images has the captions.

    Raises:
        RequestError: the names, templates, captions or examples cannot be read.
    """
    if benchmark.templates is not None:
        for language in languages:
            names, templates = benchmark.classes_in(language, folder).names, benchmark.templates_in(language, folder)
            yield language, f"prompts-{content_hash(names, templates)}", PromptSource(names=names, templates=templates)
    elif benchmark.choices is not None:
        examples = benchmark.choices_in(folder)
        for language in languages:
            source = TranslationSource(captions=((language, tuple(map(_numbered, enumerate(examples)))),))
            yield language, f"captions-{content_hash(source)}", source
    elif benchmark.translations is not None:
        table = in_folder(benchmark.translations, folder, "captions")
        for captions in TranslationSource.of_table(table, tuple(languages)).captions:
            source = TranslationSource(captions=(captions,))
            yield captions[0], f"captions-{content_hash(source)}", source
    else:
        for language in languages:
            yield language, "", None


def _numbered(example: tuple[int, Choice]) -> tuple[str, tuple[str, ...]]:
    return f"{example[0]:09d}", example[1].captions
