"""GPUs, memory, shared memory and limits of this machine."""

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pynvml

from sharelock_ray.health.check import GIB, Check, graded
from sharelock_ray.machine import free_memory

_SHM = Path("/dev/shm")
# Docker's default. NCCL fails with it: its ranks of one node exchange data there.
_DOCKERS_SHM = 64 << 20
_FREE_SHARE = 0.5
_TORCH_S = 60
# Status codes of NVML on machines without a GPU.
_ABSENT = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
_TORCH = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "works": torch.cuda.is_available()}
if found["works"]:
    torch.zeros(1, device="cuda")
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver, the newest CUDA version that it supports, and its GPUs: name, and free and total bytes."""

    version: str
    cuda: str
    gpus: tuple[tuple[str, int, int], ...]


def gpus(offered: float = 0) -> Check:
    """Checks that the driver answers, torch can use the GPUs, and their memory is free.

    Args:
        offered: number of GPUs that Ray offers on this node.
    """
    try:
        driver = _driver()
    except pynvml.NVMLError as error:
        if error.value in _ABSENT and not offered:
            return Check("GPUs", "ok", "no NVIDIA GPU")
        found = f"the driver does not answer ({error}); Ray offers {offered:g} GPUs"
        return Check("GPUs", "fail", found, "install the NVIDIA driver, or restart the machine after its update")
    names = sorted({name for name, _, _ in driver.gpus})
    found = f"{len(driver.gpus)} x {', '.join(names)}, driver {driver.version}" if driver.gpus else "no NVIDIA GPU"
    if len(driver.gpus) < offered:
        remedy = "start Ray on this node with its real number of GPUs (--num-gpus)"
        return Check("GPUs", "fail", f"{found}, but Ray offers {offered:g}", remedy)
    if not driver.gpus:
        return Check("GPUs", "ok", found)
    fault = _fault_of_torch(driver)
    if fault:
        remedy = f"install a torch for CUDA {driver.cuda} or older, or a newer driver"
        return Check("GPUs", "fail", f"{found}; {fault}", remedy)
    taken = [
        f"GPU {i} has {free / GIB:.0f} of {total / GIB:.0f} GiB free"
        for i, (_, free, total) in enumerate(driver.gpus)
        if free < _FREE_SHARE * total
    ]
    if taken:
        return Check("GPUs", "warn", f"{found}; {', '.join(taken)}", "end the other processes on them: see nvidia-smi")
    return Check("GPUs", "ok", found)


def gpu_count() -> int:
    """Number of NVIDIA GPUs of this machine; 0 without a driver."""
    try:
        return len(_driver().gpus)
    except pynvml.NVMLError:
        return 0


def _driver() -> Driver:
    pynvml.nvmlInit()
    try:
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        memories = map(pynvml.nvmlDeviceGetMemoryInfo, handles)
        return Driver(
            pynvml.nvmlSystemGetDriverVersion(),
            f"{cuda // 1000}.{cuda % 1000 // 10}",
            tuple((pynvml.nvmlDeviceGetName(h), m.free, m.total) for h, m in zip(handles, memories, strict=True)),
        )
    finally:
        pynvml.nvmlShutdown()


def _fault_of_torch(driver: Driver) -> str | None:
    """Why torch cannot use the GPUs; None if it can.

    Runs in another process, because Ray hides the GPUs from tasks that ask for none, and a CUDA context takes memory.
    """
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run([sys.executable, "-c", _TORCH], env=env, capture_output=True, text=True, timeout=_TORCH_S)
    except subprocess.TimeoutExpired:
        return f"torch does not reach them within {_TORCH_S} s"
    if done.returncode:
        return f"torch fails on them: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    about = json.loads(done.stdout.splitlines()[-1])
    if about["works"]:
        return None
    return f"torch {about['torch']} (CUDA {about['cuda']}) cannot use this driver (up to CUDA {driver.cuda})"


def memory() -> Check:
    """Checks the memory that is free, within the limits of the container."""
    free, total = free_memory(), psutil.virtual_memory().total
    found = f"{free / GIB:.1f} GiB free; the machine has {total / GIB:.0f}"
    remedy = "end other processes, or raise the memory limit of the container"
    return graded("memory", free, 4 * GIB, GIB, found, remedy)


def shared_memory(object_store: int | None = None, folder: Path = _SHM) -> Check:
    """Checks that Ray's object store fits into shared memory; otherwise it is on a disk, which is slow.

    Args:
        object_store: size of the node's object store in bytes; None: Ray's default, 30 % of the memory.
    """
    name, remedy = "shared memory", "enlarge /dev/shm (Docker: --shm-size; Kubernetes: an emptyDir of medium Memory)"
    needed = object_store or int(0.3 * psutil.virtual_memory().total)
    try:
        size = shutil.disk_usage(folder).total
    except OSError:
        return Check(name, "fail", f"no {folder}", remedy)
    found = f"{size / GIB:.2g} GiB for an object store of {needed / GIB:.2g} GiB"
    if size <= _DOCKERS_SHM:
        return Check(name, "fail", f"{found}; GPUs of one node cannot exchange data", remedy)
    return graded(name, size, needed, 0, found, remedy)


def file_limit() -> Check:
    """Checks the number of files and connections that a process may have open; Ray raises it up to the hard limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = float("inf") if hard == resource.RLIM_INFINITY else hard
    remedy = "raise it to 65,536: `ulimit -Hn`, LimitNOFILE of systemd, or --ulimit nofile of Docker"
    return graded("open files", limit, 8192, 1024, f"at most {limit:,.0f} per process", remedy)
