"""Freed memory that is kept: fresh pages are counted in a process of its own."""

import subprocess
import sys

PROGRAM = """
import resource, sys
import torch
from sdzero.allocator import keep_freed_memory

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()

def turn():
    large = torch.empty(16 << 20).fill_(1.0)  # 64 MiB
    small = [torch.empty(1 << 20).fill_(1.0) for _ in range(8)]  # 4 MiB each

for _ in range(3):  # where blocks lie settles: a turn may still find a hole that is too small
    turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    turn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

PAGES_A_TURN = (64 << 20) // 4096
"""Of the large block alone; there are five turns."""


def fresh_pages(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=120
    )
    return int(done.stdout)


def test_memory_that_was_freed_is_taken_again_without_fresh_pages() -> None:
    assert fresh_pages("keep") < PAGES_A_TURN
    assert fresh_pages("default") > 4 * PAGES_A_TURN
