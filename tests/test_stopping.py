"""A run that is asked to stop ends at a place from where the same command goes on."""

import hashlib
import json
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from sdzero import stopping
from support import micro_recipe, read_jsonl, sdzero, started, without_seconds


def asked_at(file: Path, arguments: list[str | Path], number: signal.Signals) -> tuple[int, str, str]:
    """Run the command and send it the signal once `file` is there; its status, output and errors."""
    process = started(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 100
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(number)
    out, errors = process.communicate(timeout=100)
    return process.returncode, out, errors


def totals_of(run: Path) -> dict[str, dict[str, int]]:
    """The ledger's counts by stage, each key's last word."""
    last = {(row["stage"], row["key"]): without_seconds(row) for row in read_jsonl(run / "ledger.jsonl")}
    totals: dict[str, dict[str, int]] = {}
    for (stage, _), row in last.items():
        own = totals.setdefault(stage, {})
        for name in ("responses", "sampled_tokens", "trained_tokens", "teacher_tokens"):
            own[name] = own.get(name, 0) + row[name]
    return totals


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_signal_ends_the_run_after_a_checkpoint_and_the_named_command_goes_on(
    micro_run: Path, tmp_path: Path
) -> None:
    """While it samples, in SRT, and in phase 2 between two due checkpoints; then weights and counts are those
    of a run that was left alone."""
    run = tmp_path / "a run"
    arguments: list[str | Path] = ["run", micro_recipe(tmp_path), "-o", run]
    places = [
        (run / "collect/round-1/initial/batch-00000.jsonl", signal.SIGTERM),
        (run / "srt/round-1/log.jsonl", signal.SIGUSR1),
        (run / "distill/rollouts/step-000002.jsonl", signal.SIGTERM),
    ]
    for place, number in places:
        status, out, errors = asked_at(place, arguments, number)
        assert status == 0, errors
        *_, what, how = out.splitlines()
        assert what == f"stopped by {number.name}; what was finished is kept"
        assert how == f"resume with: sdzero run {tmp_path}/micro.yaml -o '{run}'"
        checkpoints = sorted(run.glob("*/**/checkpoint-*/complete.json"))
        if place.parent.name == "rollouts":
            steps = [json.loads(marker.read_text())["step"] for marker in checkpoints]
            assert max(steps) == 3, "the step in which the signal came is finished and saved"
        elif place.name == "log.jsonl":
            assert checkpoints, "SRT has saved"
    assert not (run / "results.json").exists()
    last = sdzero(*arguments)
    assert last.returncode == 0, last.stderr
    for model in ("srt/round-1", "distill", "rft"):
        weights = f"{model}/model/model.safetensors"
        assert sha256(run / weights) == sha256(micro_run / weights)
    assert totals_of(run) == totals_of(micro_run)


def test_nothing_is_heard_outside_and_training_alone_stops_within_a_step() -> None:
    stopping.check()
    with stopping.listening():
        stopping.check()
        signal.raise_signal(signal.SIGUSR1)
        assert stopping.is_asked()
        with stopping.within_training():
            stopping.check()
            stopping.check_own()
            with stopping.together():
                pass
        with pytest.raises(stopping.Stopped, match="SIGUSR1"):
            stopping.check()
        with pytest.raises(stopping.Stopped), stopping.together():
            stopping.check_own()
    assert not stopping.is_asked()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_thread_hears_nothing_and_sets_no_handler() -> None:
    handlers = []

    def work() -> None:
        with stopping.listening():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.SIG_DFL]


def test_a_fault_is_not_taken_for_a_wish_to_stop() -> None:
    with pytest.raises(ValueError, match="own"), stopping.together():
        raise ValueError("own")


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(micro_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments: list[str | Path] = ["run", micro_recipe(tmp_path), "-o", run, "--num-processes", "2"]
    for place, step in (
        ("collect/round-1/initial/batch-00000.jsonl", 0),
        ("distill/rollouts/step-000002.jsonl", 3),
    ):
        status, out, errors = asked_at(run / place, arguments, signal.SIGTERM)
        assert status == 0, errors
        assert out.splitlines()[-1].startswith("resume with: sdzero run "), out
        steps = [
            json.loads(file.read_text())["step"] for file in run.glob("distill/checkpoints/*/complete.json")
        ]
        assert max(steps, default=0) == step
    last = sdzero(*arguments)
    assert last.returncode == 0, last.stderr
    assert totals_of(run)["collect"] == totals_of(micro_run)["collect"]
