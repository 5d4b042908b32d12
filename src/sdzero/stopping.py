"""Asked to stop: SIGTERM, and SIGUSR1, which Slurm can send some time before it takes the machine away.

A training finishes the step that it is in, saves a checkpoint and ends. Elsewhere the batch of responses that
is being sampled is dropped. Nothing that was finished is lost, and the same command goes on from there.

The signal's handler only takes a note; the run looks at it at places where it can end. Of several processes
one that was told is enough: they look together and end together.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sdzero import ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):  # noqa: N818 - it is no error
    """The run was asked to stop, and has ended where it can be resumed."""


_asked: list[str] = []
"""The names of the signals that came."""
_trainings: list[None] = []
"""The trainings under way: they end after a step, and not between batches."""


def _note(number: int, frame: FrameType | None) -> None:
    _asked.append(signal.Signals(number).name)


@contextmanager
def listening() -> Iterator[None]:
    """Take SIGTERM and SIGUSR1 as a wish to stop, for what the block does.

    In a thread other than the main one Python sets no handlers, and the block hears nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear()


def is_asked() -> bool:
    """Whether any process of the run was asked to stop. All of them look at the same place."""
    return any(ranks.gather(bool(_asked)))


def stop() -> None:
    """End here. Raises Stopped, always."""
    raise Stopped(_asked[0] if _asked else "a signal to another process")


def check() -> None:
    """Raise Stopped if any process was asked to stop, unless a training is to finish its step first."""
    if not _trainings and is_asked():
        stop()


def check_own() -> None:
    """The same for this process alone; use it within `together`."""
    if not _trainings and _asked:
        stop()


@contextmanager
def together() -> Iterator[None]:
    """If one process raises Stopped in the block, all raise it behind the block."""
    stopped = False
    try:
        yield
    except Stopped:
        stopped = True
    if not _trainings and any(ranks.gather(stopped)):
        stop()


@contextmanager
def within_training() -> Iterator[None]:
    """In the block nothing but the training itself stops, after a whole step."""
    _trainings.append(None)
    try:
        yield
    finally:
        _trainings.pop()
