"""The world of starts: searches worked by hand, and answers checked by putting them into the equation."""

import re

import pytest

from sdzero.questions.question import Question
from sdzero.questions.sources import load_questions
from sdzero.recipe import DataSettings
from sdzero.tiny.problem import boxed_text
from sdzero.tiny.starts import (
    FIRST_TRIAL,
    KINDS,
    all_problems,
    false_starts,
    is_right,
    make_problem,
    rephrased,
    solution,
)
from sdzero.verify.math import MathVerifier

BY_HAND = [
    ("a*x+b", (6, 7, 12), "7*x+12=54", "5:35+12=47 wait 6:42+12=54\\boxed{6}", "5:35+12=47\\boxed{5}"),
    (
        "b-a*x",
        (3, 5, 89),
        "89-5*x=74",
        "5:89-25=64 wait 4:89-20=69 wait 3:89-15=74\\boxed{3}",
        "5:89-25=64\\boxed{5}",
    ),
    ("x*a-b", (4, 5, 27), "x*5-27=-7", "5:25-27=-2 wait 4:20-27=-7\\boxed{4}", "5:25-27=-2\\boxed{5}"),
    (
        "b+x*a",
        (6, 6, 47),
        "47+x*6=83",
        "5:47+30=77 wait 6:47+36=83\\boxed{6}",
        "5:47+30=77 wait 4:47+24=71\\boxed{4}",
    ),
    (
        "a*(x+b)",
        (8, 6, 24),
        "6*(x+24)=192",
        "5:6*29=174 wait 6:6*30=180 wait 7:6*31=186 wait 8:6*32=192\\boxed{8}",
        "5:6*29=174 wait 4:6*28=168\\boxed{4}",
    ),
    (
        "a*(b-x)",
        (2, 3, 24),
        "3*(24-x)=66",
        "5:3*19=57 wait 4:3*20=60 wait 3:3*21=63 wait 2:3*22=66\\boxed{2}",
        "5:3*19=57 wait 6:3*18=54\\boxed{6}",
    ),
    (
        "b-x*a",
        (4, 3, 81),
        "81-x*3=69",
        "5:81-15=66 wait 4:81-12=69\\boxed{4}",
        "5:81-15=66 wait 6:81-18=63\\boxed{6}",
    ),
]


@pytest.mark.parametrize(("kind", "operands", "text", "right", "wrong"), BY_HAND)
def test_solutions_worked_by_hand(
    kind: str, operands: tuple[int, int, int], text: str, right: str, wrong: str
) -> None:
    problem = make_problem(kind, operands)
    assert problem.text == text
    assert solution(problem) == right
    assert solution(problem, right=False) == wrong


def holds(equation: str, x: str) -> bool:
    """Whether a number makes an equation true, by Python's own arithmetic."""
    left, right = equation.split("=")
    assert re.fullmatch(r"[0-9x+*()-]+", left)
    return bool(eval(left.replace("x", x)) == int(right))


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_answer_makes_the_equation_true(kind: str) -> None:
    problems = list(all_problems(kind))
    assert len({problem.text for problem in problems}) == len(problems) > 1_000
    for problem in problems[::7]:
        assert [x for x in "123456789" if holds(problem.text, x)] == [problem.answer]
        assert is_right(problem, solution(problem))
        assert not is_right(problem, solution(problem, right=False))


@pytest.mark.parametrize("kind", KINDS)
def test_every_trial_is_worked_out_rightly_and_only_the_last_of_a_right_solution_fits(kind: str) -> None:
    for problem in list(all_problems(kind))[::31]:
        value = problem.text.rpartition("=")[2]
        for right in (True, False):
            trials = solution(problem, right).partition("\\boxed{")[0].split(" wait ")
            results = [trial.partition(":")[2].split("=") for trial in trials]
            assert all(eval(written) == int(result) for written, result in results)
            assert [result == value for _, result in results] == [False] * (len(trials) - 1) + [right]


def test_every_right_solution_has_one_false_start_for_each_step_to_the_answer() -> None:
    for kind in KINDS:
        for problem in all_problems(kind):
            x = problem.operands[0]
            assert false_starts(solution(problem)) == abs(x - FIRST_TRIAL) >= 1


def test_a_solution_told_again_has_the_last_trial_only() -> None:
    assert rephrased("5:35+12=47 wait 6:42+12=54\\boxed{6}") == "6:42+12=54\\boxed{6}"
    assert rephrased("6:42+12=54\\boxed{6}") == "6:42+12=54\\boxed{6}"


def test_the_verifier_grades_the_sources_questions() -> None:
    questions = load_questions(DataSettings(source="starts", n1=1, n2=1, test=1))
    verifier = MathVerifier()
    problems = {problem.text: problem for kind in KINDS for problem in all_problems(kind)}
    assert {question.kind for question in questions[: len(KINDS)]} == set(KINDS)
    for question in questions[: len(KINDS)]:
        problem = problems[question.text]
        assert question.solution == solution(problem)
        assert verifier.grade(question, question.solution).reward == 1
        assert verifier.grade(question, rephrased(question.solution)).reward == 1
        assert verifier.grade(question, solution(problem, right=False)).reward == 0
    assert verifier.grade(Question("q", "7*x+12=54", "6"), "5:35+12=47 wait 6:42+12=54").reward == 0
    assert boxed_text("5:35+12=47 wait 6:42+12=54") is None
