"""Label-free training: who wins a vote, what is kept, and that no reference reaches training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdzero.errors import UserError
from sdzero.method.labels import (
    LABELS,
    Label,
    labelled_sets,
    majority,
    rewarded,
    same_by,
    statistics,
    true_rewards,
    vote_of,
)
from sdzero.questions.question import Question
from sdzero.questions.sources import load_questions
from sdzero.questions.splits import QuestionSets, split_questions
from sdzero.recipe import DataSettings, Recipe
from sdzero.recipe_io import load_recipe
from sdzero.recipe_labels import LabelSettings
from sdzero.run_dir import RunDir
from sdzero.verify.math import MathVerifier
from sdzero.verify.verdict import Outcome, Verdict
from support import micro_recipe, read_jsonl, sdzero

VERIFIER = MathVerifier()


def grade(items: Any) -> list[Verdict]:
    return [VERIFIER.grade(question, text) for question, text in items]


SAME = same_by(grade)


@pytest.mark.parametrize(
    ("votes", "answer", "agreement", "groups"),
    [
        (["5", "4", "5", "5"], "5", 0.75, {"5": 3, "4": 1}),
        # Equal groups: the one that was begun first.
        (["7", "3", "3", "7"], "7", 0.5, {"7": 2, "3": 2}),
        # The verifier decides what is equal; the group is called as it was begun.
        (["\\frac{1}{2}", "2", "0.5", "1/2"], "\\frac{1}{2}", 0.75, {"\\frac{1}{2}": 3, "2": 1}),
        (["1,000", "1000", "12"], "1,000", 2 / 3, {"1,000": 2, "12": 1}),
        # A response without an answer votes for nothing and counts in the agreement.
        ([None, None, "9", None], "9", 0.25, {"9": 1}),
        ([None, None], None, 0.0, {}),
    ],
)
def test_votes(votes: list[str | None], answer: str | None, agreement: float, groups: dict[str, int]) -> None:
    assert majority("q", votes, SAME) == Label("q", answer, pytest.approx(agreement), groups)


def test_integers_are_compared_without_the_verifier() -> None:
    def refused(items: Any) -> list[Verdict]:
        raise AssertionError("the verifier was asked")

    same = same_by(refused)
    assert same("12", "+012")
    assert not same("12", "-12")


def test_a_failing_verifier_finds_nothing_equal() -> None:
    same = same_by(lambda items: [Verdict(Outcome.ERROR) for _ in items])
    assert not same("x", "y")


def test_the_vote_of_a_response_is_its_last_box() -> None:
    assert vote_of("\\boxed{3} no, \\boxed{4}") == "4"
    assert vote_of("it is 4") is None
    assert vote_of("\\boxed{}") is None
    assert vote_of("\\boxed{" + "1" * 1001 + "}") is None


def questions(count: int = 4) -> list[Question]:
    return [Question(f"q{i}", f"{i}+1?", str(i + 1), solution=f"{i}+1={i + 1}") for i in range(count)]


def rows(*found: tuple[str, str | None, float, bool | None]) -> list[dict[str, Any]]:
    return [
        {"question": name, "answer": answer, "agreement": agreement, "votes": {}, "right": right}
        for name, answer, agreement, right in found
    ]


def test_labels_take_the_place_of_answers_in_training_only(tmp_path: Path, micro_settings: Recipe) -> None:
    q = questions()
    sets = QuestionSets(q[:1], q[1:2], q[2:3], q[3:])
    with RunDir.open(tmp_path / "run", micro_settings) as run:
        run.write_jsonl(LABELS, rows(("q0", "77", 0.5, False), ("q1", "2", 1.0, True)))
        labelled = labelled_sets(sets, run, LabelSettings(source="majority"))
        assert [(one.answer, one.solution) for one in (*labelled.n1, *labelled.n2)] == [("77", ""), ("2", "")]
        assert (labelled.tuning, labelled.test) == (sets.tuning, sets.test)
        with pytest.raises(UserError, match="no question of n1 has a label"):
            labelled_sets(sets, run, LabelSettings(source="majority", min_agreement=0.6))


def test_what_is_not_agreed_on_is_counted_out() -> None:
    found = rows(("a", "1", 0.9, True), ("b", "2", 0.4, False), ("c", None, 0.0, None), ("d", "3", 0.7, None))
    assert statistics(found, LabelSettings(min_agreement=0.5)) == {
        "questions": 4,
        "used": 2,
        "mean_agreement": pytest.approx(0.8),
        "judged": 1,
        "right": 1.0,
    }
    assert statistics(found[2:3], LabelSettings())["right"] is None


def test_both_rewards_of_the_same_responses(tmp_path: Path, micro_settings: Recipe) -> None:
    """The labels of q0 is wrong: its responses 1 (true) and 77 (the label) are rewarded the other way."""

    class Decoder:
        def decode(self, ids: list[int]) -> str:
            return f"\\boxed{{{ids[0]}}}"

    def row(name: str, value: int, outcome: str) -> dict[str, Any]:
        return {"question": name, "token_ids": [value], "outcome": outcome}

    known = {one.id: one for one in questions(2)} | {"q9": Question("q9", "?", "")}
    with RunDir.open(tmp_path / "run", micro_settings) as run:
        run.write_jsonl(
            "distill/rollouts/step-000000.jsonl",
            [
                row("q0", 77, "correct"),
                row("q0", 1, "wrong"),
                row("q1", 2, "correct"),
                row("q1", 2, "truncated"),
                row("q1", 2, "error"),
                row("q9", 2, "correct"),
            ],
        )
        found = true_rewards(run, Decoder(), grade, known, rewarded())  # type: ignore[arg-type]
    assert found == {
        "phase 2": {"responses": 4, "label_reward": 0.5, "true_reward": 0.5, "agree": 0.5},
    }


# ---- data without answers ----


def test_rows_without_an_answer_are_trained_on_and_never_scored(tmp_path: Path) -> None:
    lines = [{"question": f"{i} apples?", "answer": str(i) if i % 4 == 0 else None} for i in range(40)]
    lines.append({"question": "0 apples?", "answer": None})
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    keys = {"source": "jsonl", "path": str(path), "n1": 10, "n2": 20, "tuning": 4, "test": 4}
    with pytest.raises(UserError, match="is empty"):
        load_questions(DataSettings.model_validate(keys))
    kept = DataSettings.model_validate(keys | {"faulty": "keep"})
    found = load_questions(kept)
    assert len(found) == 40
    assert sum(one.answer == "" for one in found) == 30
    sets = split_questions(found, kept)
    assert all(one.answer for one in (*sets.tuning, *sets.test))
    assert any(not one.answer for one in sets.n1)
    assert (len(sets.n1), len(sets.n2), len(sets.tuning), len(sets.test)) == (10, 20, 4, 4)
    too_many = kept.model_copy(update={"test": 20, "n2": 1})
    with pytest.raises(UserError, match="24 questions with an answer are needed"):
        split_questions(found, too_many)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": {"source": "majority"}, "verifier": {"name": "puzzle"}}, "verifier.name=math"),
        ({"labels": {"source": "majority"}, "data": {"source": "spelling"}}, "data.source one of"),
        ({"labels": {"source": "majority"}, "sft": {"demonstrations": "solutions"}}, "hides the data's"),
        ({"data": {"faulty": "keep"}}, "for labels.source=majority only"),
    ],
)
def test_what_cannot_vote_is_refused_when_the_recipe_is_read(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        load_recipe(micro_recipe(tmp_path, changes))


# ---- a whole run, by the command ----

LABEL_FREE = {"labels": {"source": "majority", "samples": 3}, "evaluate": {"k": 1}}


@pytest.fixture(scope="module")
def label_free_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("label-free")
    done = sdzero("run", micro_recipe(folder, LABEL_FREE), "-o", folder / "run", timeout=300)
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stdout)
    return folder / "run"


def test_labels_are_made_once_counted_and_reported(label_free_run: Path) -> None:
    labels = read_jsonl(label_free_run / LABELS)
    assert len(labels) == 48
    ledger = read_jsonl(label_free_run / "ledger.jsonl")
    assert sum(row["responses"] for row in ledger if row["stage"] == "labels") == 3 * 48
    results = json.loads((label_free_run / "results.json").read_text())
    by_stage = results["budget"]["by_stage"]
    spent = sum(by_stage[stage]["responses"] for stage in ("labels", "collect", "distill"))
    assert results["budget"]["responses"] == results["responses"]["sdzero"] == spent
    # RFT had as many as SD-Zero, labels included, and its questions carry the labels too.
    assert by_stage["rft"]["responses"] == spent
    facts = results["labels"]
    assert facts["used"] == sum(row["answer"] is not None for row in labels)
    judged = [row["right"] for row in labels if row["right"] is not None]
    assert facts["right"] == pytest.approx(sum(judged) / len(judged))
    assert set(facts["rewards"]) == {"initial", "revised", "phase 2"}
    printed = (label_free_run.parent / "printed").read_text()
    assert "training does not see this" in printed
    assert "by the labels" in printed


def test_training_is_rewarded_by_the_labels(label_free_run: Path) -> None:
    """Every stored verdict is the one that the label gives; with the references some would differ."""
    from sdzero.method.roles import Roles
    from sdzero.models import load_tokenizer

    recipe = load_recipe(label_free_run / "recipe.yaml")
    roles = Roles(load_tokenizer("tiny"), recipe.phrases, recipe.chat)
    true = {one.id: one for one in load_questions(recipe.data)}
    labelled = {
        row["question"]: replace(true[row["question"]], answer=row["answer"])
        for row in read_jsonl(label_free_run / LABELS)
        if row["answer"] is not None
    }
    differing = checked = 0
    for pattern in rewarded().values():
        for file in label_free_run.glob(pattern):
            for row in read_jsonl(file):
                if row["outcome"] == "truncated":
                    continue
                text = roles.decode(row["token_ids"])
                assert VERIFIER.grade(labelled[row["question"]], text).outcome == row["outcome"]
                differing += VERIFIER.grade(true[row["question"]], text).outcome != row["outcome"]
                checked += 1
    assert checked > 60
    assert differing > 0


def test_a_run_goes_on_with_the_labels_that_it_has(label_free_run: Path) -> None:
    files = sorted((label_free_run / "labels").rglob("*.jsonl"))
    before = {file: file.stat().st_mtime_ns for file in files}
    again = sdzero("run", label_free_run.parent / "micro.yaml", "-o", label_free_run)
    assert again.returncode == 0, again.stderr
    assert {file: file.stat().st_mtime_ns for file in files} == before
