"""A pool of verifier processes that can be killed: every item has a wall-clock limit of its own.

Workers are fresh interpreters (not forks, and not multiprocessing, which would import the user's main
script again), in sessions of their own, so that killing one also kills what its verifier started.
POSIX only.
"""

import contextlib
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from sdzero.errors import UserError
from sdzero.questions.question import Question
from sdzero.questions.splits import question_from_json, question_to_json
from sdzero.recipe import VerifierSettings
from sdzero.verify.verdict import Outcome, Verdict
from sdzero.verify.verifier import Canary
from sdzero.verify.worker import HEADER, frame, write_all

logger = logging.getLogger(__name__)

CHUNK_ITEMS = 64
CHUNK_CHARACTERS = 1_000_000
STARTUP_SECONDS = 120.0
STARTUP_ATTEMPTS = 3
DISMISSAL_SECONDS = 5.0
ATTEMPTS = 2
"""How often an item is tried whose worker dies."""

Item = tuple[Question, str]

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from sdzero.verify.worker import main; main()"
)


class _Worker:
    """One process: `chunk` holds the indices of the items that it has yet to grade, the first now."""

    def __init__(self, name: str, timeout_seconds: float, options: Mapping[str, Any]) -> None:
        # The worker finds what we find, and what lies in the current folder after that (not before:
        # a file named like a standard module must not shadow it).
        path = [*map(str, sys.path), os.getcwd()]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        self.received = bytearray()
        self.ready = False
        self.chunk: deque[int] = deque()
        self.deadline = time.monotonic() + STARTUP_SECONDS
        self.broken = False
        self.send(frame({"verifier": name, "timeout_seconds": timeout_seconds, "options": options}))

    @property
    def idle(self) -> bool:
        return self.ready and not self.chunk

    def send(self, data: bytes) -> None:
        """Send to a worker that waits for it. A dead worker shows up as the end of its output."""
        with contextlib.suppress(BrokenPipeError):
            write_all(self.input.fileno(), data)

    def receive(self) -> list[Any] | None:
        """The messages that have arrived; None at the end of the output. Call when it is readable."""
        data = os.read(self.output.fileno(), 1 << 16)
        if not data:
            return None
        self.received += data
        messages = []
        while len(self.received) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(self.received)[0]
            if len(self.received) < end:
                break
            messages.append(json.loads(self.received[HEADER.size : end]))
            del self.received[:end]
        return messages

    def dismiss(self) -> None:
        """Tell an idle process that there is nothing more; it then ends by itself."""
        if self.idle:
            self.input.close()

    def kill(self, wait_seconds: float = 0.0) -> int:
        """End the process and its children; the exit code (negative: the signal that ended it)."""
        if wait_seconds:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(wait_seconds)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        self.input.close()
        self.output.close()
        return code


def pool_of(settings: VerifierSettings, cache: Path | None = None) -> "VerifierPool":
    """The pool that a recipe asks for; `workers: auto` is one for each core that this process may use.

    `cache` is where the verifier `code` keeps its verdicts.
    """
    workers = len(os.sched_getaffinity(0)) if settings.workers == "auto" else settings.workers
    options: dict[str, Any] = {}
    if settings.name == "code":
        options = {"sandbox": settings.sandbox.model_dump(mode="json")}
        if cache is not None:
            options["cache"] = str(cache)
    if settings.threshold is not None:
        options["threshold"] = settings.threshold
    if settings.completions != "text":
        options["completions"] = settings.completions
    return VerifierPool(settings.name, workers, settings.timeout_seconds, options)


