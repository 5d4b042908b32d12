"""SIGKILL at random moments of a whole run, resumed by the same command each time: nothing is lost."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support import command, environment, micro_recipe, sdzero
from test_kill_resume import batches, ledger_of, weights_of

KILLS = 50
SEED = 8
LONGEST_SECONDS = 4.0
"""So long after it has opened the run a process is killed at the latest."""

START_SECONDS = 60.0


def kill_after(seconds: float, arguments: list[str | Path], run: Path) -> bool:
    """Start the command, wait until it holds the run's folder, wait, kill it and its group; whether it was
    killed and had not ended before."""
    lock = run / ".lock"
    held_before = lock.read_text() if lock.exists() else ""
    process = subprocess.Popen(
        command(*arguments),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    give_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        if lock.exists() and lock.read_text() not in ("", held_before):
            break
        time.sleep(0.01)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()
    return process.returncode != 0


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_if_left_alone(micro_run: Path, tmp_path: Path) -> None:
    """A run is over before it was killed often enough: then another one begins, in a new folder."""
    moments = random.Random(SEED)
    recipe = micro_recipe(tmp_path)
    killed = runs = 0
    while killed < KILLS:
        runs += 1
        run = tmp_path / f"run-{runs}"
        arguments: list[str | Path] = ["run", recipe, "-o", run]
        finished: dict[Path, tuple[int, bytes]] = {}
        over = False
        while not over and killed < KILLS:
            over = not kill_after(moments.uniform(0.0, LONGEST_SECONDS), arguments, run)
            killed += not over
            now = batches(run)
            assert finished.items() <= now.items(), f"kill {killed} changed or lost a finished batch"
            finished = now
        last = sdzero(*arguments, timeout=300)
        assert last.returncode == 0, last.stderr
        assert finished.items() <= batches(run).items()
        own, alone = ({file: data for file, (_, data) in batches(one).items()} for one in (run, micro_run))
        assert own == alone
        assert weights_of(run) == weights_of(micro_run)
        assert ledger_of(run) == ledger_of(micro_run)
        print(f"run {runs}: {killed} kills so far")
