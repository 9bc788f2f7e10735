"""GPU energy, read from the GPU's own counter."""

import pynvml
import torch


def joules(index: int = 0) -> float | None:
    """Joules used by the process's GPU `index` since the driver was loaded; None without a counter.

    The counter exists on Volta and later and includes every process that shares the GPU.
    """
    if not torch.cuda.is_available():
        return None
    try:
        pynvml.nvmlInit()
        # NVML's indices cover all GPUs of the machine, not only those visible to this process.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except pynvml.NVMLError:
        return None
