"""The vote that makes labels: its rules by hand, what is kept of it, and resuming its sampling."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sdzero.errors import UserError
from sdzero.method.labels import Vote, choose_labels, label_statistics, sample_texts, take_votes
from sdzero.questions.question import Question
from sdzero.rollout.engine import Sampling
from sdzero.verify.agreement import LabelledQuestion
from sdzero.verify.math import MathVerifier, final_answer
from sdzero.verify.verdict import Outcome, Verdict
from support import Bench, make_questions

Items = Sequence[tuple[Question, str]]
SAMPLING = Sampling(0.7, 16)


@pytest.fixture(scope="module")
def verifier() -> MathVerifier:
    return MathVerifier()


class Grading:
    """The verifier in this process; keeps what it was asked."""

    def __init__(self, verifier: MathVerifier) -> None:
        self._verifier = verifier
        self.calls: list[list[tuple[str, str]]] = []

    def __call__(self, items: Items) -> list[Verdict]:
        assert all(isinstance(question, LabelledQuestion) for question, _ in items)
        self.calls.append([(question.answer, response) for question, response in items])
        return [self._verifier.grade(question, response) for question, response in items]


@pytest.fixture
def grade(verifier: MathVerifier) -> Grading:
    return Grading(verifier)


def box(answer: str) -> str:
    return f"So \\boxed{{{answer}}}"


def vote(grade: Any, *texts: str | None) -> Vote:
    """The vote of one question, whose reference answer must not matter."""
    (found,) = take_votes([Question("q", "x?", "the reference")], [texts], final_answer, grade)
    return found


def groups(found: Vote) -> list[tuple[str, int]]:
    return [(group.answer, group.votes) for group in found.groups]


def test_the_most_frequent_answer_wins(grade: Grading) -> None:
    found = vote(grade, box("3"), box("4"), box("4"), box("5"))
    assert groups(found) == [("3", 1), ("4", 2), ("5", 1)]
    assert found.winner is not None
    assert (found.winner.answer, found.winner.response) == ("4", box("4"))
    assert found.agreement == 2 / 4
    assert not found.tied


def test_of_equally_frequent_answers_the_first_one_wins(grade: Grading) -> None:
    found = vote(grade, box("9"), box("7"), box("7"), box("9"), box("1"))
    assert found.winner is not None
    assert found.winner.answer == "9"
    assert found.tied
    assert found.agreement == 2 / 5


def test_the_verifier_decides_which_answers_are_the_same(grade: Grading) -> None:
    found = vote(grade, box("0.5"), box("2"), box("1/2"), box("\\frac{1}{2}"), box("2.0"))
    assert groups(found) == [("0.5", 3), ("2", 2)]


def test_equal_texts_and_spaces_need_no_verifier(grade: Grading) -> None:
    found = vote(grade, box("x + 1"), box("x  +  1"), box("x + 1"))
    assert groups(found) == [("x + 1", 3)]
    assert grade.calls == []


def test_an_answer_is_compared_with_one_answer_of_each_group(grade: Grading) -> None:
    vote(grade, box("0.5"), box("1/2"), box("2/4"), box("7"))
    assert grade.calls == [
        [("0.5", box("1/2"))],
        [("0.5", box("2/4"))],
        [("0.5", box("7"))],
    ]


def test_questions_are_voted_on_at_once_and_apart(grade: Grading) -> None:
    texts = [[box("1"), box("2"), box("2")], [box("2"), box("1"), box("1")]]
    found = take_votes(make_questions(2), texts, final_answer, grade)
    assert [one.question.id for one in found] == ["q0", "q1"]
    assert [groups(one) for one in found] == [[("1", 1), ("2", 2)], [("2", 1), ("1", 2)]]
    assert grade.calls == [[("1", box("2")), ("2", box("1"))]]


def test_who_does_not_vote_lowers_the_agreement(grade: Grading) -> None:
    """Truncated responses, those without an answer, and those whose box is empty or open."""
    found = vote(grade, None, "I do not know.", box(""), "\\boxed{4", box("4"))
    assert groups(found) == [("4", 1)]
    assert found.agreement == 1 / 5


def test_without_a_vote_there_is_no_label(grade: Grading) -> None:
    found = vote(grade, None, "I do not know.")
    assert (found.winner, found.agreement, found.tied) == (None, 0.0, False)
    (row,) = choose_labels([found], 0.0, grade)
    assert (row["label"], row["left_out"]) == (None, "no_votes")


def test_a_comparison_that_failed_is_counted_and_joins_nothing() -> None:
    outcomes = iter([Outcome.TIMEOUT, Outcome.ERROR])
    found = vote(lambda items: [Verdict(next(outcomes)) for _ in items], box("a"), box("b"))
    assert groups(found) == [("a", 1), ("b", 1)]
    assert found.failed == 1


@pytest.mark.parametrize(("least", "label"), [(0.0, "4"), (0.75, "4"), (0.76, None)])
def test_min_agreement(grade: Grading, least: float, label: str | None) -> None:
    found = vote(grade, box("4"), box("4"), box("4"), box("5"))
    (row,) = choose_labels([found], least, grade)
    assert row["label"] == label
    assert row["left_out"] == (None if label else "low_agreement")
    assert row["agreement"] == 0.75
    assert row["votes"] == [{"answer": "4", "votes": 3}, {"answer": "5", "votes": 1}]


def test_an_answer_that_the_verifier_cannot_read_is_no_label(grade: Grading) -> None:
    """To math-verify, a lone dollar sign is not even equal to itself."""
    found = vote(grade, box("$"), box("$"), box("4"))
    assert groups(found) == [("$", 2), ("4", 1)]
    (row,) = choose_labels([found], 0.0, grade)
    assert (row["label"], row["left_out"]) == (None, "unreadable")


def test_no_row_tells_the_reference(grade: Grading) -> None:
    (row,) = choose_labels([vote(grade, box("4"), box("5"))], 0.0, grade)
    assert "the reference" not in str(row)


def test_the_statistics(grade: Grading) -> None:
    votes = take_votes(
        make_questions(4),
        [
            [box("1"), box("1"), box("1"), box("1")],
            [box("1"), box("2"), None, "no"],
            [box("1"), box("1"), box("2"), box("2")],
            [None, None, None, None],
        ],
        final_answer,
        grade,
    )
    found = label_statistics(choose_labels(votes, 0.5, grade), failed=3)
    assert found == {
        "questions": 4,
        "labelled": 2,
        "left_out": {"no_votes": 1, "low_agreement": 1, "unreadable": 0},
        "tied": 1,
        "responses": 16,
        "did_not_vote": 6,
        "failed_comparisons": 3,
        "agreement": 0.75,
        "agreement_by_tenth": [0, 0, 0, 0, 0, 1, 0, 0, 0, 1],
    }


# ---- sampling ----


def sampled(bench: Bench, count: int = 3, samples: int = 2) -> list[list[str | None]]:
    return sample_texts(
        make_questions(count),
        samples,
        SAMPLING,
        bench.sampler,
        seed=1,
        folder="labels/responses",
        stage="labels",
        batch_size=4,
        progress=lambda *counts: None,
    )


def test_responses_are_sampled_for_each_question_kept_and_counted(tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda prompt, asked: f"{asked}..." if "question 1" in prompt else f"is {asked}")
    assert sampled(bench) == [["is 0", "is 1"], [None, None], ["is 0", "is 1"]]
    assert bench.engine.batches == [4, 2]
    assert bench.grade.texts == []
    counted = bench.ledger.by_stage()
    assert set(counted) == {"labels"}
    tokens = sum(
        len(row["token_ids"])
        for name in ("00000", "00001")
        for row in bench.run.read_jsonl(f"labels/responses/batch-{name}.jsonl")
    )
    assert (counted["labels"]["responses"], counted["labels"]["sampled_tokens"]) == (6, tokens)
    assert len({request.seed for request in bench.engine.requests}) == 6


def test_sampling_goes_on_after_a_kill(tmp_path: Path) -> None:
    def killed_at_the_second_batch(prompt: str, asked: int) -> str:
        if "question 2" in prompt:
            raise KeyboardInterrupt
        return f"is {asked}"

    with pytest.raises(KeyboardInterrupt):
        sampled(Bench(tmp_path, killed_at_the_second_batch))
    resumed = Bench(tmp_path, lambda prompt, asked: f"is {asked}")
    assert sampled(resumed) == [["is 0", "is 1"]] * 3
    assert resumed.engine.batches == [2]
    assert resumed.ledger.by_stage()["labels"]["responses"] == 6
    assert sampled(Bench(tmp_path, killed_at_the_second_batch)) == [["is 0", "is 1"]] * 3


def test_stored_responses_to_other_questions_are_refused(tmp_path: Path) -> None:
    sampled(Bench(tmp_path, lambda prompt, asked: "is"), count=3)
    with pytest.raises(UserError, match="holds other responses than this run asks for"):
        sampled(Bench(tmp_path, lambda prompt, asked: "is"), count=2, samples=3)


def test_an_over_long_prompt_is_told_before_anything_is_sampled(tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda prompt, asked: "is")
    bench.engine.max_context = 10
    with pytest.raises(UserError, match="do not fit"):
        sampled(bench)
    assert bench.engine.requests == []
