"""Run a program that nobody trusts: one interface, whatever isolates it.

A job is a command, the files that it may read, what it reads on standard input, and limits. How it ended is
told by what it wrote and by its exit code alone, never by anything that the program could leave behind. What
each backend keeps a program from is told in docs/sandbox.md. Imports no torch.
"""

import contextlib
import fcntl
import os
import selectors
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

WORK_FOLDER = "/work"
"""The program's private folder, its home, and where it starts."""

PROGRAM_FOLDER = "/program"
"""Where a job's files are, read-only."""

INSTALL_BUBBLEWRAP = "install bubblewrap 0.8 or newer (Debian, Ubuntu: apt-get install bubblewrap)"

STDERR_KEPT = 1 << 16
GRACE_SECONDS = 5.0
"""How long a killed program may take to be gone before that counts as a fault of the machine."""

MEBIBYTE = 1 << 20
_SEALED = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class SandboxError(Exception):
    """The sandbox itself failed: the verdict is `error`, which is never counted against the model."""


@dataclass(frozen=True)
class Limits:
    """What one run may use; `processes` counts threads. The keys of `SandboxSettings` are explained there."""

    wall_seconds: float
    cpu_seconds: float
    memory_megabytes: int
    processes: int
    open_files: int
    file_megabytes: int
    disk_megabytes: int
    output_megabytes: int


@dataclass(frozen=True)
class Job:
    """One run. `files` are names and contents; `Sandbox.place` tells where the program finds one."""

    command: tuple[str, ...]
    limits: Limits
    files: Mapping[str, bytes] = field(default_factory=dict)
    stdin: bytes = b""


class Ending(StrEnum):
    """How a run ended; a program that was not stopped has an exit code."""

    EXITED = "exited"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT = "output"


@dataclass(frozen=True)
class Finished:
    """What came of a run. `stderr` is its last `STDERR_KEPT` bytes; `seconds` are wall clock.

    `exit_code` is 128 and the signal's number for a program that a signal ended, None for one that was
    stopped.
    """

    ending: Ending
    exit_code: int | None
    stdout: bytes
    stderr: bytes
    seconds: float


class Running:
    """A run under way.

    `process` is a pidfd, `stdout` (None if what it writes goes to another program) and `stderr` are pipes to
    read; they are closed with the run. `kill` ends it for certain, whatever it does.
    """

    def __init__(
        self, job: Job, process: int, stdout: int | None, stderr: int, kill: Callable[[], None]
    ) -> None:
        self.limits, self.process = job.limits, process
        self.started, self.seconds = time.monotonic(), 0.0
        self.stdout, self.stderr = bytearray(), bytearray()
        self.streams = {stderr: self.stderr} if stdout is None else {stdout: self.stdout, stderr: self.stderr}
        self.ending: Ending | None = None
        self.ended = False
        self._written = 0
        self._kill = kill

    @property
    def deadline(self) -> float:
        """When its time is over, by the monotonic clock."""
        return self.started + self.limits.wall_seconds

    def read(self, stream: int) -> bool:
        """Take what has arrived on a stream; False at its end."""
        data, kept = os.read(stream, 1 << 16), self.streams[stream]
        self._written += len(data)
        kept += data
        if kept is self.stderr and len(kept) > STDERR_KEPT:
            del kept[:-STDERR_KEPT]
        if self._written > self.limits.output_megabytes * MEBIBYTE:
            self.stop(Ending.OUTPUT)
            return False
        return bool(data)

    def stop(self, ending: Ending) -> None:
        """Kill it, for a reason that is remembered if it is the first."""
        self.ending = self.ending or ending
        self._kill()

    def note_end(self) -> None:
        """Its process has ended."""
        self.ended = True
        self.seconds = time.monotonic() - self.started

    def close(self) -> None:
        """Kill it if it still runs, and close what belongs to it."""
        if not self.ended:
            self._kill()
        for descriptor in (*self.streams, self.process):
            os.close(descriptor)


