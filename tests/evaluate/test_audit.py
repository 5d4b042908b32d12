"""Audits: some verdicts of every kind, read from the stored batches, for a person to tick off."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sdzero.cli import app
from sdzero.errors import UserError
from sdzero.evaluate.audit import Stored, audit, choose, graded_part, visible
from sdzero.evaluate.score import evaluate
from sdzero.questions.programs import ProgramTask, StdioCase, StdioTests, metadata_of
from sdzero.questions.question import Question
from sdzero.recipe import EvaluateSettings
from sdzero.run_context import RunContext
from sdzero.verify.verdict import Outcome, Verdict
from support import Bench, make_questions, micro_recipe, read_jsonl

SETTINGS = EvaluateSettings(k=3, max_new_tokens=32, batch_size=4)


def answers(prompt: str, asked: int) -> str:
    """Question 0 is right once and then broken, question 1 right, the others wrong; the third is cut."""
    if "question 0?" in prompt:
        return "right" if asked == 0 else "broken"
    if "question 1?" in prompt:
        return "so this is right"
    return "wrong..." if asked == 2 else "wrong"


def scored(folder: Path, script: Callable[[str, int], str] = answers) -> RunContext:
    """A run in which `base` was scored on four questions, as far as an audit looks at one."""
    bench = Bench(folder, script)
    questions = make_questions(4)
    evaluate(questions, bench.sampler, SETTINGS, seed=1, folder="evaluate/base", revise=False)
    settings = SimpleNamespace(
        seed=1, verifier=SimpleNamespace(name="math"), evaluate=SimpleNamespace(on="test")
    )
    context = SimpleNamespace(
        run=bench.run, roles=bench.roles, sets=SimpleNamespace(test=questions), recipe=settings
    )
    return cast("RunContext", context)


def stored(counts: dict[Outcome, list[int]]) -> list[Stored]:
    """For each outcome, how many responses each of its questions has."""
    return [
        Stored(Question(f"q{question}", "?", ""), index, f"{outcome} {question} {index}", Verdict(outcome))
        for outcome, own in counts.items()
        for question, count in enumerate(own)
        for index in range(count)
    ]


def kinds(chosen: list[Stored]) -> dict[Outcome, int]:
    return dict(Counter(one.verdict.outcome for one in chosen))


def test_each_kind_has_its_share_and_each_question_its_turn() -> None:
    everything = stored(
        {Outcome.CORRECT: [5, 5, 5], Outcome.WRONG: [1] * 30, Outcome.TIMEOUT: [1], Outcome.MEMORY: [2]}
    )
    chosen = choose(everything, 15, seed=0)
    assert kinds(chosen) == {Outcome.CORRECT: 6, Outcome.WRONG: 6, Outcome.TIMEOUT: 1, Outcome.MEMORY: 2}
    right = Counter(one.question.id for one in chosen if one.verdict.outcome is Outcome.CORRECT)
    assert right == {"q0": 2, "q1": 2, "q2": 2}
    assert len({one.question.id for one in chosen if one.verdict.outcome is Outcome.WRONG}) == 6
    assert [one.verdict.outcome for one in chosen] == sorted(
        (one.verdict.outcome for one in chosen), key=list(Outcome).index
    )
    assert kinds(choose(everything, 1, seed=0)) == dict.fromkeys(kinds(everything), 1)


def test_the_sample_depends_on_the_seed_alone() -> None:
    everything = stored({Outcome.CORRECT: [4] * 10, Outcome.WRONG: [4] * 10})
    first = choose(everything, 8, seed=0)
    assert choose(list(reversed(everything)), 8, seed=0) == first
    assert any(choose(everything, 8, seed=seed) != first for seed in (1, 2))


@given(
    st.dictionaries(
        st.sampled_from(Outcome), st.lists(st.integers(1, 4), min_size=1, max_size=5), min_size=1
    ),
    st.integers(1, 40),
)
def test_a_sample_is_as_even_as_there_are_responses(counts: dict[Outcome, list[int]], count: int) -> None:
    everything = stored(counts)
    chosen = choose(everything, count, seed=3)
    assert len(chosen) == min(max(count, len(counts)), len(everything))
    assert len({(one.question.id, one.index, one.verdict.outcome) for one in chosen}) == len(chosen)
    shares = kinds(chosen)
    most = max(shares.values())
    for outcome, own in counts.items():
        # Whoever has fewer than another, by more than the turn that was not finished, has given all.
        assert shares[outcome] >= most - 1 or shares[outcome] == sum(own)


def test_an_audit_of_stored_batches(tmp_path: Path) -> None:
    context = scored(tmp_path)
    text = audit(context, "base", 6)
    head = "Audit of base: 12 responses to 4 questions; shown are 2 of 4 correct, 2 of 4 wrong, "
    assert text.startswith(head + "1 of 2 truncated, 1 of 2 error.")
    assert text.count("\n[ ] ") == 6
    assert "[ ] 1. correct\n    question q" in text
    assert "| question 1?" in text
    assert "| so this is right" in text
    assert "graded: nothing; the length limit cut the response" in text
    assert (tmp_path / "evaluate/base/audit.txt").read_text() == text
    rows = read_jsonl(tmp_path / "evaluate/base/audit.jsonl")
    assert [row["outcome"] for row in rows] == ["correct"] * 2 + ["wrong"] * 2 + ["truncated", "error"]
    assert {row["number"]: row["text"] for row in rows if row["question"] == "q1"}.popitem()[
        1
    ] == "question 1?"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert audit(context, "base", 6) == text
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_ticks_stay_and_are_not_overwritten(tmp_path: Path) -> None:
    context, file = scored(tmp_path), tmp_path / "evaluate/base/audit.txt"
    text = audit(context, "base", 4)
    ticked = text.replace("[ ] 2.", "[x] 2.").replace("[ ] 3.", "[?] 3.")
    file.write_text(ticked)
    assert audit(context, "base", 4) == text
    assert file.read_text() == ticked
    with pytest.raises(UserError, match="ticked off would be lost") as caught:
        audit(context, "base", 6)
    assert str(file) in str(caught.value)
    assert file.read_text() == ticked
    file.write_text(text)
    assert "[ ] 6." in audit(context, "base", 6), "without a tick nothing would be lost"


def test_faults_are_told(tmp_path: Path) -> None:
    context = scored(tmp_path)
    with pytest.raises(UserError, match="no model was scored under this name"):
        audit(context, "sdzero", 5)
    with pytest.raises(UserError, match="0 verdicts cannot be shown"):
        audit(context, "base", 0)
    context.sets.test.pop()
    with pytest.raises(UserError, match="a stored batch holds a response to question q3"):
        audit(context, "base", 5)


def test_long_and_strange_texts(tmp_path: Path) -> None:
    def long_and_strange(prompt: str, asked: int) -> str:
        return "first " + "x" * 3000 + "\x1b[2J" + " right" if "question 0?" in prompt else "right"

    text = audit(scored(tmp_path, long_and_strange), "base", 20)
    assert "\x1b" not in text
    assert r"\x1b[2J" in text
    assert "first" not in text
    assert "characters before ...]" in text
    rows = read_jsonl(tmp_path / "evaluate/base/audit.jsonl")
    (whole, *_) = [row["response"] for row in rows if row["question"] == "q0"]
    assert whole.startswith("first xxx")
    assert visible("a\tb\u202e\x9b\u200b\xad\n") == "a\tb\\u202e\\x9b\\u200b\\xad\\n"


def program_question() -> Question:
    cases = [StdioCase(input="1\n", output="2\n"), StdioCase(input="21\n", output="42\n")]
    task = ProgramTask(language="python", tests=StdioTests(cases=cases, checker="print(1)"))
    return Question("p", "Double it.", "sha256:0", kind="python", metadata=metadata_of(task))


def test_a_program_is_shown_with_the_test_that_it_failed(tmp_path: Path) -> None:
    context = scored(tmp_path)
    context.recipe.verifier.name = "code"
    context.sets.test[:] = [program_question()]
    response = "First:\n```python\nprint(1)\n```\nNo:\n```python\nprint(2)\n```\n"
    ids = list(context.roles._tokenizer.encode(response, add_special_tokens=False))
    row = {"question": "p", "index": 0, "token_ids": ids, "outcome": "wrong", "detail": "test 2: 2, not 42"}
    context.run.write_jsonl("evaluate/code/responses/batch-00000.jsonl", [row])
    text = audit(context, "code", 1)
    assert "[ ] 1. wrong: test 2: 2, not 42\n    question p (python), response 0" in text
    assert "reference: 2 tests of input and output and a checker" in text
    assert "test 2 reads:\n    | 21\n  and should be answered with:\n    | 42\n" in text
    assert text.endswith("graded:\n    | print(2)\n")


@pytest.mark.parametrize(
    ("verifier", "outcome", "text", "part"),
    [
        ("code", Outcome.WRONG, "```py\nf()\n```", "f()\n"),
        ("code", Outcome.NO_ANSWER, "no program", None),
        ("math", Outcome.WRONG, "so \\boxed{3} or \\boxed{4}", "4"),
        ("math", Outcome.NO_ANSWER, "no box", None),
        ("math", Outcome.TRUNCATED, "\\boxed{4} and", None),
        ("puzzle", Outcome.CORRECT, "let me see\nblue", "blue"),
        ("my_module:f", Outcome.CORRECT, "\\boxed{4}", None),
    ],
)
def test_what_was_graded(verifier: str, outcome: Outcome, text: str, part: str | None) -> None:
    assert graded_part(verifier, Stored(program_question(), 0, text, Verdict(outcome))) == part


def test_a_finished_run_is_audited_without_sampling(micro_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(micro_run, tmp_path / "run"))
    arguments = ["evaluate", str(micro_recipe(tmp_path)), "-o", str(folder), "--audit", "2"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    for name in ("base", "srt", "rft", "sdzero"):
        assert (folder / f"evaluate/{name}/audit.txt").read_text().rstrip() in shown.stdout
        assert len(read_jsonl(folder / f"evaluate/{name}/audit.jsonl")) >= 2
    assert (folder / "ledger.jsonl").read_bytes() == (micro_run / "ledger.jsonl").read_bytes()


def test_one_model_is_scored_first_if_it_was_not(tmp_path: Path) -> None:
    recipe, folder = micro_recipe(tmp_path), tmp_path / "run"
    arguments = ["evaluate", str(recipe), "-o", str(folder), "--model", "tiny", "--name", "own"]
    shown = CliRunner().invoke(app, [*arguments, "--audit", "1"])
    assert shown.exit_code == 0, shown.output
    assert "Audit of own: 12 responses to 6 questions" in shown.stdout
    assert "own: avg@2" in shown.stdout
    score = json.loads((folder / "evaluate/own.json").read_text())["evaluation"]
    rows = read_jsonl(folder / "evaluate/own/audit.jsonl")
    assert {row["outcome"] for row in rows} == set(score["verdicts"]), "one of each kind"


@pytest.mark.parametrize("count", ["0", "-3"])
def test_no_or_fewer_verdicts_are_refused(count: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(micro_recipe(tmp_path)), "--audit", count])
    assert result.exit_code == 2
    assert "--audit" in result.stderr
    assert "equal to 1" in result.stderr
