"""The energy that a GPU has used, by its own counter."""

import pynvml
import torch


def joules(index: int = 0) -> float | None:
    """Joules since the driver was loaded, of the process's GPU `index`; None where nothing counts them.

    The counter is there on Volta and later. Everything that shares the GPU is in it.
    """
    if not torch.cuda.is_available():
        return None
    try:
        pynvml.nvmlInit()
        # NVML numbers all GPUs of the machine, whatever this process may see of them.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except pynvml.NVMLError:
        return None
