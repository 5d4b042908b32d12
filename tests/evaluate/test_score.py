"""Scores worked by hand: avg@k, its error, pass@k, lengths, and generate-then-revise."""

from pathlib import Path
from typing import Any

import pytest

from sdzero.errors import UserError
from sdzero.evaluate.score import evaluate
from sdzero.recipe import EvaluateSettings
from support import Bench, is_revision, make_questions, read_jsonl


def score(bench: Bench, count: int, k: int, **keywords: Any) -> dict[str, Any]:
    settings = EvaluateSettings(k=k, max_new_tokens=32, batch_size=3)
    return evaluate(make_questions(count), bench.sampler, settings, seed=1, folder="evaluate/m", **keywords)


def answering(first: dict[str, list[str]], revised: dict[str, str] | None = None) -> Any:
    """The k responses of each question, and its revision."""

    def script(prompt: str, asked: int) -> str:
        name = next(name for name in first if f"question {name}?" in prompt)
        if is_revision(prompt):
            return (revised or {})[name]
        return first[name][asked]

    return script


def test_avg_error_and_pass_at_k(tmp_path: Path) -> None:
    answers = {"0": ["right", "no", "no", "no"], "1": ["right"] * 4, "2": ["no"] * 4}
    found = score(Bench(tmp_path, answering(answers)), 3, 4, revise=False)
    evaluation = found["evaluation"]
    assert found["per_question"] == {"q0": [1, 0, 0, 0], "q1": [1, 1, 1, 1], "q2": [0, 0, 0, 0]}
    assert evaluation["avg"] == pytest.approx((0.25 + 1 + 0) / 3)
    # Means 1/4, 1, 0 about 5/12: squares (4 + 49 + 25)/144, over 2 degrees of freedom, over 3 questions.
    assert evaluation["se"] == pytest.approx((78 / 144 / 2 / 3) ** 0.5)
    assert evaluation["pass_at_k"] == pytest.approx(2 / 3)
    assert evaluation["questions"] == 3
    assert evaluation["k"] == 4
    assert evaluation["verdicts"] == {"correct": 5, "wrong": 7}
    assert found["revision"] is None


def test_responses_that_could_not_be_graded_are_out_of_the_denominators(tmp_path: Path) -> None:
    answers = {"0": ["right", "broken"], "1": ["no", "no"], "2": ["broken", "broken"]}
    found = score(Bench(tmp_path, answering(answers)), 3, 2, revise=False)
    assert found["per_question"] == {"q0": [1], "q1": [0, 0]}
    assert found["evaluation"]["avg"] == pytest.approx(0.5)
    assert found["evaluation"]["questions"] == 2
    assert found["evaluation"]["pass_at_k"] == pytest.approx(0.5)
    assert found["evaluation"]["verdicts"] == {"correct": 1, "error": 3, "wrong": 2}


def test_truncated_responses_count_as_wrong_and_as_long_as_they_are(tmp_path: Path) -> None:
    bench = Bench(tmp_path, answering({"0": ["right"], "1": ["right cut..."]}))
    found = score(bench, 2, 1, revise=False)["evaluation"]
    assert found["avg"] == 0.5
    assert found["verdicts"] == {"correct": 1, "truncated": 1}
    lengths = [len(bench.ids("right")), len(bench.ids("right cut...")) - 1]
    assert found["mean_tokens"] == sum(lengths) / 2


def test_generate_then_revise(tmp_path: Path) -> None:
    first = {"0": ["right", "no"], "1": ["right", "no"], "2": ["no", "no"], "3": ["no", "right"]}
    first |= {"4": ["no", "no"], "5": ["broken", "no"], "6": ["no", "no"]}
    revised = {"0": "right", "1": "no", "2": "right", "3": "no", "4": "no", "6": "broken"}
    bench = Bench(tmp_path, answering(first, revised))
    found = score(bench, 7, 2)["revision"]
    # Question 5's first attempt and question 6's revision could not be graded; 0-4 are left.
    assert found["first"] == pytest.approx(2 / 5)
    assert found["revised"] == pytest.approx(2 / 5)
    assert found["correction_rate"] == pytest.approx(1 / 3)
    assert found["regression_rate"] == pytest.approx(1 / 2)
    size = {word: len(bench.ids(word)) for word in ("right", "no")}
    assert found["first_tokens"] == pytest.approx((2 * size["right"] + 3 * size["no"]) / 5)
    assert found["revised_tokens"] == pytest.approx((2 * size["right"] + 3 * size["no"]) / 5)
    revisions = [r for r in bench.engine.requests if is_revision(bench.tokenizer.decode(r.prompt_ids))]
    assert len(revisions) == 6, "each question's first response is revised once"


def test_nothing_wrong_and_nothing_right_have_rates_of_zero(tmp_path: Path) -> None:
    right = score(Bench(tmp_path / "a", answering({"0": ["right"]}, {"0": "right"})), 1, 1)["revision"]
    assert (right["correction_rate"], right["regression_rate"]) == (0.0, 0.0)
    wrong = score(Bench(tmp_path / "b", answering({"0": ["no"]}, {"0": "no"})), 1, 1)["revision"]
    assert (wrong["correction_rate"], wrong["regression_rate"]) == (0.0, 0.0)


def test_a_verifier_that_fails_on_everything_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not one response could be graded"):
        score(Bench(tmp_path / "a", answering({"0": ["broken"]})), 1, 1)
    with pytest.raises(UserError, match="not one revision could be graded"):
        score(Bench(tmp_path / "b", answering({"0": ["no"]}, {"0": "broken"})), 1, 1)
    with pytest.raises(UserError, match="not one revision could be graded"):
        score(Bench(tmp_path / "c", answering({"0": ["broken", "no"]})), 1, 2)


def test_no_questions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no questions to evaluate on"):
        score(Bench(tmp_path, answering({})), 0, 1)


def test_batches_are_kept_and_counted_under_the_stage(tmp_path: Path) -> None:
    answers = {"0": ["right", "no"], "1": ["no", "no"]}
    bench = Bench(tmp_path, answering(answers, {"0": "right", "1": "right"}))
    found = score(bench, 2, 2, stage="tuning")
    assert len(read_jsonl(tmp_path / "evaluate/m/responses/batch-00000.jsonl")) == 3
    assert bench.ledger.by_stage()["tuning"]["responses"] == 4 + 2
    again = Bench(tmp_path, answering({}))
    assert score(again, 2, 2, stage="tuning") == found
    assert again.engine.requests == []
