"""Label-free mode in whole runs: no reference reaches the training, and the truth is reported beside it."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fake_stages import fake_stages
from sdzero.compare_methods import Method
from sdzero.dry_run import dry_run
from sdzero.errors import UserError
from sdzero.models import load_tokenizer
from sdzero.pipeline import Stages, open_run
from sdzero.questions.sources import load_questions
from sdzero.questions.splits import split_questions
from sdzero.recipe import DataSettings
from sdzero.recipe_io import load_recipe
from sdzero.run_labels import hide_references, label_training_questions
from sdzero.studies.run import STUDIES, run_seed
from sdzero.studies.study import Chosen
from sdzero.verify.agreement import LabelledQuestion
from support import micro_recipe, read_jsonl

SIZES = {"n1": 10, "n2": 10, "tuning": 2, "test": 3}
SAMPLES = 3
KINDS = ("known", "nonsense", "absent")
"""What the references of the training questions are in the three runs."""


def write_questions(folder: Path, references: str) -> Path:
    """Built-in arithmetic as a file, ids and kinds included; test and tuning keep their answers."""
    settings = DataSettings(source="arithmetic", **SIZES)
    sets = split_questions(load_questions(settings), settings)
    rows: list[dict[str, Any]] = []
    for name, own in vars(sets).items():
        for question in own:
            row = {"question": question.text, "answer": question.answer, "kind": question.kind}
            if name in ("n1", "n2") and references == "nonsense":
                row["answer"] = f"nonsense {len(rows)}"
            if name in ("n1", "n2") and references == "absent":
                del row["answer"]
            rows.append(row | {"id": question.id, "solution": row.get("answer", "")})
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def recipe_in(folder: Path, references: str, **changes: Any) -> Any:
    fields = {"id": "id", "kind": "kind", "solution": "solution", "metadata": ["solution"]}
    data = {"source": "jsonl", "path": str(write_questions(folder, references)), "fields": fields}
    sections: dict[str, Any] = {
        "data": data | SIZES,
        "labels": {"source": "majority", "samples": SAMPLES, "batch_size": 20},
        "rft": {"enabled": references == "known"},
    }
    return load_recipe(micro_recipe(folder, sections | changes))


@contextmanager
def opened(recipe: Any, folder: Path) -> Iterator[Stages]:
    lines: list[str] = []
    with open_run(recipe, folder, lines.append, lambda *counts: None) as stages:
        yield stages
    folder.with_suffix(".txt").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three runs of one recipe whose data differ in the training questions' references."""
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        found[kind] = folder / "run"
        with opened(recipe_in(folder, kind), found[kind]) as stages:
            if kind == "known":
                stages.run_all()
            else:
                stages.phase_1()
                stages.distill()
    return found


TRAINING = (
    "labels/labels.jsonl",
    "labels/responses/*.jsonl",
    "collect/round-1/initial/*.jsonl",
    "collect/round-1/revised/*.jsonl",
    "collect/round-1/traces.jsonl",
    "collect/round-1/statistics.json",
    "srt/round-1/model/model.safetensors",
    "distill/rollouts/*.jsonl",
    "distill/model/model.safetensors",
)


@pytest.mark.parametrize("other", ["nonsense", "absent"])
def test_no_reference_reaches_the_training(runs: dict[str, Path], other: str) -> None:
    for pattern in TRAINING:
        files = sorted(runs["known"].glob(pattern))
        assert files, pattern
        for file in files:
            twin = runs[other] / file.relative_to(runs["known"])
            assert file.read_bytes() == twin.read_bytes(), file.name


def answer_in(row: dict[str, Any], key: str = "token_ids") -> str | None:
    """The last box of a response, read without the package's verifier."""
    text = load_tokenizer("tiny").decode(row[key], skip_special_tokens=True)
    boxes = re.findall(r"\\boxed\{(-?\d+)\}", text)
    return boxes[-1] if boxes else None


def value(expression: str) -> str:
    """What a question of arithmetic comes to."""
    assert re.fullmatch(r"[\d+*()-]+", expression)
    return str(eval(expression))


