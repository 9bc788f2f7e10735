"""Class prompts: extraction into a feature set of texts, compared with the encoder alone."""

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from sharelock_ray.bench.captions import MINILM
from sharelock_ray.bench.measure_extract import extraction_rates
from sharelock_ray.bench.timing import alternate, median_ratio, rate_by_cpu
from sharelock_ray.encoders.spec import LanguageSpec
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.prompts import PromptSource, prompts_of

_SPEC = LanguageSpec(name="bench", model=MINILM, pooling="mean")


@dataclass(frozen=True)
class Comparison:
    """Prompts per second of CPU time, per round. The extraction counts all its processes, Ray's among them."""

    prompts: int
    extraction: list[float]
    """After the first shard of 100 classes, since before it actors start and the model is loaded."""
    encoder: list[float]
    """As in `bench captions`: one process that is given all prompts at once."""

    @property
    def ratio(self) -> float:
        """Median ratio of the extraction's rate to the encoder's."""
        return median_ratio(self.extraction, self.encoder)


def compare(classes: int, templates: int, repeats: int) -> Comparison:
    """Embeds the prompts of ImageNet-21k's first class names by MiniLM, on one thread, both ways in turn.

    Raises:
        RequestError: there are not that many names, or MiniLM's package is not installed.
    """
    source = prompts(classes, templates)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as extraction, ProcessPoolExecutor(1, context) as encoder:
        runs = {
            "encoder": lambda: encoder.submit(_encode, source).result(),
            "extraction": lambda: extraction.submit(_extract, source, templates).result(),
        }
        taken = alternate(runs, repeats)
    return Comparison(classes * templates, taken["extraction"], taken["encoder"])


def prompts(classes: int, templates: int) -> PromptSource:
    """The prompts of ImageNet-21k's first class names in as many templates of one form.

    Raises:
        RequestError: there are not that many names.
    """
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-21k")
    if classes > info.num_classes():
        raise RequestError(f"--classes {classes:,}: ImageNet-21k has {info.num_classes():,}")
    names = [info.index_to_description(index).split(",")[0] for index in range(classes)]
    return PromptSource(names=tuple(names), templates=tuple(f"photo {n} of a {{}}." for n in range(templates)))


def _encode(source: PromptSource) -> float:
    import torch

    from sharelock_ray.encoders.language import LanguageEncoder

    torch.set_num_threads(1)
    encoder = LanguageEncoder(_SPEC, "cpu")
    texts = [text for name in source.names for text in prompts_of(name, source.templates)]
    encoder.encode(texts[:100])
    return rate_by_cpu(lambda: len(encoder.encode(texts)))


def _extract(source: PromptSource, templates: int) -> float:
    from sharelock_ray.encoders.resolved import resolve
    from sharelock_ray.engine import cluster
    from sharelock_ray.engine.extraction import ExtractionJob
    from sharelock_ray.engine.extraction_options import ExtractionOptions

    with tempfile.TemporaryDirectory(prefix="sharelock-bench-") as folder, cluster.connected():
        job = ExtractionJob(folder, "bench", "prompts", source, (resolve(_SPEC),))
        rates, _ = extraction_rates(job, ExtractionOptions())
    return rates.per_cpu_second * templates
