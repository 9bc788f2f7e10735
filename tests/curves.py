"""Trainings whose result must not depend on the number of workers. Imports little, since each rank imports it."""

import sys
import time
from collections.abc import Iterator
from typing import ClassVar

import torch.distributed as dist

from sharelock_ray import storage
from sharelock_ray.alignment.distributed import Group
from sharelock_ray.alignment.spec import AlignmentSpec
from sharelock_ray.errors import RunError
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.runs.loop import train

CURVES = [
    {"language": {"norm": "batch"}, "accumulation": 2, "positives": "text"},
    {"language": {"norm": "layer", "residual": True, "depth": 3}, "ema_decay": 0.9, "optimizer": "adamw"},
    {"language": {"norm": "none", "gated": True}, "loss": "sigmoid", "positives": "label"},
    {"language": {"norm": "layer"}, "order": "parts"},
    {"language": {"norm": "batch", "activation": "relu", "dropout": 0.2, "depth": 3}},
]
"""Settings of each curve, in addition to those below; `order: parts` streams from storage."""
# GELU, except in the last curve, which follows the paper: a ReLU near zero amplifies rounding differences.
_HEAD = {"depth": 2, "width": 16, "dropout": 0.1, "activation": "gelu"}
_COMMON = {
    # Gives shares of unequal size on 4 workers, and with accumulation also on 2.
    "global_batch_size": 62,
    "steps": 50,
    "warmup_steps": 5,
    "evaluate_every": 25,
    "validation_fraction": 0.2,
    "learn_logit_scale": True,
}


def train_curves(folder: str, features: tuple[str, str], workers: int, group: Group = None) -> None:
    """Trains every curve into `<folder>/<workers>/<curve>`."""
    for index, curve in enumerate(CURVES):
        spec = AlignmentSpec.model_validate(_COMMON | curve | {"language": _HEAD | curve["language"]})
        run = RunFolder(f"{folder}/{workers}/{index}")
        train(run, *features, spec, group=group, streams=spec.order == "parts")


def train_short(run: RunFolder, features: tuple[str, str]) -> None:
    """Trains with a checkpoint every ten steps."""
    train(run, *features, AlignmentSpec.model_validate(_COMMON | {"language": _HEAD, "evaluate_every": 10}))


class SlowReader(RunFolder):
    """Reads an outdated checkpoint, `earlier`, instead of `last` at first."""

    reads: ClassVar[Iterator[str]] = iter(["earlier", "earlier"])

    @property
    def last(self) -> str:
        return f"{self.uri}/{next(self.reads, 'last')}"


def train_with_a_slow_reader(rank: int, world_size: int, folder: str, features: tuple[str, str]) -> int:
    """For `ranks.on_ranks`: the second rank reads the outdated checkpoint."""
    train_short((SlowReader if rank else RunFolder)(folder), features)
    return rank


def train_on_two_and_four(rank: int, world_size: int, folder: str, features: tuple[str, str]) -> int:
    """For `ranks.on_ranks`: trains on a group of the first two ranks, then on all ranks."""
    pair = dist.new_group([0, 1])
    if rank < 2:
        train_curves(folder, features, 2, pair)
    train_curves(folder, features, world_size)
    # This import would cost each worker over a second and 80 MB: see `alignment/optimizer.py`.
    assert "torch._dynamo" not in sys.modules
    return rank


def train_to_a_bad_row(rank: int, world_size: int, folder: str, features: tuple[str, str]) -> str:
    """For `ranks.on_ranks`: the error of a training with a NaN in its third batch, on a slow disk."""
    write = storage.write_bytes

    def slowly(uri: str, data: bytes) -> None:
        time.sleep(1 if uri.endswith(".safetensors") else 0)
        write(uri, data)

    storage.write_bytes = slowly
    spec = AlignmentSpec.model_validate(_COMMON | {"language": _HEAD, "evaluate_every": 2})
    try:
        train(RunFolder(folder), *features, spec)
    except RunError as error:
        return str(error)
    raise AssertionError
