"""Time-outs and listening addresses of the process group of a training."""

import json
import os
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from sharelock_ray.alignment.distributed import wait_for_all
from sharelock_ray.engine import training as loop


def meet(rank: int, folder: Path) -> None:
    """One of two workers; the second is late twice, by more than the time-out of steps."""
    torch.set_num_threads(1)
    loop._STEP_TIMEOUT = timedelta(seconds=2)
    loop.get_context = lambda: SimpleNamespace(get_world_rank=lambda: rank, get_world_size=lambda: 2)
    loop.ray.util.get_node_ip_address = lambda: "127.0.0.1"
    loop.broadcast_from_rank_zero = lambda address: of_rank_zero(folder / "address", address)
    before = dict(os.environ)
    with loop._process_group("gloo") as all_have_opened:
        time.sleep(4 * rank)
        all_have_opened()
        listening = {c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN}
        (folder / f"{rank}").write_text(json.dumps(sorted(listening)))
        time.sleep(4 * rank)
        with pytest.raises(RuntimeError, match=r"[Tt]imed? ?out|[Cc]onnection"):
            wait_for_all(torch.device("cpu"))
    assert dict(os.environ) == before


def of_rank_zero(path: Path, address: object) -> object:
    if address is not None:
        path.with_suffix(".new").write_text(json.dumps(address))
        path.with_suffix(".new").rename(path)
    while not path.exists():
        time.sleep(0.02)
    return json.loads(path.read_text())


@pytest.mark.slow
def test_opening_features_has_a_longer_time_out_than_a_step(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(meet, (tmp_path,), nprocs=2)
    # On a single machine, all workers listen on the loopback interface.
    assert {at for rank in "01" for at in json.loads((tmp_path / rank).read_text())} == {"127.0.0.1"}
