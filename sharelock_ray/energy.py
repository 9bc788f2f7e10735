"""GPU energy, read from the GPU's own counter."""

import threading
from collections.abc import Callable

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


class EnergyMeter:
    """Measures the energy of tasks on one GPU. Tasks may overlap in threads; no joule is counted twice.

    Args:
        share: fraction of the GPU that the process holds, from 0 to 1; 0 disables the measurement. The counter includes
            every process on the GPU, so this fraction of it is attributed to the process.
    """

    def __init__(self, share: float, counter: Callable[[], float | None] = joules) -> None:
        self._share = share
        self._counter = counter
        self._counted = 0.0
        self._lock = threading.Lock()

    def now(self) -> float | None:
        """The counter; None without one."""
        return self._counter() if self._share else None

    def since(self, begun: float | None) -> float | None:
        """Joules since the counter value `begun`, without joules already returned; None without a counter."""
        with self._lock:
            now = self.now()
            if begun is None or now is None:
                return None
            used = max(0.0, now - max(begun, self._counted))
            self._counted = now
            return used * self._share
