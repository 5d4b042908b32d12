"""`sdzero inspect`: the sequences that are trained on, with their weights, as the run has them."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sdzero import tiny
from sdzero.cli import app
from sdzero.models import load_tokenizer
from support import MICRO, read_jsonl


@pytest.fixture(scope="module")
def shown(micro_run: Path) -> str:
    result = CliRunner().invoke(app, ["inspect", str(micro_run), "-n", "1"])
    assert result.exit_code == 0, result.output
    return result.output


def test_both_rewards_are_shown_with_their_weights(shown: str, micro_run: Path) -> None:
    traces = read_jsonl(micro_run / "collect/round-1/traces.jsonl")
    flat = shown.replace("\n", " ")
    for reward in {trace["reward"] for trace in traces}:
        trace = next(trace for trace in traces if trace["reward"] == reward)
        section = flat[flat.index(f"round-1, SRT stage 1, r = {reward}") :]
        prompt, revised = len(trace["prompt_ids"]), len(trace["revised_ids"])
        initial = len(trace["initial_ids"]) - 1  # the end token is gone
        assert f"prompt         tokens 0-{prompt - 1}, weight [0.0]" in section
        assert f"initial        tokens {prompt}-{prompt + initial - 1}, weight [1.0]" in section
        assert re.search(r"control_phrase tokens \d+-\d+, weight \[1\.0\]", section)
        last = re.search(r"revised        tokens (\d+)-(\d+), weight \[2\.0\]: ([\d ]+)", section)
        assert last is not None
        assert int(last[2]) - int(last[1]) + 1 == revised
        ids = [int(word) for word in last[3].split()][:revised]
        assert ids == trace["revised_ids"]


def test_phase_two_is_shown_as_a_pair(shown: str, micro_run: Path) -> None:
    rollouts = read_jsonl(micro_run / "distill/rollouts/step-000000.jsonl")
    flat = shown.replace("\n", " ")
    assert "phase 2, step-000000, r = " in flat
    length = len(rollouts[0]["token_ids"])
    spans = {}
    for side in ("student", "teacher"):
        found = re.search(rf"{side}: (\d+) tokens, logits at (\d+)-(\d+)", flat)
        assert found is not None
        total, first, last = map(int, found.groups())
        assert last - first + 1 == length
        assert last == total - 2, "the last logits used predict the last token"
        spans[side] = total
    assert spans["teacher"] > spans["student"] + length - 1


def test_as_many_examples_as_asked_for(micro_run: Path) -> None:
    output = CliRunner().invoke(app, ["inspect", str(micro_run), "--count", "3"]).output
    traces = read_jsonl(micro_run / "collect/round-1/traces.jsonl")
    for reward in (0, 1):
        there = sum(trace["reward"] == reward for trace in traces)
        assert output.count(f"SRT stage 1, r = {reward}") == min(3, there)
    assert output.count("phase 2, step-000000") == 3


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none", tiny.model_folder()):
        result = CliRunner().invoke(app, ["inspect", str(folder)])
        assert result.exit_code == 1
        assert "not a run's folder" in result.stderr
        assert "Traceback" not in result.output


def test_a_run_that_has_nothing_yet_says_so(tmp_path: Path) -> None:
    from sdzero.recipe_io import load_recipe
    from sdzero.run_dir import RunDir
    from support import micro_recipe

    RunDir.open(tmp_path / "run", load_recipe(micro_recipe(tmp_path))).close()
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert "run `sdzero collect` first" in result.stderr


def test_tokens_are_shown_as_text(shown: str) -> None:
    phrase = load_tokenizer("tiny").tokenize("not correct")
    assert phrase
    assert "\u2502" in shown, "tokens stand apart"
    assert MICRO["name"] not in shown
