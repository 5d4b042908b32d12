"""The C library's allocator, set for work that frees and takes the same large blocks in every step.

By default glibc gives a freed block of over 32 MiB back to the kernel, and the top of its heap too.
The next step then takes fresh pages, each of which the kernel clears first: on a CPU that was a tenth to a
quarter of an update's time (docs/speed.md). Here freed memory is kept instead.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""From malloc.h."""

LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep memory that was freed for what is allocated next; for this process, from now on.

    Returns whether the allocator could be told: it is glibc's, and Linux.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # No block is mapped on its own, and the heap is not cut.
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST_INT))