def test_rewards_are_those_of_the_labels(runs: dict[str, Path]) -> None:
    labels = {row["question"]: row["label"] for row in read_jsonl(runs["known"] / "labels/labels.jsonl")}
    rows = [row for file in runs["known"].glob("distill/rollouts/*") for row in read_jsonl(file)]
    assert len(rows) == SIZES["n2"]
    finished = [row for row in rows if row["outcome"] in ("correct", "wrong")]
    assert finished
    for row in finished:
        assert (row["outcome"] == "correct") == (answer_in(row) == labels[row["question"]])
    assert any(labels[question] != value(question) for question in labels), "a label is wrong, or all is easy"


def test_a_label_is_the_most_frequent_answer(runs: dict[str, Path]) -> None:
    given: dict[str, list[str]] = {}
    for file in sorted(runs["known"].glob("labels/responses/*.jsonl")):
        for row in read_jsonl(file):
            answer = answer_in(row)
            given.setdefault(row["question"], []).extend([answer] if answer and not row["truncated"] else [])
    rows = read_jsonl(runs["known"] / "labels/labels.jsonl")
    assert len(rows) == SIZES["n1"] + SIZES["n2"]
    for row in rows:
        own = given[row["question"]]
        most = max(own.count(answer) for answer in own)
        assert row["label"] == next(answer for answer in own if own.count(answer) == most)
        assert row["agreement"] == most / SAMPLES


def test_whether_labels_are_right_is_told_beside(runs: dict[str, Path]) -> None:
    labels = read_jsonl(runs["known"] / "labels/labels.jsonl")
    right = json.loads((runs["known"] / "labels/statistics.json").read_text())["right"]
    expected = [row["label"] == value(row["question"]) for row in labels]
    assert right["of"] == len(labels)
    assert right["share"] == pytest.approx(sum(expected) / len(expected))
    unanimous = [is_right for row, is_right in zip(labels, expected, strict=True) if row["agreement"] == 1]
    assert right["unanimous"] == len(unanimous) < len(labels)
    assert right["share_of_unanimous"] == pytest.approx(sum(unanimous) / len(unanimous))
    checked = read_jsonl(runs["known"] / "labels/checked.jsonl")
    assert [row["outcome"] == "correct" for row in checked] == expected
    absent = json.loads((runs["absent"] / "labels/statistics.json").read_text())
    assert absent["right"] == {
        "of": 0,
        "share": None,
        "unanimous": 0,
        "share_of_unanimous": None,
        "agreement_of_right": None,
        "agreement_of_wrong": None,
    }
    assert absent["without_answer"] == {"n1": SIZES["n1"], "n2": SIZES["n2"]}
    assert (
        "questions without an answer in the data: n1 10, n2 10"
        in runs["absent"].with_suffix(".txt").read_text()
    )


def test_true_rewards_are_noted_beside_those_of_the_labels(runs: dict[str, Path]) -> None:
    run = runs["known"]
    found = json.loads((run / "labels/true_rewards.json").read_text())
    assert set(found) == {"collect/round-1", "distill"}
    for stage, group, pattern in (
        ("collect/round-1", "initial", "initial"),
        ("collect/round-1", "revised", "revised"),
        ("distill", "responses", "rollouts"),
    ):
        rows = [row for file in run.glob(f"{stage}/{pattern}/*.jsonl") for row in read_jsonl(file)]
        true = [row["outcome"] != "truncated" and answer_in(row) == value(row["question"]) for row in rows]
        label = [row["outcome"] == "correct" for row in rows]
        own = found[stage][group]
        assert (own["all"], own["of"]) == (len(rows), len(rows))
        assert own["true"] == pytest.approx(sum(true) / len(rows))
        assert own["label"] == pytest.approx(sum(label) / len(rows))
        agree = [one == other for one, other in zip(true, label, strict=True)]
        assert own["agree"] == pytest.approx(sum(agree) / len(rows))
    traces = read_jsonl(run / "collect/round-1/traces.jsonl")
    right = [answer_in(row, "revised_ids") == value(row["question_id"]) for row in traces]
    assert found["collect/round-1"]["traces"] == {
        "all": len(traces),
        "of": len(traces),
        "true": pytest.approx(sum(right) / len(right)),
    }
    assert "distill, responses: true reward" in run.with_suffix(".txt").read_text()
    absent = json.loads((runs["absent"] / "labels/true_rewards.json").read_text())
    assert absent["distill"]["responses"] | {"all": 0} == {
        "all": 0,
        "of": 0,
        "label": None,
        "true": None,
        "agree": None,
    }


