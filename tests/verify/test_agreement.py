"""Who can vote, what a final answer is, and grading by the text of a label."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from sdzero.errors import UserError
from sdzero.questions.question import Question
from sdzero.verify.agreement import LabelledQuestion, agreement_grade, labelled, voter_of
from sdzero.verify.math import final_answer
from sdzero.verify.verdict import Outcome, Verdict

MODULE = """
from sdzero.verify.verdict import Outcome, Verdict

class Voting:
    name = "voting"
    def grade(self, question, response): return Verdict(Outcome.CORRECT)
    def canaries(self): return []
    def final_answer(self, response): return response.split()[-1] if response.split() else None

class Silent:
    name = "silent"
    def grade(self, question, response): return Verdict(Outcome.CORRECT)
    def canaries(self): return []

def plain(question, response): return True
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the current folder, where a run's workers find it too."""
    (tmp_path / "own_voters.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("6*7=\\boxed{42}", "42"),
        ("\\boxed{1} no, \\boxed{ \\frac{1}{2} }", "\\frac{1}{2}"),
        ("\\boxed{}", None),
        ("\\boxed{4", None),
        ("The final answer is 12.", "12"),
        ("**Answer:** Paris\nor so I think", "Paris"),
        ("The answer is $x^2+1$.", "x^2+1"),
        ("The answer is 12 because of the sum, 3", None),
        ("There are 12 ways.", None),
        ("", None),
    ],
)
def test_the_final_answer_of_a_mathematical_response(response: str, answer: str | None) -> None:
    assert final_answer(response) == answer


def test_mathematics_is_compared_by_the_verifier_and_puzzles_by_text() -> None:
    assert not voter_of("math").by_text
    puzzle = voter_of("puzzle")
    assert puzzle.by_text
    assert puzzle.final_answer("<answer>ab</answer>") == "ab"
    assert puzzle.final_answer(" \n") is None


@pytest.mark.parametrize("name", ["code", "own_voters:Silent", "own_voters:plain"])
def test_a_verifier_without_comparable_answers_is_refused(name: str, own_module: None) -> None:
    with pytest.raises(UserError, match=f"the verifier `{name}` cannot vote") as raised:
        voter_of(name)
    assert "labels.source=reference" in str(raised.value.todo)


def test_a_verifier_of_ones_own_votes_with_final_answer(own_module: None) -> None:
    voter = voter_of("own_voters:Voting")
    assert not voter.by_text
    assert voter.final_answer("it is 4") == "4"


def test_a_label_takes_the_place_of_everything_that_tells_the_reference() -> None:
    question = Question("q", "x?", "7", "sums", {"entry": {"answer": "7"}}, "3+4=7")
    assert labelled(question, "8") == LabelledQuestion("q", "x?", "8", "sums")


def test_by_text_a_response_is_right_if_its_answer_is_the_label() -> None:
    asked: list[tuple[Question, str]] = []

    def verifier(items: Sequence[tuple[Question, str]]) -> list[Verdict]:
        asked.extend(items)
        return [Verdict(Outcome.TIMEOUT) for _ in items]

    grade = agreement_grade(voter_of("puzzle"), verifier)
    true, own = Question("t", "x?", "ba"), LabelledQuestion("q", "x?", "ab  c")
    items = [(own, "\\boxed{ab c}"), (true, "\\boxed{ab}"), (own, "\\boxed{abc}"), (own, " ")]
    outcomes = [verdict.outcome for verdict in grade(items)]
    assert outcomes == [Outcome.CORRECT, Outcome.TIMEOUT, Outcome.WRONG, Outcome.NO_ANSWER]
    assert asked == [(true, "\\boxed{ab}")]


def test_a_verifier_that_compares_grades_labels_itself() -> None:
    def verifier(items: Sequence[tuple[Question, str]]) -> list[Verdict]:
        return [Verdict(Outcome.CORRECT) for _ in items]

    assert agreement_grade(voter_of("math"), verifier) is verifier
