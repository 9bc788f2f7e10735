"""Runs a function on several gloo processes of this machine."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(world_size: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """Runs `work(rank, world_size, *args)` in one process per rank of a gloo group; returns the results by rank."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_on_rank, (world_size, folder, work, args), nprocs=world_size)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _on_rank(rank: int, world_size: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        torch.save(work(rank, world_size, *args), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
