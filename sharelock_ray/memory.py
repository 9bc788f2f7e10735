"""Memory allocation of processes that work on tensors on a CPU."""

import ctypes

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 1 << 30


def keep_freed_memory() -> None:
    """Makes the process reuse the memory of freed tensors of up to 1 GiB instead of returning it to the kernel.

    By default, glibc returns each tensor, and the kernel clears the pages again for the next step. Reuse saves 5 % of
    the time of a training step of the paper's head, for 8 % more memory, and up to a quarter of an image encoder's
    (docs/benchmarks.md). Has no effect with other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, -1)