class VerifierPool:
    """Grades responses in worker processes, in order, whatever the verifier does.

    `name` is what `make_verifier` takes. An item that runs longer than `timeout_seconds` (wall clock,
    from when its worker begins it) has the verdict `timeout`, and its worker is killed and replaced. An
    item whose worker dies is tried once more, then its verdict is `error`; so is an exception in the
    verifier. `options` are the verifier's own (see `make_verifier`). Use it as a context manager, from one
    thread at a time:

        with VerifierPool("math", workers=2, timeout_seconds=5.0) as pool:
            pool.check_canaries()
            verdicts = pool.grade([(question, response)])
    """

    def __init__(
        self, name: str, workers: int, timeout_seconds: float, options: Mapping[str, Any] | None = None
    ) -> None:
        if workers < 1 or timeout_seconds <= 0:
            raise UserError(
                f"a pool needs a worker and a positive time, not {workers} and {timeout_seconds}",
                where="verifier.workers, verifier.timeout_seconds",
            )
        self._name = name
        self._count = workers
        self._timeout_seconds = timeout_seconds
        self._options = dict(options or {})
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._canaries: list[Canary] = []

    def __enter__(self) -> Self:
        """Start the workers. Raises UserError if there is no such verifier, or it does not start."""
        try:
            self._workers = [self._start() for _ in range(self._count)]
            while not any(worker.ready for worker in self._workers):
                self._step(_Grading([]))
        except BaseException:
            self._kill_all()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        """End the workers: idle ones clean up behind themselves, the others are killed."""
        idle = [worker for worker in self._workers if worker.idle]
        for worker in idle:
            worker.dismiss()
        for worker in idle:
            worker.kill(wait_seconds=DISMISSAL_SECONDS)
            self._workers.remove(worker)
        self._kill_all()

    def grade(self, items: Sequence[Item]) -> list[Verdict]:
        """Grade (question, response) pairs; the verdicts are in the order of the pairs.

        Raises UserError if the verifier's processes cannot be kept alive long enough to begin.
        """
        if not self._workers:
            raise RuntimeError("a VerifierPool grades only inside its `with` block")
        grading = _Grading(items)
        try:
            while grading.unfinished:
                for worker in self._workers:
                    if worker.idle and grading.queue:
                        self._give(worker, grading)
                self._step(grading)
        except BaseException:
            # Results of this call must not be taken for those of the next one.
            self._kill_all()
            self._workers = [self._start() for _ in range(self._count)]
            raise
        return grading.finished()

    def check_canaries(self) -> None:
        """Grade the verifier's canaries. Raises UserError that names each one graded otherwise."""
        if not self._canaries:
            logger.warning("the verifier `%s` has no canaries, so nothing shows that it works", self._name)
            return
        verdicts = self.grade([(canary.question, canary.response) for canary in self._canaries])
        failures = [
            f"{canary.response!r} for the answer {canary.question.answer!r} is {canary.outcome}, "
            f"but was graded {verdict.outcome}" + (f" ({verdict.detail})" if verdict.detail else "")
            for canary, verdict in zip(self._canaries, verdicts, strict=True)
            if verdict.outcome is not canary.outcome
        ]
        if failures:
            raise UserError(
                f"the verifier `{self._name}` fails on {len(failures)} of {len(verdicts)} responses whose "
                "outcome is known:\n" + "\n".join(f"    {failure}" for failure in failures),
                where="verifier.name",
                todo="do not train on its rewards; mend it (or raise verifier.timeout_seconds)",
            )

    def _start(self) -> _Worker:
        return _Worker(self._name, self._timeout_seconds, self._options)

    def _kill_all(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def _give(self, worker: _Worker, grading: "_Grading") -> None:
        """Send an idle worker its next chunk: small enough that the workers finish together."""
        size = min(CHUNK_ITEMS, -(-len(grading.queue) // (2 * len(self._workers))))
        data, indices = grading.take(size)
        worker.chunk.extend(indices)
        worker.send(data)
        worker.deadline = time.monotonic() + self._timeout_seconds

    def _step(self, grading: "_Grading") -> None:
        """Wait until a worker says something or is over its time, and act on it."""
        busy = [worker for worker in self._workers if not worker.idle]
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.output, selectors.EVENT_READ, worker)
            wait = min(worker.deadline for worker in busy) - time.monotonic()
            events = selector.select(max(wait, 0.0))
        # What has arrived counts before the clock is read: this process may itself have been held up.
        for key, _ in events:
            self._receive(key.data, grading)
        now = time.monotonic()
        for worker in [worker for worker in self._workers if not worker.idle and worker.deadline <= now]:
            self._expire(worker, grading)

    def _receive(self, worker: _Worker, grading: "_Grading") -> None:
        messages = worker.receive()
        if messages is None:
            self._bury(worker, grading)
            return
        for message in messages:
            if worker.ready:
                outcome, detail = message
                grading.verdicts[worker.chunk.popleft()] = Verdict(Outcome(outcome), detail)
                grading.unfinished -= 1
            elif "refused" in message:
                raise UserError(*message["refused"])
            else:
                worker.ready = True
                self._failed_starts = 0
                self._canaries = [_canary_from_json(data) for data in message["canaries"]]
        if messages:
            # The worker began its next item when it sent the last of these results.
            worker.deadline = time.monotonic() + self._timeout_seconds

    def _expire(self, worker: _Worker, grading: "_Grading") -> None:
        worker.kill()
        if worker.ready:
            self._time_out(worker, grading)
        else:
            self._count_failed_start(f"it was not ready after {STARTUP_SECONDS:.0f} seconds")
        self._replace(worker, grading)

    def _time_out(self, worker: _Worker, grading: "_Grading") -> None:
        index = worker.chunk.popleft()
        grading.verdicts[index] = Verdict(Outcome.TIMEOUT, f"over {self._timeout_seconds:g} seconds")
        grading.unfinished -= 1

    def _bury(self, worker: _Worker, grading: "_Grading") -> None:
        """Deal with a worker that died by itself."""
        code = worker.kill(wait_seconds=1.0)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if not worker.ready:
            self._count_failed_start(f"its process ended with {how}")
        elif code == -signal.SIGALRM:
            self._time_out(worker, grading)
        else:
            index = worker.chunk[0]
            grading.deaths[index] += 1
            if grading.deaths[index] >= ATTEMPTS:
                worker.chunk.popleft()
                detail = f"the verifier's process died {ATTEMPTS} times, of {how}"
                grading.verdicts[index] = Verdict(Outcome.ERROR, detail)
                grading.unfinished -= 1
        self._replace(worker, grading)

    def _count_failed_start(self, reason: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= STARTUP_ATTEMPTS:
            raise UserError(
                f"the verifier `{self._name}` does not start: {reason}",
                where="verifier.name",
                todo="see what its process wrote above; try it alone with make_verifier",
            )

    def _replace(self, worker: _Worker, grading: "_Grading") -> None:
        grading.queue.extendleft(reversed(worker.chunk))
        self._workers[self._workers.index(worker)] = self._start()


class _Grading:
    """One call of `grade`: which items wait, and the verdicts so far."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.queue: deque[int] = deque(range(len(items)))
        self.verdicts: list[Verdict | None] = [None] * len(items)
        self.unfinished = len(items)
        self.deaths: Counter[int] = Counter()

    def take(self, size: int) -> tuple[bytes, list[int]]:
        """Up to `size` items from the queue, as a message for a worker, and their indices."""
        chunk: list[Any] = []
        indices: list[int] = []
        characters = 0
        while self.queue and len(indices) < size and characters < CHUNK_CHARACTERS:
            index = self.queue.popleft()
            question, response = self.items[index]
            chunk.append([question_to_json(question), response])
            indices.append(index)
            characters += len(response)
        try:
            return frame(chunk), indices
        except TypeError as fault:
            raise UserError(
                f"a question's metadata cannot be sent to the verifier: {fault}",
                where=f"questions {chunk[0][0]['id']} to {chunk[-1][0]['id']}",
                todo="metadata must be JSON-like: text, numbers, lists, objects",
            ) from fault

    def finished(self) -> list[Verdict]:
        """All verdicts; each item must have one."""
        verdicts = [verdict for verdict in self.verdicts if verdict is not None]
        assert len(verdicts) == len(self.items)
        return verdicts


def _canary_from_json(data: Sequence[Any]) -> Canary:
    question, response, outcome = data
    return Canary(question_from_json(question), response, Outcome(outcome))
