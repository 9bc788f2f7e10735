"""Freed memory stays with the process, measured by the pages that the kernel clears."""

import subprocess
import sys

CODE = """
import resource, sys, torch
from sharelock_ray.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(20):
    faults()
print(sum(faults() for _ in range(5)))
"""


def pages_cleared(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_reused_pages_are_not_cleared_again() -> None:
    assert pages_cleared("keep") < pages_cleared("as usual") / 10
