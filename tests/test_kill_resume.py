"""A run is killed in every stage and resumed by the same command: nothing is lost, nothing is repeated,
and the weights are, bit for bit, those of a run that was left alone (design, contract 9)."""

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from support import micro_recipe, read_jsonl, sdzero, started, without_seconds

KILLS = [
    "collect/round-1/initial/batch-00000.jsonl",
    "collect/round-1/revised/batch-00001.jsonl",
    "srt/round-1/checkpoints-0/checkpoint-4/complete.json",
    "srt/round-1/model.partial",  # every step is made, the model is not kept yet
    "distill/rollouts/step-000003.jsonl",  # the teacher was synced and saved after step 2
    "distill/checkpoints/checkpoint-4/complete.json",
    "rft/responses/batch-00001.jsonl",
    "rft/checkpoints-0/checkpoint-2/complete.json",
    "evaluate/srt/responses/batch-00000.jsonl",
]
"""In each process, the file at whose appearance it is killed."""

MODELS = ["srt/round-1/model", "distill/model", "rft/model"]


def run_until(file: Path, arguments: list[str | Path]) -> None:
    """Run the command and kill it, and all of its group, the moment `file` is there."""
    assert not file.exists(), f"{file} is there before the kill that waits for it"
    process = started(*arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 100
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"not killed at {file}: {errors}"


def batches(run: Path) -> dict[Path, tuple[int, bytes]]:
    """Every finished batch of responses: when it was written, and what it holds."""
    names = ["collect/**/batch-*.jsonl", "distill/rollouts/*.jsonl", "rft/**/batch-*.jsonl"]
    names.append("evaluate/**/batch-*.jsonl")
    files = sorted(file for name in names for file in run.glob(name))
    return {file.relative_to(run): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def ledger_of(run: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The ledger's last word on each key."""
    rows = read_jsonl(run / "ledger.jsonl")
    return {(row["stage"], row["key"]): without_seconds(row) for row in rows}


def weights_of(run: Path) -> dict[str, str]:
    """The sha256 of each model's weights file."""
    return {m: hashlib.sha256((run / m / "model.safetensors").read_bytes()).hexdigest() for m in MODELS}


def test_killed_in_every_stage_it_ends_as_if_left_alone(micro_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments: list[str | Path] = ["run", micro_recipe(tmp_path), "-o", folder]
    finished: dict[Path, tuple[int, bytes]] = {}
    for file in KILLS:
        run_until(folder / file, arguments)
        now = batches(folder)
        assert finished.items() <= now.items(), f"the run killed at {file} changed or lost a finished batch"
        finished = now
    assert len(finished) > len(KILLS)
    last = sdzero(*arguments)
    assert last.returncode == 0, last.stderr

    now = batches(folder)
    assert finished.items() <= now.items()
    alone = batches(micro_run)
    assert {file: content for file, (_, content) in now.items()} == {
        file: content for file, (_, content) in alone.items()
    }
    assert ledger_of(folder) == ledger_of(micro_run)
    assert weights_of(folder) == weights_of(micro_run)
    results = [(own / "results.json") for own in (folder, micro_run)]
    first, second = (without_seconds(json.loads(path.read_text())) for path in results)
    assert first == second
    syncs = [(own / "stages/distill.json") for own in (folder, micro_run)]
    infos = [json.loads(path.read_text())["info"] for path in syncs]
    assert infos[0] == infos[1]
    assert infos[0]["syncs"] == 2
    for name in ("srt/round-1", "distill", "rft"):
        logged = [
            [row["step"] for row in read_jsonl(own / name / "log.jsonl")] for own in (folder, micro_run)
        ]
        assert logged[0] == logged[1], "each step stands in the log once"
    leftovers = [p for p in folder.rglob("*") if "partial" in p.name or "tmp" in p.name]
    assert not leftovers
    assert not list(folder.rglob("checkpoints*"))


def test_early_stopping_ends_where_it_would_have(micro_run: Path, tmp_path: Path) -> None:
    """Killed at the evaluation that ends training, and again before the best model is kept."""
    changes = {
        "srt": {"checkpoint": str(micro_run / "srt/round-1/model")},
        "distill": {
            "rehearsal_weight": 0.0,
            "evaluate_every": 2,
            "early_stop_patience": 1,
            "checkpoint_every": 3,
        },
    }
    recipe = micro_recipe(tmp_path, changes)
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert sdzero("distill", recipe, "-o", alone).returncode == 0
    arguments: list[str | Path] = ["distill", recipe, "-o", killed]
    for file in ("distill/tuning/step-000004/responses/batch-00000.jsonl", "distill/model.partial"):
        run_until(killed / file, arguments)
    last = sdzero(*arguments)
    assert last.returncode == 0, last.stderr
    weights = [(run / "distill/model/model.safetensors").read_bytes() for run in (alone, killed)]
    assert weights[0] == weights[1]
    assert batches(alone).keys() == batches(killed).keys()
    logs = [[row["step"] for row in read_jsonl(run / "distill/log.jsonl")] for run in (alone, killed)]
    assert logs[0] == logs[1]
