"""`sdzero revise`: answers, verdicts and revisions of one model, for a person to read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sdzero.cli import app
from sdzero.errors import UserError
from sdzero.method.roles import Roles
from sdzero.models import load_tokenizer
from sdzero.questions.question import Question
from sdzero.recipe import ChatSettings
from sdzero.revise import Reviser, plain_recipe
from sdzero.revise_command import asked_questions, recipe_for, show
from sdzero.verify.verdict import Outcome, Verdict
from support import PHRASES, GradeByWord, ScriptedEngine, micro_recipe


def answered(question: str, text: str, further: str = "right") -> dict[str, Any]:
    """What a scripted model does with one question that has a reference."""
    tokenizer = load_tokenizer("tiny")
    roles = Roles(tokenizer, PHRASES, ChatSettings())
    engine = ScriptedEngine(
        roles, tokenizer, lambda prompt, asked: further if PHRASES.wrong in prompt else text
    )
    reviser = Reviser(engine, roles, plain_recipe("tiny", 32), GradeByWord())
    (revision,) = reviser.revise([Question("q", question, "4")], seed=0)
    return revision.to_json()


def test_a_wrong_answer_is_revised_after_the_phrase_for_wrong() -> None:
    found = answered("2+2", "bad")
    assert (found["initial"]["verdict"], found["initial"]["reward"]) == ("wrong", 0)
    (revised,) = found["revised"]
    assert (revised["phrase_reward"], revised["control_phrase"]) == (0, PHRASES.wrong)
    assert (revised["attempt"]["text"], revised["attempt"]["verdict"]) == ("right", "correct")


def test_a_right_answer_is_revised_after_the_phrase_for_right() -> None:
    (revised,) = answered("2+2", "right")["revised"]
    assert (revised["phrase_reward"], revised["control_phrase"]) == (1, PHRASES.correct)


def test_a_response_that_was_cut_is_truncated_and_has_reward_0() -> None:
    found = answered("2+2", "right...")
    assert (found["initial"]["verdict"], found["initial"]["reward"]) == ("truncated", 0)
    assert found["revised"][0]["phrase_reward"] == 0


@pytest.mark.parametrize("grade", [None, lambda items: [Verdict(Outcome.ERROR) for _ in items]])
def test_without_a_reward_both_phrases_are_tried(grade: Any) -> None:
    tokenizer = load_tokenizer("tiny")
    roles = Roles(tokenizer, PHRASES, ChatSettings())
    engine = ScriptedEngine(roles, tokenizer, lambda prompt, asked: "so")
    answer = "" if grade is None else "4"
    (revision,) = Reviser(engine, roles, plain_recipe("tiny", 32), grade).revise(
        [Question("q", "2", answer)], 0
    )
    assert [one.phrase_reward for one in revision.revised] == [0, 1]
    assert revision.initial.reward is None


def test_the_command_with_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.jsonl").write_text(
        "".join(
            json.dumps({"question": q, "answer": a}) + "\n"
            for q, a in (("2+3", "5"), ("4+4", "8"), ("1", "1"))
        )
    )
    arguments = [
        "revise",
        "tiny",
        "--recipe",
        str(micro_recipe(tmp_path)),
        "--data",
        "q.jsonl",
        "--count",
        "2",
    ]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["question"] for line in lines] == ["2+3", "4+4"]
    assert all(line["initial"]["verdict"] for line in lines)
    assert all(len(line["revised"]) == 1 for line in lines)
    again = CliRunner().invoke(app, [*arguments, "--json"])
    assert again.stdout == result.stdout, "the seed alone decides"


def test_what_a_person_sees() -> None:
    from sdzero.revise import Attempt, Revised, Revision

    console = Console(width=100, record=True)
    wrong = Attempt("[3]", 2, "wrong", 0, "the answer given is 3")
    show(Revision("2+2?", "4", wrong, (Revised(0, "Wait.", Attempt("4", 1, "correct", 1)),)), 1, 1, console)
    text = console.export_text()
    for shown in ("2+2?", "reference: 4", "wrong (the answer given is 3)", "[3]", "Wait.", "correct"):
        assert shown in text


def test_questions_must_come_from_one_place(tmp_path: Path) -> None:
    settings = plain_recipe("tiny", 32)

    def refused(**options: Any) -> str:
        given: dict[str, Any] = {"recipe": None, "question": None, "answer": None, "data": None, "count": 1}
        with pytest.raises(UserError) as told:
            asked_questions(settings, **(given | options))
        assert told.value.todo
        return str(told.value)

    assert "two sources" in refused(question="q", data=tmp_path / "d.jsonl")
    assert "belongs to a question" in refused(answer="4")
    assert "nothing to ask" in refused()
    assert "is empty" in refused(question=" ")
    assert "no such file" in refused(data=tmp_path / "d.jsonl")


def test_the_recipe_gives_phrases_and_the_command_line_the_model(tmp_path: Path) -> None:
    recipe = recipe_for("tiny:walks", micro_recipe(tmp_path), 17)
    assert (recipe.model.path, recipe.evaluate.max_new_tokens) == ("tiny:walks", 17)
    questions: Sequence[Question] = asked_questions(recipe, tmp_path / "micro.yaml", None, None, None, 2)
    assert len(questions) == 2
