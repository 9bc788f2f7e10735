"""The energy counter of a GPU, where none is: NVML by stand-ins of its three functions."""

from types import SimpleNamespace

import pynvml
import pytest
import torch

from sharelock_ray.tuning import energy


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
