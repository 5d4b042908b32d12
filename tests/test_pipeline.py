"""The stages: alone or in one go the same, from a user's own checkpoints, over rounds and over seeds."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sdzero.cli import app
from support import micro_recipe, read_jsonl, without_seconds

SMALL: dict[str, dict[str, Any]] = {
    "data": {"n1": 12, "n2": 8, "test": 3},
    "distill": {"rehearsal_weight": 0.0},
    "rft": {"enabled": False},
}
"""Half the micro recipe, for what needs a run of its own."""


def command(*arguments: str | Path) -> str:
    """Run the command, which must succeed; returns what it printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_stages_one_by_one_give_what_one_run_gives(micro_run: Path, tmp_path: Path) -> None:
    recipe, folder = micro_recipe(tmp_path), tmp_path / "run"
    assert "traces:" in command("collect", recipe, "-o", folder)
    assert "model:" in command("srt", recipe, "-o", folder)
    assert "model:" in command("distill", recipe, "-o", folder)
    assert "results:" in command("evaluate", recipe, "-o", folder)
    for name in ("collect/round-1/traces.jsonl", "collect/round-1/statistics.json"):
        assert (folder / name).read_bytes() == (micro_run / name).read_bytes()
    for name in ("srt/round-1/model", "distill/model"):
        assert sha256(folder / name) == sha256(micro_run / name)
    alone, whole = (json.loads((run / "results.json").read_text()) for run in (folder, micro_run))
    for key in ("evaluations", "revision"):
        del whole[key]["rft"]
        assert alone[key] == whole[key]
    assert without_seconds(alone["budget"]["by_stage"]["distill"]) == without_seconds(
        whole["budget"]["by_stage"]["distill"]
    )


