"""A folder's lock: one process holds it until it lets go, or dies, however it dies."""

import fcntl
import os
import time
from pathlib import Path

from sdzero.errors import UserError

LOCK_NAME = ".lock"
TRIES, SECONDS_BETWEEN_TRIES = 3, 0.05
"""Whoever only looks whether a run is at work (`sdzero watch`) has the lock for less than a moment."""

_lock_descriptors: set[int] = set()


def _drop_locks_in_child() -> None:
    """A forked child shares the parent's lock and would keep it alive after the parent's death."""
    for descriptor in _lock_descriptors:
        os.close(descriptor)
    _lock_descriptors.clear()


os.register_at_fork(after_in_child=_drop_locks_in_child)


def take_lock(root: Path) -> int:
    """Lock the folder for this process; gives the lock's descriptor.

    Raises UserError if another one has it.
    """
    descriptor = os.open(root / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace") or "unknown"
        os.close(descriptor)
        raise UserError(
            f"another process (id {holder}) is working in this folder",
            str(root),
            "wait for it to end, or choose another folder",
        ) from None
    except OSError:
        os.close(descriptor)
        raise
    _lock_descriptors.add(descriptor)
    return descriptor


def _lock(descriptor: int) -> None:
    """Lock, or raise BlockingIOError if another process keeps the lock."""
    for rest in reversed(range(TRIES)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not rest:
                raise
            time.sleep(SECONDS_BETWEEN_TRIES)


def release_lock(descriptor: int) -> None:
    """Let go of a lock."""
    _lock_descriptors.discard(descriptor)
    os.close(descriptor)
