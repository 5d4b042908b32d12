"""Grading without the reference: a response against what other responses agree on.

A verifier can vote if it can say what a response's final answer is. Whether two answers are the same is the
verifier's own decision: one response is graded against the other's answer, as if that were the reference.
`puzzle` cannot be asked so, because reasoning-gym's scorers read the entry that a puzzle was made from,
which tells the right answer: its answers are the same if their texts are. `code` has no answers to compare.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sdzero.errors import UserError
from sdzero.questions.question import Question
from sdzero.verify.verdict import Outcome, Verdict
from sdzero.verify.verifier import make_verifier

Grade = Callable[[Sequence[tuple[Question, str]]], list[Verdict]]
FinalAnswer = Callable[[str], str | None]


@dataclass(frozen=True)
class LabelledQuestion(Question):
    """A training question whose `answer` is a label: an answer that the model itself gave.

    It has neither metadata nor a worked solution, since both may tell the reference answer.
    """


def labelled(question: Question, label: str) -> LabelledQuestion:
    """The question with a label in place of everything that tells its reference answer."""
    return LabelledQuestion(question.id, question.text, label, question.kind)


@dataclass(frozen=True)
class Voter:
    """How a verifier's responses are compared. `final_answer` gives the answer as written, or None; it is
    called in this process, so it must be quick. `by_text`: answers are the same if their texts are."""

    final_answer: FinalAnswer
    by_text: bool


def voter_of(name: str) -> Voter:
    """How the verifier of this name votes.

    Raises UserError for `code`, and for a verifier of the user's own without a method `final_answer`.
    """
    if name == "math":
        from sdzero.verify.math import final_answer

        return Voter(final_answer, by_text=False)
    if name == "puzzle":
        from sdzero.verify.puzzle import extract_answer

        return Voter(lambda response: extract_answer(response) or None, by_text=True)
    if name == "code":
        raise _cannot_vote(name, "two programs cannot be compared by their answers")
    with _current_folder_on_path():
        verifier = make_verifier(name)
    found = getattr(verifier, "final_answer", None)
    if not callable(found):
        raise _cannot_vote(name, "it has no method `final_answer`, which gives a response's answer as text")
    return Voter(found, by_text=False)


def _cannot_vote(name: str, why: str) -> UserError:
    return UserError(
        f"the verifier `{name}` cannot vote: {why}",
        "labels.source, verifier.name",
        "set labels.source=reference, or use `math`, `puzzle` or a verifier with `final_answer`"
        " (docs/label-free.md)",
    )


@contextmanager
def _current_folder_on_path() -> Iterator[None]:
    """The workers find the user's module in the current folder too (`sdzero.verify.pool`)."""
    here = os.getcwd()
    sys.path.append(here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)


def one_line(answer: str) -> str:
    """An answer with runs of whitespace as one space: the form in which texts are compared."""
    return " ".join(answer.split())


def agreement_grade(voter: Voter, grade: Grade) -> Grade:
    """A `Grade` for labelled questions and others; `grade` is the verifier's own.

    With `by_text`, a response to a labelled question is correct if its final answer is the label.
    """
    if not voter.by_text:
        return grade

    def graded(items: Sequence[tuple[Question, str]]) -> list[Verdict]:
        own = iter(grade([item for item in items if not isinstance(item[0], LabelledQuestion)]))
        return [
            _by_text(voter.final_answer, *item) if isinstance(item[0], LabelledQuestion) else next(own)
            for item in items
        ]

    return graded


def _by_text(final_answer: FinalAnswer, question: Question, response: str) -> Verdict:
    given = final_answer(response)
    if given is None:
        return Verdict(Outcome.NO_ANSWER)
    if one_line(given) == one_line(question.answer):
        return Verdict(Outcome.CORRECT)
    return Verdict(Outcome.WRONG, f"the answer given is {given[:200]}")