class Sandbox(ABC):
    """Runs jobs, one (or one pair) at a time. Use `close` when done; a worker that is killed needs none."""

    name: str
    start_seconds = 0.0
    """How long a start may take by the clock that is not counted against the program."""

    @abstractmethod
    def describe(self) -> str:
        """In words: what isolates, and what is limited how."""

    @abstractmethod
    def versions(self) -> str:
        """Of what runs programs: verdicts of other versions are not taken for those of these."""

    @abstractmethod
    def python(self) -> tuple[str, ...]:
        """The command that runs a Python program, less the program."""

    def place(self, name: str) -> str:
        """The path at which a program finds a file of its job."""
        return f"{PROGRAM_FOLDER}/{name}"

    @abstractmethod
    def _start(self, job: Job, stdin: int, stdout: int | None, slot: int) -> Running:
        """Start a job with these descriptors (None: a pipe of its own) in one of two slots."""

    @abstractmethod
    def _finish(self, running: Running, slot: int) -> Finished:
        """What came of a run whose process has ended; nothing of it may be left behind.

        Raises SandboxError if the sandbox, not the program, failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what the sandbox holds."""

    def run(self, job: Job) -> Finished:
        """Run one job to its end. Raises SandboxError if it could not be run."""
        with _descriptor_of(job.stdin) as stdin:
            running = self._start(job, stdin, None, 0)
        try:
            _attend([running])
            return self._finish(running, 0)
        finally:
            running.close()

    def run_pair(self, judge: Job, program: Job) -> tuple[Finished, Finished]:
        """Run two jobs that talk: each reads as standard input what the other writes as standard output.

        The program is stopped when the judge has ended. `stdin` of the jobs is not used.
        """
        pipes = [*os.pipe(), *os.pipe()]
        to_program, from_judge, to_judge, from_program = pipes
        running: list[Running] = []
        try:
            try:
                running.append(self._start(program, to_program, from_program, 1))
                running.append(self._start(judge, to_judge, from_judge, 0))
            finally:
                for descriptor in pipes:
                    os.close(descriptor)
            first, second = running
            _attend([second, first], leader=second)
            return self._finish(second, 0), self._finish(first, 1)
        finally:
            for one in running:
                one.close()


@contextlib.contextmanager
def _descriptor_of(data: bytes) -> Iterator[int]:
    """A descriptor to read the data from, closed at the end; the reader cannot change them."""
    descriptor = sealed(data)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sealed(data: bytes) -> int:
    """A file in memory with these contents, which nobody can change, at its beginning."""
    descriptor = os.memfd_create("sdzero", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALED)
    return descriptor


def _attend(running: Sequence[Running], leader: Running | None = None) -> None:
    """Read what the runs write until all have ended; stop those that are over their limits.

    When `leader` has ended, the others are stopped.
    """
    waiting = set(running)
    with selectors.DefaultSelector() as selector:
        for one in running:
            selector.register(one.process, selectors.EVENT_READ, (one, None))
            for stream in one.streams:
                selector.register(stream, selectors.EVENT_READ, (one, stream))
        while waiting:
            now = time.monotonic()
            for one in list(waiting):
                if now > one.deadline:
                    one.stop(Ending.TIMEOUT)
                if now > one.deadline + GRACE_SECONDS:
                    raise SandboxError(f"a killed program is not gone after {GRACE_SECONDS:g} seconds")
            wait = min(one.deadline + (GRACE_SECONDS if one.ending else 0.0) for one in waiting) - now
            for key, _ in selector.select(max(wait, 0.0) + 0.001):
                one, stream = key.data
                if stream is not None:
                    if not one.read(stream):
                        selector.unregister(stream)
                    continue
                selector.unregister(one.process)
                one.note_end()
                waiting.discard(one)
                if one is leader:
                    for other in waiting:
                        other.stop(Ending.EXITED)
        # What was written just before the end; after it nobody is left to write.
        for key in list(selector.get_map().values()):
            one, stream = key.data
            os.set_blocking(stream, False)
            with contextlib.suppress(BlockingIOError):
                while one.read(stream):
                    pass
