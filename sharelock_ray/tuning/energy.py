"""What a GPU has used, by its own counter (NVML, NVIDIA's management library, through its C interface)."""

import ctypes
from functools import lru_cache

import torch


def joules(index: int = 0) -> float | None:
    """Joules since the driver was loaded, of the process's GPU `index`; None where nothing counts them.

    NVML: `nvmlDeviceGetTotalEnergyConsumption` gives millijoules, on Volta and later. Everything that shares the GPU
    is in it.
    """
    library = _library()
    if library is None or not torch.cuda.is_available():
        return None
    # NVML numbers all GPUs of the machine, whatever this process may see of them.
    name = f"GPU-{torch.cuda.get_device_properties(index).uuid}".encode()
    handle, total = ctypes.c_void_p(), ctypes.c_ulonglong()
    if library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)):
        return None
    if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(total)):
        return None
    return total.value / 1000


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return None if library.nvmlInit_v2() else library
