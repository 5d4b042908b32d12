"""`sdzero localize` on the micro run: what is kept is what the models say; and the terminal's token view."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from report.report_runs import HOSTILE, token_row
from sdzero.analyze.pieces import pieces
from sdzero.cli import app
from sdzero.errors import UserError
from sdzero.harmless import harmless
from sdzero.inspect_tokens import print_response, shade
from sdzero.localize import choose, localize
from sdzero.method.roles import Roles
from sdzero.models import load_model, load_tokenizer
from sdzero.questions.sources import load_questions
from sdzero.recipe_io import load_recipe
from support import read_jsonl


@pytest.fixture(scope="module")
def measured(micro_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured") / "run"
    shutil.copytree(micro_run, folder)
    result = CliRunner().invoke(app, ["localize", str(folder), "--responses", "2"])
    assert result.exit_code == 0, result.output
    return folder


def test_probabilities_and_divergences_are_those_of_the_models(measured: Path) -> None:
    """Student and Reviser are run anew, on prompts put together here, without our own chunks."""
    recipe = load_recipe(measured / "recipe.yaml")
    tokenizer = load_tokenizer(recipe.model.path)
    roles = Roles(tokenizer, recipe.phrases, recipe.chat)
    questions = {one.id: one for one in load_questions(recipe.data)}
    model = load_model(str(measured / "srt/round-1/model"), recipe.model)
    rows = read_jsonl(measured / "report/tokens.jsonl")
    assert 2 <= len(rows) <= 4
    for row in rows:
        response = row["token_ids"]
        prompt = roles.generator_prompt(questions[row["question"]])
        contexts = {"student": prompt, "reviser": roles.reviser_prompt(prompt, response, row["reward"])}
        logs = {}
        for role, context in contexts.items():
            with torch.no_grad():
                logits = model(torch.tensor([[*context, *response]])).logits[0, len(context) - 1 : -1]
            logs[role] = logits.log_softmax(-1)
            likely = logs[role].exp()
            top = likely.topk(5)
            assert row[role]["ids"] == top.indices.tolist()
            torch.testing.assert_close(
                torch.tensor(row[role]["probabilities"]), top.values, atol=2e-5, rtol=0
            )
            own = [float(likely[place, token]) for place, token in enumerate(response)]
            assert row[role]["target"] == pytest.approx(own, abs=2e-5)
        student, reviser = logs["student"], logs["reviser"]
        assert recipe.distill.divergence == "reverse"
        expected = (student.exp() * (student - reviser)).sum(-1)
        assert row["divergence"] == pytest.approx(expected.tolist(), abs=1e-4)
        assert "".join(row["pieces"]) == roles.decode(response, special=True)


def test_every_alternative_has_its_text(measured: Path) -> None:
    vocabulary = json.loads((measured / "report/vocabulary.json").read_text())
    tokenizer = load_tokenizer("tiny")
    for row in read_jsonl(measured / "report/tokens.jsonl"):
        for role in ("student", "reviser"):
            for own in row[role]["ids"]:
                assert all(vocabulary[str(token)] == tokenizer.decode([token]) for token in own)


def test_the_run_has_curves_of_style_and_of_concentration(measured: Path) -> None:
    style = json.loads((measured / "report/style.json").read_text())
    assert [row["step"] for row in style] == list(range(1, len(style) + 1))
    found = json.loads((measured / "report/localization.json").read_text())
    rows = read_jsonl(measured / "report/tokens.jsonl")
    for reward in (0, 1):
        own = [row for row in rows if row["reward"] == reward]
        assert found[f"r{reward}"]["responses"] == len(own)
        if own:
            assert found[f"r{reward}"]["curve"][-1]["divergence"]["mean"] == pytest.approx(1.0)


def test_the_report_is_made_from_what_was_measured(measured: Path, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["report", str(measured), "-o", str(output)])
    assert result.exit_code == 0, result.output
    assert 'id="responses"' in output.read_text()


def test_a_question_is_shown_in_the_terminal(measured: Path) -> None:
    row = read_jsonl(measured / "report/tokens.jsonl")[0]
    result = CliRunner().invoke(app, ["inspect", str(measured), "--question", row["question"]])
    assert result.exit_code == 0, result.output
    flat = " ".join(result.output.split())
    assert f"{row['question']}: {row['outcome']}, {sum(row['divergence']):.2f} nats" in flat
    assert f"control phrase: {row['phrase']}" in flat
    assert "loss mask of phase 2" in flat
    result = CliRunner().invoke(app, ["inspect", str(measured), "--question", "none such"])
    assert result.exit_code == 1
    assert row["question"] in result.stderr


def test_a_question_is_told_to_a_script(measured: Path) -> None:
    rows = read_jsonl(measured / "report/tokens.jsonl")
    question = rows[0]["question"]
    result = CliRunner().invoke(app, ["inspect", str(measured), "--question", question, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["responses"] == [row for row in rows if row["question"] == question]
    assert found["vocabulary"] == json.loads((measured / "report/vocabulary.json").read_text())


def test_before_localize_the_terminal_says_what_to_do(micro_run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(micro_run), "--question", "q"])
    assert result.exit_code == 1
    assert f"sdzero localize {micro_run}" in result.stderr.replace("\n", "")
    result = CliRunner().invoke(app, ["localize", str(tmp_path)])
    assert result.exit_code == 1
    assert "not a run's folder" in result.stderr


def test_a_damaged_model_is_not_measured(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(measured, tmp_path / "run")
    config = tmp_path / "run/srt/round-1/model/config.json"
    config.write_text(config.read_text() + " ")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="damaged"):
        localize(Path("run"), 1, print)


def test_a_model_that_only_the_hub_has_is_not_asked_for(measured: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(measured, folder)
    recipe = (folder / "recipe.yaml").read_text()
    assert recipe.count("path: tiny\n") == 1
    (folder / "recipe.yaml").write_text(recipe.replace("path: tiny\n", "path: owner/some-model\n"))
    question = read_jsonl(folder / "report/tokens.jsonl")[0]["question"]
    for command in (["localize", str(folder)], ["inspect", str(folder), "--question", question]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 1
        assert "owner/some-model is not on this machine, and the recipe is offline" in result.stderr


def test_wrong_and_right_of_one_question_are_chosen_first() -> None:
    def row(question: str, outcome: str) -> dict[str, Any]:
        return {"question": question, "outcome": outcome, "token_ids": [1]}

    rows = [row("a", "wrong"), row("a", "wrong"), row("b", "correct"), row("b", "wrong"), row("c", "correct")]
    rows += [row("d", "error"), row("e", "truncated"), row("f", "correct")]

    class Pair:
        context_tokens = 9

    chosen, overlong = choose(rows, 2, lambda _: Pair(), limit=9)
    shown = [(own["question"], own["outcome"]) for own, _ in chosen]
    assert shown == [("b", "correct"), ("b", "wrong"), ("a", "wrong"), ("c", "correct"), ("e", "truncated")]
    assert overlong == 0
    assert choose(rows, 2, lambda _: Pair(), limit=8) == ([], 7)


def test_pieces_put_side_by_side_are_the_text() -> None:
    text = "naïve 😀 ok"
    data = text.encode()
    texts = pieces(list(data), lambda ids: bytes(ids).decode("utf-8", errors="replace"))
    assert "".join(texts) == text
    assert texts[3] == "ï"
    assert texts[2] == ""
    lone = pieces([0x61, 0xFF], lambda ids: bytes(ids).decode("utf-8", errors="replace"))
    assert lone == ["a", "\ufffd"]


def test_a_decoder_that_drops_the_first_space_does_not_lose_it() -> None:
    words = [" one", " two", " three"]
    decoded = pieces([0, 1, 2], lambda ids: "".join(words[number] for number in ids).lstrip())
    assert decoded == ["one", " two", " three"]


def test_nothing_a_model_wrote_reaches_the_terminal_as_a_command() -> None:
    assert harmless("a\nb\x1b[2J\u202ec\x9b") == "a\u23ceb<U+001B>[2J<U+202E>c<U+009B>"
    console = Console(force_terminal=True, width=100, record=True)
    row = token_row(HOSTILE, [HOSTILE, "[red]x[/red]"], [2.5, 0.0], text=HOSTILE)
    with console.capture() as captured:
        print_response(row, {"1": HOSTILE, "2": "[bold]two"}, console)
    shown = captured.get()
    assert "\u202e" not in shown
    assert "\x1b[31mred" not in shown
    assert "[red]x[/red]" in shown
    assert "[bold]two" in shown
    assert shade(2.5) != shade(0.5) != shade(0.0) == ""
    assert not math.isnan(sum(row["divergence"]))
