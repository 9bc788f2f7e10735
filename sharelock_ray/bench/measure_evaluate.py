"""Scoring from features: zero-shot classification beside CLIP-Benchmark's functions, and retrieval with its memory."""

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch

from sharelock_ray.bench.timing import alternate, median_ratio, peak_bytes
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.clip_benchmark import with_numpy_2_4
from sharelock_ray.evaluation.ranks import units
from sharelock_ray.evaluation.tasks.retrieval import retrieval
from sharelock_ray.evaluation.tasks.zero_shot import ensemble, zero_shot

OURS, THEIRS = "ours", "CLIP-Benchmark"
_BATCH = 64


@dataclass(frozen=True)
class ZeroShotSetting:
    """`images` of as many classes, each with `templates` prompts: random float32 vectors of width `dim`."""

    images: int
    classes: int
    templates: int
    dim: int
    threads: int


@dataclass(frozen=True)
class ZeroShot:
    """CPU seconds per round of each side, and the top-1 accuracy that both found."""

    setting: ZeroShotSetting
    ours: list[float]
    theirs: list[float]
    top_1: float

    @property
    def ratio(self) -> float:
        """How many times as fast ours is."""
        return median_ratio(self.theirs, self.ours)


@dataclass(frozen=True)
class RetrievalSetting:
    """`images` with one caption or more each, `texts` in total: random float32 unit vectors of width `dim`."""

    images: int
    texts: int
    dim: int
    threads: int

    @property
    def similarities(self) -> int:
        return self.images * self.texts

    @property
    def bytes(self) -> int:
        """Size of the features."""
        return (self.images + self.texts) * self.dim * 4


@dataclass(frozen=True)
class Retrieval:
    """CPU seconds and peak memory beyond the features, of a fresh process."""

    setting: RetrievalSetting
    seconds: float
    extra_bytes: int

    @property
    def per_second(self) -> float:
        """Similarities per CPU second."""
        return self.setting.similarities / self.seconds


def compare_zero_shot(setting: ZeroShotSetting, repeats: int) -> ZeroShot:
    """Measures both sides in turn, in this process, from the prompts' embeddings to the same three scores.

    Raises:
        RequestError: CLIP-Benchmark is not installed.
    """
    theirs = _clip_benchmark()
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(setting.classes * setting.templates, setting.dim, generator=generator)
    of_prompt = np.repeat(np.arange(setting.classes), setting.templates)
    labels = np.arange(setting.images) % setting.classes
    # An image resembles one prompt of its class.
    image = prompts[torch.from_numpy(labels * setting.templates)]
    image += 2 * torch.randn(image.shape, generator=generator)
    names = [f"{c}" for c in range(setting.classes)]
    prompts_of = {n: [f"{c * setting.templates + t}" for t in range(setting.templates)] for c, n in enumerate(names)}
    batches = _Batches(image, torch.from_numpy(labels), names)
    found: dict[str, float] = {}

    def run_ours() -> None:
        prototypes = ensemble(prompts, of_prompt, setting.classes)
        found[OURS] = zero_shot(units(image), labels, prototypes, names, "first_index")[-1].top_1.value

    def run_theirs() -> None:
        scores = theirs.evaluate(_Features(prompts), batches, _rows, names, prompts_of, "cpu", amp=False)
        found[THEIRS] = scores["acc1"]

    threads = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    taken = alternate({OURS: _timed(run_ours), THEIRS: _timed(run_theirs)}, repeats)
    torch.set_num_threads(threads)
    # Similarities that differ by rounding alone are ties in ours.
    assert math.isclose(found[OURS], found[THEIRS], abs_tol=1e-3), found
    return ZeroShot(setting, taken[OURS], taken[THEIRS], found[OURS])


def sizes(text: str) -> tuple[int, int]:
    """Reads numbers of images and captions, such as `100000x500000`.

    Raises:
        RequestError: they are not two numbers, or there are fewer captions than images.
    """
    images, _, texts = text.partition("x")
    if not (images.isdecimal() and texts.isdecimal() and 0 < int(images) <= int(texts)):
        raise RequestError(f"--retrieval {text} must be images x captions, with a caption for each: 100000x500000")
    return int(images), int(texts)


def measure_retrieval(setting: RetrievalSetting) -> Retrieval:
    """Measures retrieval in both directions in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_retrieval, setting).result()


def exponent(found: Sequence[Retrieval]) -> float | None:
    """Slope of log seconds by log similarities: 1 if time grows as the product of the sizes. None for one size."""
    if len({each.setting.similarities for each in found}) < 2:
        return None
    similarities = [math.log(each.setting.similarities) for each in found]
    return statistics.linear_regression(similarities, [math.log(each.seconds) for each in found]).slope


def _retrieval(setting: RetrievalSetting) -> Retrieval:
    torch.set_num_threads(setting.threads)
    # Warm-up: the first product loads and tunes the library.
    retrieval(*_pairs(RetrievalSetting(256, 512, setting.dim, setting.threads)))
    inputs = _pairs(setting)
    before = psutil.Process().memory_info().rss
    start = time.process_time()
    retrieval(*inputs)
    return Retrieval(setting, time.process_time() - start, max(0, peak_bytes() - before))


def _pairs(setting: RetrievalSetting) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.empty(n, setting.dim).normal_(generator=generator) for n in (setting.images, setting.texts))
    for vectors in (image, text):
        vectors /= vectors.norm(dim=1, keepdim=True)
    return image, text, np.arange(setting.texts) % setting.images


def _clip_benchmark() -> Any:
    try:
        from clip_benchmark.metrics import zeroshot_classification
    except ImportError:
        raise RequestError(
            "`sharelock bench evaluate` compares with CLIP-Benchmark, which is missing: "
            "pip install 'sharelock-ray[benchmarks]'"
        ) from None
    with_numpy_2_4(zeroshot_classification)
    return zeroshot_classification


def _timed(run: Callable[[], None]) -> Callable[[], float]:
    def seconds() -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    return seconds


class _Features:
    """The model that CLIP-Benchmark is given: images are embeddings, tokens are rows of the prompts' embeddings."""

    def __init__(self, prompts: torch.Tensor) -> None:
        self._prompts = prompts

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def encode_text(self, rows: torch.Tensor) -> torch.Tensor:
        return self._prompts[rows]


def _rows(texts: list[str]) -> torch.Tensor:
    return torch.tensor([int(text) for text in texts])


class _Batches:
    """Batches of its default size, as a data loader gives them."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, classes: list[str]) -> None:
        self._images, self._labels, self.classes = images, labels, classes

    @property
    def dataset(self) -> "_Batches":
        return self

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return zip(self._images.split(_BATCH), self._labels.split(_BATCH), strict=True)