def test_the_labels_are_in_the_ledger_and_in_the_results(runs: dict[str, Path]) -> None:
    results = json.loads((runs["known"] / "results.json").read_text())
    spent = results["budget"]["by_stage"]
    labels = spent["labels"]["responses"]
    own = spent["collect"]["responses"] + spent["distill"]["responses"]
    assert labels == SAMPLES * (SIZES["n1"] + SIZES["n2"])
    assert results["budget"]["responses"] == labels + own
    assert spent["rft"]["responses"] == own, "RFT may sample what SD-Zero sampled beside the labels"
    assert results["responses"] == {
        "base": 0,
        "srt": labels + spent["collect"]["responses"],
        "sdzero": labels + own,
        "rft": labels + own,
    }
    assert results["schema"] == 1
    assert results["labels"]["samples"] == SAMPLES
    assert results["labels"]["questions"] == results["labels"]["labelled"] == SIZES["n1"] + SIZES["n2"]
    assert results["labels"]["true_rewards"]["distill"]["responses"]["of"] == SIZES["n2"]


def test_tuning_and_test_questions_are_graded_with_their_true_answers(runs: dict[str, Path]) -> None:
    rows = [row for file in runs["known"].glob("evaluate/*/responses/*.jsonl") for row in read_jsonl(file)]
    finished = [row for row in rows if row["outcome"] in ("correct", "wrong")]
    assert finished
    for row in finished:
        assert (row["outcome"] == "correct") == (answer_in(row) == value(row["question"]))


def test_a_run_that_is_opened_again_has_its_labels_and_samples_nothing(runs: dict[str, Path]) -> None:
    run = runs["known"]
    before = {path: path.stat().st_mtime_ns for path in run.glob("labels/**/*")}
    recipe = load_recipe(run / "recipe.yaml")
    with open_run(recipe, run, lambda line: None, lambda *counts: None) as stages:
        labels = {row["question"]: row["label"] for row in read_jsonl(run / "labels/labels.jsonl")}
        assert {question.id: question.answer for question in stages.training_questions} == labels
        assert all(isinstance(question, LabelledQuestion) for question in stages.training_questions)
        assert not any(question.metadata or question.solution for question in stages.training_questions)
        stages.phase_1()
        stages.distill()
    assert {path: path.stat().st_mtime_ns for path in run.glob("labels/**/*")} == before


def test_puzzles_are_labelled_by_the_text_of_their_answers(tmp_path: Path) -> None:
    """The scorers know the right answer of a puzzle: they must not see a training question."""
    changes = {
        "model": {"path": "tiny:spelling"},
        "data": {"source": "spelling", "n1": 6, "n2": 6, "tuning": 0, "test": 3},
        "verifier": {"name": "puzzle"},
        "labels": {"source": "majority", "samples": SAMPLES},
        "distill": {"rehearsal_weight": 0.0},
    }
    recipe = load_recipe(micro_recipe(tmp_path, changes))
    with open_run(recipe, tmp_path / "run", lambda line: None, lambda *counts: None) as stages:
        label_training_questions(stages)
        labels = {question.id: question.answer for question in stages.training_questions}
        items = [(question, f"\\boxed{{{question.answer}}}") for question in stages.training_questions]
        true = [(stages.truth[question.id], text) for question, text in items]
        assert all(verdict.reward for verdict in stages.grade(items))
        rewards = [verdict.reward for verdict in stages.grade(true)]
    assert rewards == [labels[q.id] == q.text.rpartition(" ")[2][::-1] for q, _ in true]
    assert 0 < sum(rewards) < len(rewards)


# ---- what is refused, and what is left out ----


