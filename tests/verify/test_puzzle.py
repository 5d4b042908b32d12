"""reasoning-gym questions, through JSON, graded by reasoning-gym's scorers."""

import json
from pathlib import Path

import pytest

import sdzero.verify.puzzle as puzzle_module
from sdzero.questions.question import Question
from sdzero.questions.sources import load_questions
from sdzero.questions.splits import question_from_json, question_to_json
from sdzero.recipe import DataSettings
from sdzero.verify.puzzle import PuzzleVerifier, extract_answer
from sdzero.verify.verdict import Outcome

VERIFIER = PuzzleVerifier()


def _load(*tasks: str, pool: int) -> list[Question]:
    settings = DataSettings(source="reasoning_gym", tasks=list(tasks), pool=pool, n1=1, n2=1, test=1)
    questions = load_questions(settings)
    return [question_from_json(json.loads(json.dumps(question_to_json(q)))) for q in questions]


# rearc and arc_agi score tuples as tuples; n_queens and countdown have many right answers.
TASKS = ["chain_sum", "basic_arithmetic", "rearc", "arc_agi", "n_queens", "countdown", "leg_counting", "gcd"]


def test_reference_answers_are_right_after_a_round_trip_through_json() -> None:
    questions = _load(*TASKS, pool=2 * len(TASKS))
    assert {q.kind for q in questions} == set(TASKS)
    for question in questions:
        response = f"Let me think.\n<answer>{question.answer}</answer>"
        assert VERIFIER.grade(question, response).outcome == Outcome.CORRECT, question.id


def test_partial_scores_are_wrong() -> None:
    question = _load("chain_sum", pool=3)[0]
    verdict = VERIFIER.grade(question, f"\\boxed{{{question.answer} or so}}")
    assert verdict.outcome == Outcome.WRONG
    assert "scored 0." in verdict.detail


def test_another_right_answer_than_the_reference_is_right() -> None:
    question = next(
        q for q in _load("n_queens", pool=20) if len(q.metadata["entry"]["metadata"]["valid_answers"]) > 1
    )
    other = next(a for a in question.metadata["entry"]["metadata"]["valid_answers"] if a != question.answer)
    assert VERIFIER.grade(question, f"<answer>{other}</answer>").outcome == Outcome.CORRECT


def test_an_answer_that_breaks_the_scorer_is_wrong_but_a_broken_entry_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    question = _load("chain_sum", pool=3)[0]
    with pytest.raises(KeyError):
        VERIFIER.grade(Question("q", "1+1?", "2"), "2")

    class Careless:
        def score_answer(self, answer: str, entry: dict[str, str]) -> float:
            return float(answer) / float(entry["answer"])

    monkeypatch.setattr(puzzle_module, "_task", lambda name, arguments: Careless())
    assert VERIFIER.grade(question, "\\boxed{about two}").outcome == Outcome.WRONG
    broken = Question("q", "?", "x", "", {**question.metadata, "entry": {"answer": "x"}})
    with pytest.raises(ValueError, match="could not convert"):
        VERIFIER.grade(broken, "\\boxed{about two}")


@pytest.mark.parametrize("task", ["n_queens", "countdown", "spiral_matrix"])
def test_an_answer_that_is_a_program_is_not_run(task: str, tmp_path: Path) -> None:
    question = _load(task, pool=3)[0]
    mark = tmp_path / "mark"
    for program in (f"open({str(mark)!r}, 'w')", f"__import__('os').mkdir({str(mark)!r})"):
        assert VERIFIER.grade(question, f"<answer>{program}</answer>").outcome == Outcome.WRONG
    assert not mark.exists()


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("", ""),
        (" \n ", ""),
        ("first\nlast ", "last"),
        ("<answer>1</answer> no <answer> 2\n3 </answer> end", "2\n3"),
        ("<answer>1</answer> \\boxed{2}", "2"),
        ("\\boxed{\\text{up left}}", "up left"),
        ("\\boxed{}\n5", ""),
    ],
)
def test_where_the_answer_is_looked_for(response: str, answer: str) -> None:
    assert extract_answer(response) == answer


def test_the_canaries_have_the_outcomes_they_claim() -> None:
    canaries = VERIFIER.canaries()
    assert {c.outcome for c in canaries} == {Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER}
    for canary in canaries:
        assert VERIFIER.grade(canary.question, canary.response).outcome == canary.outcome
