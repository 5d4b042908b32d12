"""Starts the processes of one run on this machine: what `sdzero run --num-processes N` does.

Each process runs the same command with the variables set that torchrun sets, and no more: many machines and
restarts are for `accelerate launch` and torchrun. When one process fails, the others are ended.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_TO_SAY_WHY = 6.0
"""After a failure the processes end by themselves, in a few seconds; see `sdzero.process_group`."""
GRACE_SECONDS = 30.0
"""How long after a failure a process may take to end, before it is killed."""

PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def is_started() -> bool:
    """Whether a launcher started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run the command `sdzero` with `arguments` in so many processes; gives the exit status.

    That is the one of a process that failed, or 0. SIGTERM, SIGUSR1 and SIGINT are passed on to them.
    """
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    # Without a number each would use all cores, and the processes would slow each other down.
    shared.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    command = [sys.executable, "-m", "sdzero", *arguments]
    started = [
        subprocess.Popen(command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]

    def pass_on(number: int, _: object) -> None:
        for process in started:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        return _wait(started)
    finally:
        for process in started:
            process.kill()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(started: Sequence["subprocess.Popen[bytes]"]) -> int:
    """Wait for all; once one has failed, ask the others to end, and in the end make them."""
    status, failed_at = 0, 0.0
    while running := [process for process in started if process.poll() is None]:
        if not status and (status := _status(started)):
            failed_at = time.monotonic()
        seconds = time.monotonic() - failed_at
        for process in running if status else ():
            if seconds > GRACE_SECONDS:
                process.kill()
            elif seconds > SECONDS_TO_SAY_WHY:
                process.terminate()
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return status or _status(started)


def _status(started: Sequence["subprocess.Popen[bytes]"]) -> int:
    """The exit status of a process that has failed, or 0; for one that a signal ended, as a shell has it."""
    codes = [process.returncode for process in started if process.returncode]
    return next((code if code > 0 else 128 - code for code in codes), 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
