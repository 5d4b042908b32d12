"""Phase 1a on a scripted model: which responses are revised, which traces are kept, what is counted."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdzero.errors import UserError
from sdzero.method.collect import Collection, collect, initial_draws, strip_opening
from sdzero.questions.question import Question
from support import PHRASES, Bench, collect_settings, is_revision, make_questions

LONG = "no " + "1234567890" * 7
"""More than 70 tokens (digits are tokens of their own), with no tail that repeats often enough to trim."""


def run_collect(bench: Bench, questions: list[Question], seed: int = 1, **changes: Any) -> Collection:
    return collect(questions, bench.sampler, collect_settings(**changes), seed=seed)


def scripted(initial: dict[str, str], revised: str = "right again") -> Callable[[str, int], str]:
    """Initial responses by question text; every revision is the same."""

    def script(prompt: str, asked: int) -> str:
        if is_revision(prompt):
            return revised
        return next(answer for text, answer in initial.items() if text in prompt)

    return script


def test_both_branches_are_collected_with_the_phrase_of_their_reward(tmp_path: Path) -> None:
    bench = Bench(tmp_path, scripted({"question 0": "right", "question 1": "no"}))
    found = run_collect(bench, make_questions(2))
    assert {trace.question_id: trace.reward for trace in found.traces} == {"q0": 1, "q1": 0}
    texts = [bench.tokenizer.decode(request.prompt_ids) for request in bench.engine.requests[2:]]
    assert [PHRASES.correct in text for text in texts] == [True, False]
    assert [PHRASES.wrong in text for text in texts] == [False, True]
    for trace, request in zip(found.traces, bench.engine.requests[2:], strict=True):
        assert trace.revised_ids == bench.ids("right again")
        assert trace.initial_ids == bench.ids("right" if trace.reward else "no")
        assert request.prompt_ids == (
            *trace.prompt_ids,
            *trace.initial_ids[:-1],
            *bench.roles.control_phrase_ids(trace.reward),
        )


def test_revise_correct_off_leaves_correct_responses_out(tmp_path: Path) -> None:
    bench = Bench(tmp_path, scripted({"question 0": "right", "question 1": "no"}))
    found = run_collect(bench, make_questions(2), revise_correct=False)
    assert [trace.question_id for trace in found.traces] == ["q1"]
    assert found.statistics["revised"] == 1


def test_truncated_and_ungradable_responses_are_never_revised(tmp_path: Path) -> None:
    answers = {"question 0": "cut...", "question 1": "broken", "question 2": "no"}
    bench = Bench(tmp_path, scripted(answers))
    found = run_collect(bench, make_questions(3))
    assert [trace.question_id for trace in found.traces] == ["q2"]
    assert found.statistics["initial_verdicts"] == {"error": 1, "truncated": 1, "wrong": 1}
    assert found.statistics["revised"] == 1


@pytest.mark.parametrize("revised", ["still no", "right but cut...", "right but broken"])
def test_only_verified_revisions_are_kept(tmp_path: Path, revised: str) -> None:
    def script(prompt: str, asked: int) -> str:
        if is_revision(prompt):
            return revised if "question 0" in prompt else "right"
        return "no"

    found = run_collect(Bench(tmp_path, script), make_questions(2))
    assert [trace.question_id for trace in found.traces] == ["q1"]


def test_a_trimmed_response_is_graded_as_trimmed(tmp_path: Path) -> None:
    """What the verifier reads, what is kept and what the Reviser reads are all the trimmed response."""
    looping = "no" + "7" * 60  # digits are tokens of their own
    bench = Bench(tmp_path, scripted({"question": looping}))
    found = run_collect(bench, make_questions(1), max_new_tokens=200)
    assert found.statistics["trimmed"] == 1
    (trace,) = found.traces
    assert len(trace.initial_ids) < len(bench.ids(looping))
    assert trace.initial_ids[-1] == bench.roles.end_token_id
    assert bench.grade.texts[0] == bench.roles.decode(trace.initial_ids)
    context = (*trace.prompt_ids, *trace.initial_ids[:-1], *bench.roles.control_phrase_ids(0))
    assert bench.engine.requests[1].prompt_ids == context
    untouched = Bench(tmp_path / "off", scripted({"question": looping}))
    (trace,) = run_collect(untouched, make_questions(1), max_new_tokens=200, trim_repeats=False).traces
    assert trace.initial_ids == untouched.ids(looping)


def test_openings_are_stripped_on_token_ids_and_graded_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, scripted({"question": "no"}, "Sorry! right is 4"))
    found = run_collect(bench, make_questions(1), strip_openings=["Sorry!"])
    (trace,) = found.traces
    whole = bench.ids("Sorry! right is 4")
    assert trace.revised_ids == whole[-len(trace.revised_ids) :], "a tail of the sampled ids, not new ids"
    assert bench.roles.decode(trace.revised_ids) == "right is 4"
    assert trace.revised_ids[-1] == bench.roles.end_token_id
    assert bench.grade.texts[-1] == "right is 4"
    assert found.statistics["stripped"] == 1


def test_an_opening_that_carries_the_answer_is_left(tmp_path: Path) -> None:
    bench = Bench(tmp_path, scripted({"question": "no"}, "right! yes"))
    found = run_collect(bench, make_questions(1), strip_openings=["right!"])
    assert found.traces[0].revised_ids == bench.ids("right! yes")
    assert found.statistics["stripped"] == 0


def test_an_opening_that_ends_within_a_token_is_left(tmp_path: Path) -> None:
    bench = Bench(tmp_path, scripted({}))
    inside = next(
        text
        for text in (bench.tokenizer.decode([i]) for i in range(3, len(bench.tokenizer)))
        if len(text) > 2 and text.isprintable() and text.isascii() and text.strip() == text
    )
    assert len(bench.tokenizer.encode(inside)) == 1
    assert strip_opening(bench.ids(f"{inside}\nright"), [inside[:1]], bench.sampler) is None
    assert strip_opening(bench.ids("right"), ["Sorry"], bench.sampler) is None


def test_initial_responses_go_round_the_questions(tmp_path: Path) -> None:
    bench = Bench(tmp_path, scripted({}))
    settings = collect_settings(initial_per_question=2, target_initial=5)
    draws = initial_draws(make_questions(3), bench.sampler, settings, seed=1, round_=1)
    assert [(d.question.id, d.index) for d in draws] == [
        ("q0", 0),
        ("q1", 0),
        ("q2", 0),
        ("q0", 1),
        ("q1", 1),
    ]
    assert len({d.seed for d in draws}) == 5
    other = initial_draws(make_questions(3), bench.sampler, settings, seed=1, round_=2)
    assert not {d.seed for d in draws} & {d.seed for d in other}


def test_each_initial_response_gets_its_own_revisions(tmp_path: Path) -> None:
    bench = Bench(tmp_path, scripted({"question 0": "no", "question 1": "cut..."}))
    found = run_collect(bench, make_questions(2), initial_per_question=2, revisions_per_initial=3)
    assert found.statistics["initial"] == 4
    assert found.statistics["revised"] == 2 * 3
    assert Counter(trace.question_id for trace in found.traces) == {"q0": 6}
    assert len({request.seed for request in bench.engine.requests}) == 4 + 6


def test_the_traces_kept_are_a_fixed_random_subset(tmp_path: Path) -> None:
    kept = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        bench = Bench(tmp_path / name, scripted({"question": "no"}))
        found = run_collect(bench, make_questions(12), seed=seed, target_traces=5)
        assert len(found.traces) == found.statistics["kept"] == 5
        assert found.statistics["verified"] == 12
        kept.append([trace.question_id for trace in found.traces])
    assert len(set(kept[0])) == 5
    assert kept[0] == kept[1]
    assert kept[0] != kept[2]


def test_sampling_stops_at_the_target(tmp_path: Path) -> None:
    bench = Bench(tmp_path, scripted({"question": "no"}))
    found = run_collect(bench, make_questions(12), target_traces=5, stop_at_target=True, batch_size=2)
    assert found.statistics["revised"] == 6, "three batches of two hold five"
    assert len(found.traces) == 5


def test_over_long_contexts_are_dropped_and_counted(tmp_path: Path) -> None:
    bench = Bench(tmp_path, scripted({"question 0": LONG, "question 1": "no"}))
    found = run_collect(bench, make_questions(2), max_context=100, max_new_tokens=32)
    assert [trace.question_id for trace in found.traces] == ["q1"]
    assert found.statistics["overlong"] == 1
    assert len(bench.engine.requests) == 3


def test_over_long_contexts_can_be_errors(tmp_path: Path) -> None:
    bench = Bench(tmp_path, scripted({"question 0": LONG, "question 1": "no"}))
    with pytest.raises(UserError, match="question q0") as error:
        run_collect(bench, make_questions(2), max_context=100, max_new_tokens=32, overlong="error")
    assert error.value.where == "collect.max_context"
    assert not any(is_revision(bench.tokenizer.decode(r.prompt_ids)) for r in bench.engine.requests)


def test_the_statistics_add_up(tmp_path: Path) -> None:
    words = ["right", "right", "no", "no", "no", "cut..."]
    answers = {f"question {number}?": word for number, word in enumerate(words)}

    def script(prompt: str, asked: int) -> str:
        if not is_revision(prompt):
            return next(answer for text, answer in answers.items() if text in prompt)
        return {"question 0": "right", "question 1": "no", "question 2": "right", "question 3": "broken"}.get(
            prompt[prompt.index("question ") :][:10], "no"
        )

    bench = Bench(tmp_path, script)
    found = run_collect(bench, make_questions(6))
    shown = found.statistics
    assert shown["initial"] == sum(shown["initial_verdicts"].values()) == 6
    assert shown["revised"] == sum(shown["revised_verdicts"].values()) == 5
    assert shown["revised_right_after_right"] == {"of": 2, "share": 0.5}
    # Question 3's revision could not be graded: it is out of the denominator.
    assert shown["revised_right_after_wrong"] == {"of": 2, "share": 0.5}
    assert shown["verified"] == shown["kept"] == len(found.traces) == 2
    totals = bench.ledger.totals()
    assert totals["responses"] == 11
    assert totals["sampled_tokens"] == shown["initial_tokens"] + shown["revised_tokens"]


def test_no_trace_is_an_error_that_says_why_and_keeps_everything(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "wrong", scripted({"question": "no"}, "still no"))
    with pytest.raises(UserError, match=r"no revision was verified correct.*'wrong': 3"):
        run_collect(bench, make_questions(3))
    assert len(list((tmp_path / "wrong").rglob("batch-*.jsonl"))) == 4
    kept = json.loads((tmp_path / "wrong/collect/statistics.json").read_text())
    assert kept["revised_right_after_wrong"] == {"of": 3, "share": 0.0}

    bench = Bench(tmp_path / "right", scripted({"question": "right"}))
    with pytest.raises(UserError, match=r"no initial response could be revised.*'correct': 3"):
        run_collect(bench, make_questions(3), revise_correct=False)


def test_collecting_again_gives_the_same_traces_without_sampling(tmp_path: Path) -> None:
    first = Bench(tmp_path, scripted({"question": "no"}))
    found = run_collect(first, make_questions(5))
    again = Bench(tmp_path, scripted({"question": "never asked"}))
    assert run_collect(again, make_questions(5)) == found
    assert again.engine.requests == []
    with pytest.raises(UserError, match="other responses"):
        run_collect(again, make_questions(5), seed=2)
