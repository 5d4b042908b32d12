"""What counts as the same mathematical answer, and what counts as an answer at all."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdzero.questions.question import Question
from sdzero.verify.math import MathVerifier, as_integer, as_integers
from sdzero.verify.verdict import Outcome

VERIFIER = MathVerifier()


def _outcome(answer: str, response: str) -> str:
    return VERIFIER.grade(Question("q", "What is it?", answer), response).outcome


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("42", "\\boxed{42}"),
        ("$42$", "\\boxed{+042.}"),
        ("\\boxed{42}", "\\boxed{ $42$ }"),
        ("1234567", "\\boxed{1,234,567}"),
        ("1234", "\\boxed{1{,}234}"),
        ("42", "\\boxed{x = 42}"),
        ("42", "\\boxed{42 \\text{ cm}}"),
        ("42", "\\boxed{42.0}"),
        ("5", "\\boxed{5\\,}"),
        ("\\frac{1}{2}", "\\boxed{0.5}"),
        ("1/2", "\\boxed{\\dfrac{2}{4}}"),
        ("x^2+1", "\\boxed{1+x^2}"),
        ("\\(\\sqrt{8}\\)", "\\boxed{2\\sqrt2}"),
        ("(1,2)", "\\boxed{(1, 2)}"),
        ("\\{1,2\\}", "\\boxed{\\{2, 1\\}}"),
        ("Paris", "\\boxed{\\text{paris}}"),
        ("\\text{(A)}", "\\boxed{A}"),
        ("42", "The answer is 42."),
        ("42", "**Final answer:** 42 apples"),
        ("1/2", "So the final answer is $\\frac12$."),
        ("Paris", "The answer is **Paris**."),
        ("3", "The answer is 2. No: \\boxed{3}"),
    ],
)
def test_right_answers(answer: str, response: str) -> None:
    assert _outcome(answer, response) == Outcome.CORRECT


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("42", "\\boxed{24}"),
        ("42", "\\boxed{-42}"),
        ("42", "\\boxed{42} or rather \\boxed{43}"),
        ("3", "\\boxed{3 \\text{ or } 4}"),
        ("1/2", "\\boxed{1/3}"),
        ("x^2+1", "\\boxed{x^2-1}"),
        ("(1,2)", "\\boxed{(2,1)}"),
        ("Paris", "\\boxed{Pairs}"),
        ("42", "\\boxed{forty-two things}"),
        ("42", "\\boxed{" + "(" * 30 + "}"),
        ("42", "\\boxed{\\frac{}{}}"),
        ("42", "The answer is 43."),
    ],
)
def test_wrong_answers(answer: str, response: str) -> None:
    assert _outcome(answer, response) == Outcome.WRONG


@pytest.mark.parametrize(
    "response",
    [
        "",
        "6*7=42",
        "There are 42 ways to begin.",
        "I do not know the answer. There are 42 cases.",
        "The answer is not 42",
        "The answer is",
        "\\boxed{}",
        "\\boxed{42} no, \\boxed{42",
    ],
)
def test_no_answer(response: str) -> None:
    assert _outcome("42", response) == Outcome.NO_ANSWER


@given(st.integers(), st.integers())
def test_integers_are_compared_by_value(left: int, right: int) -> None:
    assert (_outcome(str(left), f"\\boxed{{{right:,}}}") == Outcome.CORRECT) == (left == right)


def test_integers_do_not_wake_the_symbolic_machinery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    assert _outcome("42", "\\boxed{42}") == Outcome.CORRECT
    assert _outcome("42", "\\boxed{41}") == Outcome.WRONG
    huge = "7" * 10_000
    assert _outcome(huge, f"\\boxed{{{huge}}}") == Outcome.CORRECT


@pytest.mark.parametrize(("text", "value"), [("-0", "0"), ("1,23", None), ("٣", None), ("1 000", None)])
def test_plain_integers(text: str, value: str | None) -> None:
    assert as_integer(text) == value


def test_the_canaries_have_the_outcomes_they_claim() -> None:
    canaries = VERIFIER.canaries()
    assert {c.outcome for c in canaries} == {Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER}
    for canary in canaries:
        assert VERIFIER.grade(canary.question, canary.response).outcome == canary.outcome


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("(2,-7)", True),
        ("( 2, -7 )", True),
        ("(+2,-07)", True),
        ("(-7,2)", False),
        ("(2,7)", False),
        ("(2,-7,0)", False),
        ("2,-7", True),
        ("(4/2,-7)", True),
    ],
)
def test_tuples_of_integers_are_compared_place_by_place(given: str, right: bool) -> None:
    verdict = MathVerifier().grade(Question("q", "where?", "(2,-7)"), f"\\boxed{{{given}}}")
    assert bool(verdict.reward) is right


@pytest.mark.parametrize("text", ["(2,x)", "(2)", "2,3", "((2,3),4)", "(2,3"])
def test_what_is_no_tuple_of_integers_is_left_to_math_verify(text: str) -> None:
    assert as_integers(text) is None