def test_programs_cannot_vote(tmp_path: Path) -> None:
    changes = {
        "labels": {"source": "majority"},
        "verifier": {"name": "code", "timeout_seconds": 20},
    }
    with pytest.raises(UserError, match=r"labels\.source=majority needs answers that can be compared"):
        load_recipe(micro_recipe(tmp_path, changes))


def test_greedy_responses_cannot_vote(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"labels": {"source": "majority"}, "collect": {"temperature": 0.0}}
    with pytest.raises(UserError, match="have nothing to vote on"):
        load_recipe(micro_recipe(tmp_path, changes))
    load_recipe(micro_recipe(tmp_path, changes | {"labels": {"source": "majority", "temperature": 0.7}}))


def test_a_verifier_that_cannot_vote_is_refused_when_the_run_opens(tmp_path: Path) -> None:
    changes = {"labels": {"source": "majority"}, "verifier": {"name": "mute_verifier:mute", "workers": 1}}
    (tmp_path / "mute_verifier.py").write_text("def mute(question, response): return True\n")
    recipe = load_recipe(micro_recipe(tmp_path, changes))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with (
            pytest.raises(UserError, match="the verifier `mute_verifier:mute` cannot vote"),
            open_run(recipe, tmp_path / "run", lambda line: None, lambda *counts: None),
        ):
            pytest.fail("the run was opened")
    assert not (tmp_path / "run/labels").exists()


def with_labels(folder: Path, recipe: Any, labels: dict[str, str | None]) -> Stages:
    """A played run with references hidden, whose labels stand in its folder."""
    stages = fake_stages(folder, recipe)
    rows = [{"question": question, "label": label} for question, label in labels.items()]
    stages.run.write_jsonl("labels/labels.jsonl", rows)
    stages.run.mark_done("labels")
    return hide_references(stages)


def test_questions_without_a_label_leave_the_sets(tmp_path: Path, micro_settings: Any) -> None:
    labels = {f"q{n}": None if n in (1, 6) else f"label {n}" for n in range(8)}
    stages = with_labels(tmp_path / "run", micro_settings, labels)
    assert [(q.id, q.answer) for q in stages.sets.n1] == [
        ("q0", "label 0"),
        ("q2", "label 2"),
        ("q3", "label 3"),
    ]
    assert [q.id for q in stages.sets.n2] == ["q4", "q5", "q7"]
    assert [q.answer for q in (*stages.sets.tuning, *stages.sets.test)] == ["8", "9"]


def test_a_set_without_any_label_ends_the_run(tmp_path: Path, micro_settings: Any) -> None:
    labels = {f"q{n}": "1" if n < 4 else None for n in range(8)}
    with pytest.raises(UserError, match="not one question of n2 has a label"):
        with_labels(tmp_path / "run", micro_settings, labels)


def test_labels_of_other_questions_are_refused(tmp_path: Path, micro_settings: Any) -> None:
    with pytest.raises(UserError, match="there is no label of question q7"):
        with_labels(tmp_path / "run", micro_settings, {f"q{n}": "1" for n in range(7)})


def test_every_training_pays_for_the_labels() -> None:
    assert Method("base", "base").stages == ()
    for kind in ("srt", "sdzero", "rft", "sft"):
        assert Method(kind, kind).stages[0] == "labels"


def test_the_study_needs_references(tmp_path: Path, micro_settings: Any) -> None:
    labels = micro_settings.labels.model_copy(update={"source": "majority"})
    stages = fake_stages(tmp_path / "run", micro_settings.model_copy(update={"labels": labels}))
    with pytest.raises(UserError) as raised:
        run_seed(stages, STUDIES["labels"], Chosen(stages.recipe.distill, {}))
    assert raised.value.where == "labels.source"
    assert stages.play.trained == []


def test_a_dry_run_says_that_it_takes_no_vote(tmp_path: Path) -> None:
    recipe = load_recipe(
        micro_recipe(tmp_path, {"labels": {"source": "majority"}, "rft": {"enabled": False}})
    )
    lines: list[str] = []
    dry_run(recipe, tmp_path / "dry", lines.append, lambda *counts: None)
    assert any("labels of a vote -> the rows' answers" in line for line in lines)
    assert not (tmp_path / "dry/run/labels").exists()