def test_what_is_done_is_not_done_again(micro_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(micro_run, tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.jsonl")}
    first = json.loads((run / "results.json").read_text())
    output = command("run", micro_recipe(tmp_path), "-o", run)
    assert "collect, round" not in output
    assert "distill:" not in output
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.jsonl")} == before
    assert json.loads((run / "results.json").read_text()) == first


def test_the_log_of_a_run(micro_run: Path) -> None:
    rows = [row for row in read_jsonl(micro_run / "distill/log.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 7))
    for row in rows:
        assert 0 <= row["reward"] <= 1
        assert row["divergence_r0"] >= 0
        assert row["divergence_r1"] >= 0
    assert [row["teacher_syncs"] for row in rows] == [0, 1, 1, 2, 2, 2]


def test_questions_of_the_sets_are_kept_and_apart(micro_run: Path) -> None:
    sets = json.loads((micro_run / "questions.json").read_text())
    assert {name: len(ids) for name, ids in sets.items()} == {"n1": 24, "n2": 24, "tuning": 4, "test": 6}
    assert len({question for ids in sets.values() for question in ids}) == 24 + 24 + 4 + 6
    sampled = {row["question"] for path in micro_run.glob("distill/rollouts/*") for row in read_jsonl(path)}
    assert sampled == set(sets["n2"])


def test_from_the_users_own_srt_checkpoint_and_teacher(micro_run: Path, tmp_path: Path) -> None:
    own = micro_run / "srt/round-1/model"
    changes = SMALL | {"srt": {"checkpoint": str(own)}}
    recipe, folder = micro_recipe(tmp_path, changes), tmp_path / "run"
    command("run", recipe, "-o", folder)
    assert not (folder / "collect").exists()
    assert not (folder / "srt").exists()
    results = json.loads((folder / "results.json").read_text())
    assert set(results["evaluations"]) == {"base", "srt", "sdzero"}
    assert results["responses"] == {"base": 0, "srt": 0, "sdzero": 8}

    other = tmp_path / "other-teacher"
    changes = changes | {"distill": {"rehearsal_weight": 0.0, "teacher": str(micro_run / "rft/model")}}
    command("distill", micro_recipe(other, changes), "-o", other / "run")
    teachers = [json.loads((run / "stages/distill.json").read_text()) for run in (folder, other / "run")]
    assert sha256(folder / "distill/model") != sha256(other / "run/distill/model")
    assert teachers[0]["info"]["syncs"] == teachers[1]["info"]["syncs"] == 0


def test_traces_of_another_run_are_rehearsed(micro_run: Path, tmp_path: Path) -> None:
    traces = micro_run / "collect/round-1/traces.jsonl"
    changes = SMALL | {
        "srt": {"checkpoint": str(micro_run / "srt/round-1/model")},
        "distill": {"rehearsal_weight": 0.3, "rehearsal_traces": str(traces)},
    }
    command("distill", micro_recipe(tmp_path, changes), "-o", tmp_path / "run")
    assert (tmp_path / "run/distill/model/model.safetensors").is_file()


def test_rounds_share_out_the_questions(tmp_path: Path) -> None:
    changes = SMALL | {"collect": {"rounds": 2}}
    recipe, folder = micro_recipe(tmp_path, changes), tmp_path / "run"
    result = CliRunner().invoke(app, ["collect", str(recipe), "-o", str(folder), "--round", "2"])
    assert result.exit_code == 1
    assert "run `sdzero srt` first" in result.stderr
    command("run", recipe, "-o", folder)
    asked = [
        {row["question"] for path in folder.glob(f"collect/round-{n}/initial/*") for row in read_jsonl(path)}
        for n in (1, 2)
    ]
    sets = json.loads((folder / "questions.json").read_text())
    assert asked[0] | asked[1] == set(sets["n1"])
    assert not asked[0] & asked[1]
    kept = [len(read_jsonl(folder / f"collect/round-{n}/traces.jsonl")) for n in (1, 2)]
    done = [json.loads((folder / f"stages/srt/round-{n}.json").read_text())["info"] for n in (1, 2)]
    assert [info["sequences"] for info in done] == [kept[0], kept[0] + kept[1]]


def test_seeds(tmp_path: Path) -> None:
    recipe, folder = micro_recipe(tmp_path, SMALL), tmp_path / "run"
    output = command("run", recipe, "-o", folder, "--seeds", "2")
    assert "seed 3" in output
    assert "seed 4" in output
    summary = json.loads((folder / "results.json").read_text())
    assert summary["seeds"] == [3, 4]
    each = [json.loads((folder / f"seed-{seed}/results.json").read_text()) for seed in (3, 4)]
    assert [one["seed"] for one in each] == [3, 4]
    assert sha256(folder / "seed-3/distill/model") != sha256(folder / "seed-4/distill/model")
    for name in ("base", "srt", "sdzero"):
        own = summary["evaluations"][name]["avg"]
        scores = [one["evaluations"][name]["avg"] for one in each]
        assert own["mean"] == pytest.approx(sum(scores) / 2)
        assert own["interval"][0] <= own["mean"] <= own["interval"][1]
    assert summary["differences"]["sdzero-base"]["mean"] == pytest.approx(
        summary["evaluations"]["sdzero"]["avg"]["mean"] - summary["evaluations"]["base"]["avg"]["mean"]
    )


def test_a_folder_is_scored_under_its_own_name(micro_run: Path, tmp_path: Path) -> None:
    recipe, folder = micro_recipe(tmp_path, SMALL), tmp_path / "run"
    output = command("evaluate", recipe, "-o", folder, "--model", "tiny", "--name", "mine")
    assert "mine: avg@2" in output
    kept = json.loads((folder / "evaluate/mine.json").read_text())
    assert kept["evaluation"]["questions"] == 3
    other = micro_run / "srt/round-1/model"
    arguments = ["evaluate", str(recipe), "-o", str(folder), "--model", str(other), "--name", "mine"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "holds scores of another model" in result.stderr
    assert json.loads((folder / "evaluate/mine.json").read_text()) == kept


def test_choices_are_made_on_the_tuning_set(micro_run: Path, tmp_path: Path) -> None:
    changes = SMALL | {
        "srt": {"checkpoint": str(micro_run / "srt/round-1/model")},
        "evaluate": {"on": "tuning"},
        "distill": {"rehearsal_weight": 0.0, "evaluate_every": 1},
    }
    recipe, folder = micro_recipe(tmp_path, changes), tmp_path / "run"
    output = command("run", recipe, "-o", folder)
    assert "tuning avg" in output
    sets = json.loads((folder / "questions.json").read_text())
    assert json.loads((folder / "results.json").read_text())["evaluations"]["base"]["questions"] == 4
    asked = {row["question"] for path in folder.glob("evaluate/**/*.jsonl") for row in read_jsonl(path)}
    assert asked == set(sets["tuning"])
    tried = {path.name for path in folder.glob("distill/tuning/*")}
    assert tried == {"step-000001", "step-000002"}
