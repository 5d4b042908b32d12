"""Grading in the background: verdicts while the caller still adds, and faults on either side."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdzero.method.grading import GradingAhead
from sdzero.questions.question import Question
from sdzero.verify.verdict import Outcome, Verdict
from support import make_questions

PATIENCE = 10.0
"""Seconds after which something hangs."""

Items = Sequence[tuple[Question, str]]
Result = TypeVar("Result")


def within_patience(do: Callable[[], Result]) -> Result:
    """What `do` returns or raises; a failure if it takes too long."""
    results: list[Result] = []
    faults: list[BaseException] = []

    def run() -> None:
        try:
            results.append(do())
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "it hangs"
    if faults:
        raise faults[0]
    return results[0]


class Grader:
    """Says `wrong` with the question and the text as detail; each call waits until it may go on.

    `fault` is raised in the call of that number (from 0).
    """

    def __init__(self, open_: bool = True, fault: tuple[int, BaseException] | None = None) -> None:
        self.calls: list[list[str]] = []
        self.threads: set[int] = set()
        self.at_once = 0
        self.begun = threading.Semaphore(0)
        self.may_go_on = threading.Event()
        self._fault = fault
        self._inside = 0
        if open_:
            self.may_go_on.set()

    def __call__(self, items: Items) -> list[Verdict]:
        self._inside += 1
        self.at_once = max(self.at_once, self._inside)
        self.threads.add(threading.get_ident())
        number = len(self.calls)
        self.calls.append([text for _, text in items])
        self.begun.release()
        assert self.may_go_on.wait(PATIENCE)
        self._inside -= 1
        if self._fault is not None and self._fault[0] == number:
            raise self._fault[1]
        return [Verdict(Outcome.WRONG, f"{question.id} {text}") for question, text in items]

    def wait_for_a_call(self) -> None:
        assert self.begun.acquire(timeout=PATIENCE)


QUESTIONS = make_questions(100)


def test_verdicts_are_those_of_their_index_in_any_order() -> None:
    def grade() -> dict[int, Verdict]:
        with GradingAhead(Grader()) as grading:
            for index in (7, 2, 90, 0):
                grading.add(index, QUESTIONS[index], f"text {index}")
            return grading.finish()

    assert within_patience(grade) == {
        index: Verdict(Outcome.WRONG, f"q{index} text {index}") for index in (7, 2, 90, 0)
    }


@given(st.lists(st.integers(0, 99), unique=True, max_size=30))
def test_nothing_is_lost_and_nothing_graded_twice(indices: list[int]) -> None:
    grader = Grader()

    def grade() -> dict[int, Verdict]:
        with GradingAhead(grader) as grading:
            for index in indices:
                grading.add(index, QUESTIONS[index], str(index))
            return grading.finish()

    verdicts = within_patience(grade)
    assert {index: verdict.detail for index, verdict in verdicts.items()} == {
        index: f"q{index} {index}" for index in indices
    }
    assert [int(text) for call in grader.calls for text in call] == indices
    assert [] not in grader.calls


def test_grading_begins_while_others_are_still_added() -> None:
    grader = Grader(open_=False)

    def grade() -> None:
        with GradingAhead(grader) as grading:
            grading.add(0, QUESTIONS[0], "first")
            grader.wait_for_a_call()
            assert grader.calls == [["first"]], "the first is graded before a second one is there"
            for index in range(1, 50):
                grading.add(index, QUESTIONS[index], str(index))
            grader.may_go_on.set()
            assert len(grading.finish()) == 50

    within_patience(grade)
    # What came in meanwhile is handed over at once, for all of the verifier's processes.
    assert grader.calls == [["first"], [str(index) for index in range(1, 50)]]
    assert grader.at_once == 1
    assert threading.get_ident() not in grader.threads


def test_one_call_at_a_time_from_one_thread() -> None:
    grader = Grader()

    def grade() -> None:
        with GradingAhead(grader) as grading:
            for index in range(100):
                grading.add(index, QUESTIONS[index], str(index))
                if index % 10 == 0:
                    grader.wait_for_a_call()
            grading.finish()

    within_patience(grade)
    assert grader.at_once == 1
    assert len(grader.threads) == 1
    assert len(grader.calls) >= 10


def test_nothing_to_grade() -> None:
    grader = Grader()

    def grade() -> dict[int, Verdict]:
        with GradingAhead(grader) as grading:
            return grading.finish()

    assert within_patience(grade) == {}
    assert grader.calls == []


@pytest.mark.parametrize("fault", [ValueError("no licence"), KeyboardInterrupt(), SystemExit(3)])
def test_a_fault_of_the_grader_reaches_the_caller(fault: BaseException) -> None:
    grader = Grader(fault=(1, fault))

    def grade() -> None:
        with GradingAhead(grader) as grading:
            grading.add(0, QUESTIONS[0], "a")
            grader.wait_for_a_call()
            grading.add(1, QUESTIONS[1], "b")
            grader.wait_for_a_call()
            grading.add(2, QUESTIONS[2], "c")
            grading.finish()

    with pytest.raises(type(fault)) as caught:
        within_patience(grade)
    assert caught.value is fault
    assert grader.calls == [["a"], ["b"]], "nothing is graded after a fault"


@pytest.mark.parametrize("given_", [[], [Verdict(Outcome.CORRECT)] * 3])
def test_a_grader_with_too_few_or_too_many_verdicts_is_a_fault(given_: list[Verdict]) -> None:
    # Else a response without a verdict would be taken for a truncated one.
    def grade() -> None:
        with GradingAhead(lambda items: given_) as grading:
            grading.add(0, QUESTIONS[0], "a")
            grading.add(1, QUESTIONS[1], "b")
            grading.finish()

    with pytest.raises(ValueError, match="zip"):
        within_patience(grade)


@pytest.mark.parametrize("fault", [ValueError("of the engine"), KeyboardInterrupt()])
def test_after_a_fault_of_the_caller_nothing_more_is_begun(fault: BaseException) -> None:
    grader = Grader(open_=False)
    timers: list[threading.Timer] = []

    def grade() -> None:
        with GradingAhead(grader) as grading:
            grading.add(0, QUESTIONS[0], "begun")
            grader.wait_for_a_call()
            grading.add(1, QUESTIONS[1], "waiting")
            timers.append(threading.Timer(0.05, grader.may_go_on.set))
            timers[0].start()
            raise fault

    with pytest.raises(type(fault)) as caught:
        within_patience(grade)
    assert caught.value is fault
    assert grader.may_go_on.is_set(), "what was being graded was waited for"
    assert grader.calls == [["begun"]]


def test_the_callers_fault_comes_before_that_of_the_grader() -> None:
    grader = Grader(fault=(0, ValueError("of the grader")))

    def grade() -> None:
        with GradingAhead(grader) as grading:
            grading.add(0, QUESTIONS[0], "a")
            grader.wait_for_a_call()
            raise LookupError("of the engine")

    with pytest.raises(LookupError, match="of the engine"):
        within_patience(grade)


def test_no_thread_is_left() -> None:
    def grade(*faults: Any) -> None:
        with GradingAhead(Grader()) as grading:
            grading.add(0, QUESTIONS[0], "a")
            for fault in faults:
                raise fault
            grading.finish()

    within_patience(grade)
    with pytest.raises(LookupError):
        within_patience(lambda: grade(LookupError()))
    assert [thread for thread in threading.enumerate() if thread.name == "grading"] == []
