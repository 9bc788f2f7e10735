"""The contrastive loss, forward and backward, against others and against one bare product of its two sides."""

import multiprocessing
import re
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F

from sharelock_ray.alignment.loss import contrastive_loss
from sharelock_ray.bench.timing import alternate, median_ratio
from sharelock_ray.errors import RequestError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

PRODUCT = "one product"
"""The yardstick: image by text, into memory that is there already."""
OPEN_CLIP = "open_clip ClipLoss"
_LOGIT_SCALE = 1 / 0.07
_TILED_BUDGET = 64 << 20


@dataclass(frozen=True)
class Setting:
    """What is measured: `pairs` unit vectors of `dim` a side, float32, on `threads` CPUs."""

    pairs: int
    dim: int
    threads: int = 2


@dataclass(frozen=True)
class Measured:
    """Seconds of each round, and peak memory over that of the inputs, of one way to compute the loss."""

    way: str
    frozen: bool
    """Only the text side trains, as in the paper."""
    wall: list[float]
    cpu: list[float]
    extra_bytes: int

    def ratio(self, other: "Measured", clock: str) -> float:
        """Median over the rounds of this way's seconds to another's; `clock` is `wall` or `cpu`."""
        return median_ratio(getattr(self, clock), getattr(other, clock))


def compare(setting: Setting, repeats: int) -> list[Measured]:
    """Every way, the bare product first: its memory in a fresh process of its own, then all their times in turn.

    Raises:
        RequestError: open_clip is not installed.
    """
    kinds = [(PRODUCT, True), *((way, frozen) for frozen in (False, True) for way in losses())]
    extra = [extra_memory(setting, *kind) for kind in kinds]
    taken = seconds(setting, kinds, repeats)
    return [Measured(*kind, wall, cpu, memory) for kind, memory, (wall, cpu) in zip(kinds, extra, taken, strict=True)]


def seconds(setting: Setting, kinds: list[tuple[str, bool]], repeats: int) -> list[tuple[list[float], list[float]]]:
    """Wall and CPU seconds of each round, of each (way, frozen), in this process."""
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
    """Bytes that the resident memory of a fresh process rises by in one run."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_extra_memory, setting, way, frozen).result()


def losses() -> dict[str, Loss]:
    """Every way to compute the loss, by name."""
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
    """The loss as ShareLock's released code has it: cross-entropies of the logits and of their transpose."""
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
    """What is measured."""
    if way == PRODUCT:
        out = torch.empty(len(image), len(text))
        return lambda: torch.mm(image, text.T, out=out)
    loss = losses()[way]

    def run() -> None:
        # Leaves of their own, so that no gradient stays.
        loss(image.detach().requires_grad_(not frozen), text.detach().requires_grad_()).backward()

    return run


def _extra_memory(setting: Setting, way: str, frozen: bool) -> int:
    torch.set_num_threads(setting.threads)
    # The first product loads and tunes the library.
    _run_of(way, frozen, *_inputs(Setting(256, setting.dim)))()
    run = _run_of(way, frozen, *_inputs(setting))
    before = psutil.Process().memory_info().rss
    run()
    return max(0, _peak_bytes() - before)


def _peak_bytes() -> int:
    """The most that this process has had resident."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which on Linux begins with the memory of the process that started this one.
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) * 1024  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _name(way: str, frozen: bool) -> str:
    return way if way == PRODUCT else f"{way}, {'one side' if frozen else 'both sides'}"
