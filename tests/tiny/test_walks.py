"""The world of walks: solutions checked by another way of walking, misconceptions worked by hand."""

import pytest

from sdzero.questions.question import Question
from sdzero.questions.sources import load_questions
from sdzero.recipe import DataSettings
from sdzero.tiny.problem import boxed_text
from sdzero.tiny.walks import KINDS, all_problems, make_problem, solution, walk
from sdzero.verify.math import MathVerifier

BY_HAND = [
    (
        "Fa R Fb R Fc R Fd",
        (3, 2, 4, 5),
        "F3 R F2 R F4 R F5",
        "N(0,3);E(2,3);S(2,-1);W(-3,-1)\\boxed{(-3,-1)}",
        "N(0,3);E(2,3);S(2,-1);E(7,-1)\\boxed{(7,-1)}",
    ),
    (
        "Fa L Fb L Fc L Fd",
        (3, 2, 4, 5),
        "F3 L F2 L F4 L F5",
        "N(0,3);W(-2,3);S(-2,-1);E(3,-1)\\boxed{(3,-1)}",
        "N(0,3);W(-2,3);S(-2,-1);W(-7,-1)\\boxed{(-7,-1)}",
    ),
    (
        "Fa R Fb U Fc L Fd",
        (3, 2, 4, 5),
        "F3 R F2 U F4 L F5",
        "N(0,3);E(2,3);W(-2,3);S(-2,-2)\\boxed{(-2,-2)}",
        "N(0,3);E(2,3);E(6,3);N(6,8)\\boxed{(6,8)}",
    ),
    (
        "Fa R Fb L Bc R Fd",
        (3, 2, 4, 5),
        "F3 R F2 L B4 R F5",
        "N(0,3);E(2,3);N(2,-1);E(7,-1)\\boxed{(7,-1)}",
        "N(0,3);E(2,3);N(2,7);E(7,7)\\boxed{(7,7)}",
    ),
    (
        "2(Fa R) Fb L Fc R Fd",
        (3, 2, 4, 5),
        "2(F3 R) F2 L F4 R F5",
        "N(0,3);E(3,3);S(3,1);E(7,1);S(7,-4)\\boxed{(7,-4)}",
        "N(0,3);E(2,3);N(2,7);E(7,7)\\boxed{(7,7)}",
    ),
    (
        "S Fa L Fb R Fc L Fd",
        (3, 2, 4, 5),
        "S F3 L F2 R F4 L F5",
        "S(0,-3);E(2,-3);S(2,-7);E(7,-7)\\boxed{(7,-7)}",
        "N(0,3);W(-2,3);N(-2,7);W(-7,7)\\boxed{(-7,7)}",
    ),
    (
        "Fa R Fb R Fc L Fd",
        (3, 2, 4, 5),
        "F3 R F2 R F4 L F5",
        "N(0,3);E(2,3);S(2,-1);E(7,-1)\\boxed{(7,-1)}",
        "N(0,3);E(2,3);S(2,-1)\\boxed{(2,-1)}",
    ),
]


@pytest.mark.parametrize(("kind", "steps", "text", "right", "wrong"), BY_HAND)
def test_solutions_worked_by_hand(
    kind: str, steps: tuple[int, ...], text: str, right: str, wrong: str
) -> None:
    problem = make_problem(kind, steps)
    assert problem.text == text
    assert solution(problem) == right
    assert solution(problem, right=False) == wrong


def end_by_complex_numbers(question: str) -> str:
    """Where a question ends: a place and a direction in the complex plane, letter by letter."""
    doubled, _, rest = question.removeprefix("2(").partition(")")
    if question.startswith("2("):
        question = f"{doubled} {doubled}{rest}"
    place, direction = 0j, 1j
    for word in question.split():
        if word[0] in "FB":
            place += direction * int(word[1:]) * (1 if word[0] == "F" else -1)
        else:
            direction *= {"R": -1j, "L": 1j, "U": -1, "S": -1}[word]
    return f"({place.real:.0f},{place.imag:.0f})".replace("-0", "0")


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_right_and_misconceptions_never(kind: str) -> None:
    problems = list(all_problems(kind))
    assert len({problem.text for problem in problems}) == 9**4
    for problem in problems:
        assert boxed_text(solution(problem)) == problem.answer == end_by_complex_numbers(problem.text)
        wrong = boxed_text(solution(problem, right=False))
        assert wrong is not None
        assert wrong != problem.answer


def test_the_box_repeats_the_last_place() -> None:
    for kind in KINDS:
        for right in (True, False):
            written, _, box = solution(make_problem(kind, (1, 9, 5, 3)), right).partition("\\boxed{")
            assert written.rpartition(";")[2][1:] == box.removesuffix("}")


def test_a_word_that_is_no_move_is_refused() -> None:
    with pytest.raises(KeyError):
        walk("F3 X F2")


@pytest.mark.parametrize(("given", "reward"), [("(2,-7)", 1), ("(-7,2)", 0), ("(2,7)", 0), ("(-2,-7)", 0)])
def test_the_verifier_tells_places_apart(given: str, reward: int) -> None:
    assert MathVerifier().grade(Question("q", "F1", "(2,-7)"), f"\\boxed{{{given}}}").reward == reward


def test_the_verifier_grades_the_sources_questions() -> None:
    questions = load_questions(DataSettings(source="walks", n1=1, n2=1, test=1))
    verifier = MathVerifier()
    problems = {problem.text: problem for kind in KINDS for problem in all_problems(kind)}
    assert {question.kind for question in questions[: len(KINDS)]} == set(KINDS)
    for question in questions[: len(KINDS)]:
        problem = problems[question.text]
        assert (question.kind, question.answer) == (problem.kind, problem.answer)
        assert question.solution == solution(problem)
        assert verifier.grade(question, question.solution).reward == 1
        assert verifier.grade(question, solution(problem, right=False)).reward == 0
