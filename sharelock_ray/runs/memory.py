"""Memory of a training on a CPU."""

import ctypes

# Of mallopt(3), by their numbers in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 1 << 30


def keep_freed_memory() -> None:
    """Has the process keep what a step frees for the next one, of tensors of up to 1 GiB.

    Else glibc gives each back and the kernel clears it anew, page by page: a twentieth of the time of a step of the
    paper's head, for which a process is a twelfth larger now. Does nothing where the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, -1)
