"""Sampling, grading, keeping: ids as sampled, batches that are never sampled twice, counts that hold."""

import json
from pathlib import Path

import pytest

from sdzero.errors import UserError
from sdzero.method.graded import Draw, Graded
from sdzero.rollout.engine import Sampling
from sdzero.verify.verdict import Outcome
from support import Bench, make_questions, read_jsonl

SAMPLING = Sampling(temperature=0.7, max_new_tokens=32)
FIRST = "out/batch-00000.jsonl"


def make_draws(bench: Bench, count: int, index: int = 0) -> list[Draw]:
    return [
        Draw(q, tuple(bench.roles.generator_prompt(q)), seed=number, index=index)
        for number, q in enumerate(make_questions(count))
    ]


def sample(bench: Bench, draws: list[Draw], trim: bool = False) -> list[Graded]:
    return bench.sampler.batches(draws, SAMPLING, folder="out", stage="collect", batch_size=2, trim=trim)


def test_what_is_kept_is_what_was_sampled(tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda prompt, asked: "right" if "question 0" in prompt else "no")
    draws = make_draws(bench, 2)
    graded = sample(bench, draws)
    assert [g.token_ids for g in graded] == [bench.ids("right"), bench.ids("no")]
    assert [g.reward for g in graded] == [1, 0]
    assert [g.prompt_ids for g in graded] == [draw.prompt_ids for draw in draws]
    assert [g.sampled_tokens for g in graded] == [len(bench.ids("right")), len(bench.ids("no"))]
    assert [g.weight_version for g in graded] == [bench.engine.weight_version] * 2
    assert bench.grade.texts == ["right", "no"], "the verifier reads text without the end token"


def test_a_response_without_an_end_is_truncated_and_not_graded(tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda prompt, asked: "right so far...")
    (graded,) = sample(bench, make_draws(bench, 1))
    assert graded.truncated
    assert graded.reward == 0
    assert graded.verdict.counts
    assert bench.grade.texts == []
    assert bench.roles.end_token_id not in graded.token_ids


def test_trimming_comes_before_grading(tmp_path: Path) -> None:
    tail = "7" * 60  # digits are tokens of their own
    bench = Bench(tmp_path, lambda prompt, asked: f"right{tail}")
    (graded,) = sample(bench, make_draws(bench, 1), trim=True)
    assert graded.trimmed
    assert graded.sampled_tokens == len(bench.ids(f"right{tail}")) > len(graded.token_ids)
    kept = len(graded.token_ids) - 1
    assert graded.token_ids == (*bench.ids(f"right{tail}")[:kept], bench.roles.end_token_id)
    assert bench.grade.texts == [bench.roles.decode(graded.token_ids)]


def test_a_finished_batch_is_read_and_not_sampled_again(tmp_path: Path) -> None:
    first = Bench(tmp_path, lambda prompt, asked: "right")
    draws = make_draws(first, 5)
    graded = sample(first, draws)
    assert first.engine.batches == [2, 2, 1]
    (tmp_path / "out/batch-00001.jsonl").unlink()
    again = Bench(tmp_path, lambda prompt, asked: "right")
    assert sample(again, draws) == graded
    assert again.engine.batches == [2], "only the batch that is missing is sampled"
    assert again.ledger.totals()["responses"] == 5


def test_a_count_is_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between counting a batch and keeping it, the run counts the batch once."""
    bench = Bench(tmp_path, lambda prompt, asked: "right")
    draws = make_draws(bench, 2)

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bench.run, "write_jsonl", killed)
        with pytest.raises(KeyboardInterrupt):
            sample(bench, draws)
    again = Bench(tmp_path, lambda prompt, asked: "right")
    sample(again, draws)
    assert again.ledger.totals()["responses"] == 2
    assert Bench(tmp_path, lambda prompt, asked: "right").ledger.totals()["responses"] == 2


def test_a_stored_batch_of_other_draws_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda prompt, asked: "right")
    draws = make_draws(bench, 2)
    sample(bench, draws)
    kept = (tmp_path / FIRST).read_bytes()
    for others in (draws[::-1], make_draws(bench, 2, index=1), draws[:1]):
        with pytest.raises(UserError, match="a stored batch holds") as refused:
            sample(bench, others)
        assert str(tmp_path / FIRST) in str(refused.value)
    assert (tmp_path / FIRST).read_bytes() == kept


def test_a_kept_batch_says_how_each_response_was_graded(tmp_path: Path) -> None:
    answers = {"question 0": "right", "question 1": "broken", "question 2": "cut..."}
    bench = Bench(tmp_path, lambda prompt, asked: next(a for q, a in answers.items() if q in prompt))
    graded = bench.sampler.batch(make_draws(bench, 3), SAMPLING, FIRST, "collect")
    rows = read_jsonl(tmp_path / FIRST)
    assert [row["outcome"] for row in rows] == ["correct", "error", "truncated"]
    assert [row["question"] for row in rows] == ["q0", "q1", "q2"]
    assert [tuple(row["token_ids"]) for row in rows] == [g.token_ids for g in graded]
    assert [g.verdict.counts for g in graded] == [True, False, True]
    assert graded[1].verdict.outcome is Outcome.ERROR


def test_sampling_stops_after_the_batch_that_is_enough(tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda prompt, asked: "right")
    graded = bench.sampler.batches(
        make_draws(bench, 7),
        SAMPLING,
        folder="out",
        stage="collect",
        batch_size=2,
        enough=lambda so_far: len(so_far) >= 3,
    )
    assert len(graded) == 4
    assert bench.engine.batches == [2, 2]


def test_an_over_long_prompt_is_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda prompt, asked: "right")
    draws = make_draws(bench, 4)
    bench.engine.max_context = len(draws[0].prompt_ids) + SAMPLING.max_new_tokens
    sample(bench, draws)
    long = Draw(draws[3].question, (*draws[3].prompt_ids, 5), seed=9)
    other = Bench(tmp_path / "other", lambda prompt, asked: "right")
    other.engine.max_context = bench.engine.max_context
    with pytest.raises(UserError, match="do not fit the model's context") as refused:
        sample(other, [*draws[:3], long])
    assert refused.value.where == "question q3"
    assert other.engine.requests == []


def test_seeds_reach_the_engine(tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda prompt, asked: "right")
    sample(bench, make_draws(bench, 3))
    assert [request.seed for request in bench.engine.requests] == [0, 1, 2]
    assert json.loads((tmp_path / FIRST).read_text().splitlines()[1])["seed"] == 1
