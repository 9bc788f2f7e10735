"""The contrastive loss, forward and backward, compared with other implementations and one bare product."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import psutil
import torch
import torch.nn.functional as F

from sharelock_ray.alignment.loss import contrastive_loss
from sharelock_ray.bench.timing import alternate, median_ratio, peak_bytes
from sharelock_ray.errors import RequestError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

PRODUCT = "one product"
"""The reference: the product of images and texts into preallocated memory."""
OPEN_CLIP = "open_clip ClipLoss"
_LOGIT_SCALE = 1 / 0.07
_TILED_BUDGET = 64 << 20


@dataclass(frozen=True)
class Setting:
    """`pairs` float32 unit vectors of width `dim` per side, on `threads` CPUs."""

    pairs: int
    dim: int
    threads: int = 2


@dataclass(frozen=True)
class Measured:
    """Seconds per round, and peak memory beyond the inputs, of one implementation."""

    way: str
    frozen: bool
    """Whether only the text side is trained, as in the paper."""
    wall: list[float]
    cpu: list[float]
    extra_bytes: int

    def ratio(self, other: "Measured", clock: str) -> float:
        """Median ratio of this implementation's seconds to another's; `clock` is `wall` or `cpu`."""
        return median_ratio(getattr(self, clock), getattr(other, clock))


def compare(setting: Setting, repeats: int) -> list[Measured]:
    """Measures all implementations, the bare product first: memory in a fresh process each, then times in turn.

    Raises:
        RequestError: open_clip is not installed.
    """
    kinds = [(PRODUCT, True), *((way, frozen) for frozen in (False, True) for way in losses())]
    extra = [extra_memory(setting, *kind) for kind in kinds]
    taken = seconds(setting, kinds, repeats)
    return [Measured(*kind, wall, cpu, memory) for kind, memory, (wall, cpu) in zip(kinds, extra, taken, strict=True)]


def seconds(setting: Setting, kinds: list[tuple[str, bool]], repeats: int) -> list[tuple[list[float], list[float]]]:
    """Wall and CPU seconds per round of each (way, frozen), in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    cpu: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], object]) -> float:
        wall, processor = time.perf_counter(), time.process_time()
        run()
        cpu.setdefault(name, []).append(time.process_time() - processor)
        return time.perf_counter() - wall

    inputs = _inputs(setting)
    runs = {_name(*kind): partial(timed, _name(*kind), _run_of(*kind, *inputs)) for kind in kinds}
    wall = alternate(runs, repeats)
    torch.set_num_threads(threads)
    return [(wall[name], cpu[name]) for name in runs]


def extra_memory(setting: Setting, way: str, frozen: bool) -> int:
    """Rise in resident memory of a fresh process in one run, in bytes."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_extra_memory, setting, way, frozen).result()


def losses() -> dict[str, Loss]:
    """All implementations, by name."""
    try:
        from open_clip import ClipLoss
    except ImportError:
        raise RequestError(
            "`sharelock bench loss` compares with open_clip, which is missing: pip install open_clip_torch"
        ) from None
    return {
        OPEN_CLIP: lambda image, text: ClipLoss()(image, text, _LOGIT_SCALE),
        "released": released_loss,
        "stored": lambda image, text: contrastive_loss(image, text, _LOGIT_SCALE),
        "tiled": lambda image, text: contrastive_loss(image, text, _LOGIT_SCALE, memory_budget=_TILED_BUDGET),
    }


def released_loss(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The loss of ShareLock's released code: cross-entropies of the logits and their transpose."""
    logits = _LOGIT_SCALE * text @ image.T
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def median_seconds(values: list[float]) -> str:
    return f"{statistics.median(values):.2f}"


def _inputs(setting: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(setting.pairs, setting.dim, generator=generator), dim=1) for _ in range(2))
    return image, text


def _run_of(way: str, frozen: bool, image: torch.Tensor, text: torch.Tensor) -> Callable[[], object]:
    """Returns the work to measure."""
    if way == PRODUCT:
        out = torch.empty(len(image), len(text))
        return lambda: torch.mm(image, text.T, out=out)
    loss = losses()[way]

    def run() -> None:
        # New leaves, so that no gradient is kept.
        loss(image.detach().requires_grad_(not frozen), text.detach().requires_grad_()).backward()

    return run


def _extra_memory(setting: Setting, way: str, frozen: bool) -> int:
    torch.set_num_threads(setting.threads)
    # Warm-up: the first product loads and tunes the library.
    _run_of(way, frozen, *_inputs(Setting(256, setting.dim)))()
    run = _run_of(way, frozen, *_inputs(setting))
    before = psutil.Process().memory_info().rss
    run()
    return max(0, peak_bytes() - before)


def _name(way: str, frozen: bool) -> str:
    return way if way == PRODUCT else f"{way}, {'one side' if frozen else 'both sides'}"
