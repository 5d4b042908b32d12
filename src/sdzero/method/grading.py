"""Grade responses while others are still being sampled.

A thread of its own hands whatever has come in to the verifier, all at once, and then what has come in
meanwhile: verdicts stream, and all of the verifier's processes have work.
"""

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from sdzero import ranks
from sdzero.questions.question import Question
from sdzero.verify.verdict import Verdict

Grade = Callable[[Sequence[tuple[Question, str]]], list[Verdict]]


def together(grade: Grade) -> Grade:
    """Grading whose items all processes of a run have: each grades its share, and all get all verdicts.

    So they agree, also where a verdict depends on how busy a machine is.
    """

    def shared(items: Sequence[tuple[Question, str]]) -> list[Verdict]:
        own = ranks.own_share(items)
        return ranks.whole_of_shares(grade(own) if own else [])

    return shared


class GradingAhead:
    """Collects items and has them graded in the background. `grade` is called from one thread at a time.

    with GradingAhead(pool.grade) as grading:
        grading.add(index, question, response)
        verdicts = grading.finish()
    """

    def __init__(self, grade: Grade) -> None:
        self._grade = grade
        self._waiting: list[tuple[int, Question, str]] = []
        self._verdicts: dict[int, Verdict] = {}
        self._fault: BaseException | None = None
        self._over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="grading", daemon=True)

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for what is being graded; after an error nothing more is begun."""
        self._end(drop=kind is not None)

    def begin(self) -> None:
        """Begin to grade what comes in; for callers without a `with` block, who `finish` or `abandon`."""
        self._thread.start()

    def abandon(self) -> None:
        """Wait for what is being graded, and drop what waits."""
        self._end(drop=True)

    def _end(self, drop: bool) -> None:
        with self._changed:
            self._over = True
            if drop:
                self._waiting.clear()
            self._changed.notify()
        self._thread.join()

    def add(self, index: int, question: Question, response: str) -> None:
        """Have a response graded; `index` is the caller's name for it."""
        with self._changed:
            self._waiting.append((index, question, response))
            self._changed.notify()

    def finish(self) -> dict[int, Verdict]:
        """All verdicts, by index. Raises what the verifier raised."""
        self._end(drop=False)
        if self._fault is not None:
            raise self._fault
        return self._verdicts

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._over)
                items, self._waiting = self._waiting, []
            if not items:
                return
            try:
                verdicts = self._grade([(question, response) for _, question, response in items])
                self._verdicts.update(zip((index for index, _, _ in items), verdicts, strict=True))
            # Whatever it is belongs to the caller's thread.
            except BaseException as fault:
                self._fault = fault
                return
