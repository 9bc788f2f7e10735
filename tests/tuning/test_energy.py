"""The energy counter of a GPU, where none is: NVML by a stand-in of its three functions."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sharelock_ray.tuning import energy

NOT_SUPPORTED = 3


class Nvml:
    """Answers as NVML does: a code, and the value where a pointer says."""

    def __init__(self, millijoules: int | None) -> None:
        self.millijoules = millijoules
        self.asked: list[bytes] = []

    def nvmlDeviceGetHandleByUUID(self, name: bytes, handle: Any) -> int:  # noqa: N802 (a C name)
        self.asked.append(name)
        handle._obj.value = 1
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, total: Any) -> int:  # noqa: N802
        if self.millijoules is None:
            return NOT_SUPPORTED
        total._obj.value = self.millijoules
        return 0


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="1a2b"))


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(("millijoules", "joules"), [(2_500, 2.5), (None, None)])
def test_is_in_joules_and_none_where_the_gpu_counts_none(
    monkeypatch: pytest.MonkeyPatch, millijoules: int | None, joules: float | None
) -> None:
    nvml = Nvml(millijoules)
    monkeypatch.setattr(energy, "_library", lambda: nvml)
    assert energy.joules() == joules
    # By its own name, since NVML also counts GPUs that this process may not see.
    assert nvml.asked == [b"GPU-1a2b"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_is_none_without_a_gpu() -> None:
    assert energy.joules() is None
