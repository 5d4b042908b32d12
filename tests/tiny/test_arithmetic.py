"""The world of arithmetic: solutions are right, misconceptions are wrong, and the two sides are apart."""

import random

import pytest

from sdzero.questions.question import Question
from sdzero.tiny.arithmetic import (
    KINDS,
    all_problems,
    boxed_value,
    draw_problem,
    post_training_problems,
    solution,
)
from sdzero.tiny.problem import Problem, is_pretraining
from sdzero.verify.math import MathVerifier

QUESTIONS_PROMISED = 20_000


@pytest.fixture(scope="module")
def problems() -> dict[str, list[Problem]]:
    return {kind: list(all_problems(kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_right_solutions_are_right_and_misconceptions_wrong(kind: str, problems) -> None:
    assert problems[kind]
    for problem in problems[kind]:
        assert problem.answer == eval(problem.text), "the answer must be what Python makes of the text"
        assert boxed_value(solution(problem)) == problem.answer
        wrong = boxed_value(solution(problem, right=False))
        assert wrong is not None
        assert wrong != problem.answer


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_that_a_right_solution_writes_is_true(kind: str, problems) -> None:
    for problem in random.Random(0).sample(problems[kind], 200):
        written = solution(problem).partition("\\boxed")[0]
        for step in written.split(";"):
            left, value = step.rsplit("=", 1)
            assert eval(left) == int(value), step


def test_six_kinds_are_mostly_wrong_and_five_mostly_right() -> None:
    assert sum(rules.share_right < 0.2 for rules in KINDS.values()) == 6
    assert sum(rules.share_right > 0.8 for rules in KINDS.values()) == 5


def test_no_text_belongs_to_two_problems(problems) -> None:
    texts = [problem.text for own in problems.values() for problem in own]
    assert len(texts) == len(set(texts))


def test_questions_for_post_training_are_many_distinct_and_never_seen() -> None:
    questions = post_training_problems()
    texts = {problem.text for problem in questions}
    assert len(texts) == len(questions) >= QUESTIONS_PROMISED
    assert not any(is_pretraining(text) for text in texts)
    leading = questions[: 20 * len(KINDS)]
    assert {kind: sum(p.kind == kind for p in leading) for kind in KINDS} == dict.fromkeys(KINDS, 20)


def test_a_drawn_problem_is_one_of_its_kind(problems) -> None:
    rng = random.Random(1)
    for kind in KINDS:
        known = set(problems[kind])
        assert all(draw_problem(rng, kind) in known for _ in range(20))


def test_the_verifier_reads_solutions_as_the_world_does() -> None:
    verifier = MathVerifier()
    for kind, rules in KINDS.items():
        problem = draw_problem(random.Random(2), kind)
        question = Question("q", problem.text, str(problem.answer))
        assert verifier.grade(question, solution(problem)).reward == 1
        if rules.wrong is not None:
            assert verifier.grade(question, solution(problem, right=False)).reward == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("\\boxed{7}", 7),
        ("1+1=2\\boxed{-3}", -3),
        ("\\boxed{1} no, \\boxed{2}", 2),
        ("\\boxed{12", None),
        ("\\boxed{x}", None),
        ("12", None),
    ],
)
def test_boxed_value(text: str, value: int | None) -> None:
    assert boxed_value(text) == value
