"""GPUs, memory and limits of a machine; each check is broken once."""

import json
import resource
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from sharelock_ray.health import hardware
from sharelock_ray.health.check import GIB, Check
from sharelock_ray.health.hardware import file_limit, gpu_count, gpus, memory, shared_memory

WORKS = {"torch": "2.13.0", "cuda": "12.8", "works": True}


def nvidia(monkeypatch: pytest.MonkeyPatch, free: list[int], torch: dict | str = WORKS) -> None:
    """A driver with a GPU of 80 GiB for each number of free GiB; `torch` is what torch says of them, or its error."""

    def answer(*_: object, env: dict[str, str], **__: object) -> SimpleNamespace:
        assert "CUDA_VISIBLE_DEVICES" not in env
        if isinstance(torch, str):
            return SimpleNamespace(returncode=1, stdout="", stderr=f"Traceback\n{torch}\n")
        return SimpleNamespace(returncode=0, stdout=f"{json.dumps(torch)}\n", stderr="")

    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "570.86",
        "nvmlSystemGetCudaDriverVersion_v2": lambda: 12080,
        "nvmlDeviceGetCount": lambda: len(free),
        "nvmlDeviceGetHandleByIndex": lambda i: i,
        "nvmlDeviceGetName": lambda i: "H100",
        "nvmlDeviceGetMemoryInfo": lambda i: SimpleNamespace(free=free[i] * GIB, total=80 * GIB),
    }
    for name, function in answers.items():
        monkeypatch.setattr(pynvml, name, function)
    monkeypatch.setattr(subprocess, "run", answer)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def without_driver(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse() -> None:
        raise pynvml.NVMLError(code)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)


class TestGpus:
    def test_a_machine_without_one_is_fine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        without_driver(monkeypatch, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        assert gpus() == Check("GPUs", "ok", "no NVIDIA GPU")
        assert gpu_count() == 0

    def test_free_ones_that_torch_uses_are_fine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        nvidia(monkeypatch, [79, 79])
        assert gpus(2) == Check("GPUs", "ok", "2 x H100, driver 570.86")
        assert gpu_count() == 2

    def test_a_driver_that_does_not_fit_its_library_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        without_driver(monkeypatch, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
        check = gpus()
        assert check.state == "fail"
        assert "restart the machine" in check.remedy

    def test_ray_may_not_offer_more_than_there_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        nvidia(monkeypatch, [79])
        assert gpus(2).found == "1 x H100, driver 570.86, but Ray offers 2"
        without_driver(monkeypatch, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        assert gpus(2).state == "fail"

    @pytest.mark.parametrize(
        ("torch", "said"),
        [
            ({"torch": "2.15.0", "cuda": "13.2", "works": False}, "torch 2.15.0 (CUDA 13.2) cannot use this driver"),
            ("RuntimeError: no kernel image", "torch fails on them: RuntimeError: no kernel image"),
        ],
    )
    def test_a_torch_that_cannot_use_them_fails(
        self, torch: dict | str, said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nvidia(monkeypatch, [79], torch)
        check = gpus()
        assert check.state == "fail"
        assert said in check.found
        assert "CUDA 12.8 or older" in check.remedy

    def test_a_torch_that_hangs_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def hang(*_: object, **__: object) -> None:
            raise subprocess.TimeoutExpired("python", 60)

        nvidia(monkeypatch, [79])
        monkeypatch.setattr(subprocess, "run", hang)
        assert "does not reach them within 60 s" in gpus().found

    def test_memory_that_another_process_holds_warns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        nvidia(monkeypatch, [79, 10])
        check = gpus()
        assert (check.state, check.found) == ("warn", "2 x H100, driver 570.86; GPU 1 has 10 of 80 GiB free")


@pytest.mark.parametrize(("free", "state"), [(8, "ok"), (3, "warn"), (0.5, "fail")])
def test_little_free_memory_is_said(free: float, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "free_memory", lambda: int(free * GIB))
    check = memory()
    assert (check.state, check.found.partition(" free")[0]) == (state, f"{free:.1f} GiB")


@pytest.mark.parametrize(("size", "state"), [(20 * GIB, "ok"), (5 * GIB, "warn"), (64 << 20, "fail")])
def test_shared_memory_that_is_too_small_is_said(
    size: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=size))
    check = shared_memory(10 * GIB, tmp_path)
    assert check.state == state
    assert "object store of 10 GiB" in check.found


def test_no_shared_memory_fails(tmp_path: Path) -> None:
    assert shared_memory(folder=tmp_path / "none").state == "fail"


@pytest.mark.parametrize(
    ("hard", "state"), [(resource.RLIM_INFINITY, "ok"), (65536, "ok"), (4096, "warn"), (512, "fail")]
)
def test_a_low_limit_of_open_files_is_said(hard: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (min(256, hard), hard))
    assert file_limit().state == state
