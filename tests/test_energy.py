"""Energy measurement without a GPU; NVML is replaced by stand-ins."""

from types import SimpleNamespace

import pynvml
import pytest
import torch

from sharelock_ray import energy
from sharelock_ray.energy import EnergyMeter


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the GPUs that NVML is asked for: the first of the process, which counts 2.5 J."""
    names: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="1a2b"))
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", names.append)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", lambda handle: 2_500)
    return names


def test_is_in_joules(asked: list[str]) -> None:
    assert energy.joules() == 2.5
    # By its own name, since NVML also counts GPUs that this process may not see.
    assert asked == ["GPU-1a2b"]


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(
    ("function", "code"),
    [
        ("nvmlInit", pynvml.NVML_ERROR_LIBRARY_NOT_FOUND),
        ("nvmlDeviceGetHandleByUUID", pynvml.NVML_ERROR_NOT_FOUND),
        ("nvmlDeviceGetTotalEnergyConsumption", pynvml.NVML_ERROR_NOT_SUPPORTED),
    ],
)
def test_is_none_where_the_gpu_counts_none(monkeypatch: pytest.MonkeyPatch, function: str, code: int) -> None:
    def refuses(*args: object) -> None:
        raise pynvml.NVMLError(code)

    monkeypatch.setattr(pynvml, function, refuses)
    assert energy.joules() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_is_none_without_a_gpu() -> None:
    assert energy.joules() is None


def test_work_that_overlaps_is_counted_once() -> None:
    count = 100.0
    meter = EnergyMeter(1, lambda: count)
    first = meter.now()
    count = 110
    second = meter.now()
    count = 130
    assert meter.since(first) == 30
    count = 150
    assert meter.since(second) == 20


def test_a_process_with_a_fraction_of_a_gpu_takes_that_fraction() -> None:
    count = iter([100.0, 140.0])
    meter = EnergyMeter(0.25, lambda: next(count))
    assert meter.since(meter.now()) == 10


@pytest.mark.parametrize(("share", "counted"), [(0, 5.0), (1, None)])
def test_is_none_without_a_gpu_or_a_counter(share: float, counted: float | None) -> None:
    meter = EnergyMeter(share, lambda: counted)
    assert meter.since(meter.now()) is None
