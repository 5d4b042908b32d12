"""Runs a server and ends it, with all of its children, when the process that started it is gone.

`python -m sdzero.rollout.vllm_launcher PARENT COMMAND...`. A run can be killed in ways in which it cannot
clean up; a server left behind would hold a GPU's memory. So the server is not the run's child but this
program's, which looks twice a second whether the run still lives. Imports the standard library only.
"""

import os
import signal
import subprocess
import sys
import time

GRACE_SECONDS = 10.0
INTERVAL_SECONDS = 0.5


def watch(parent: int, command: list[str]) -> int:
    """Run `command` until it ends, or the parent is gone, or this process is told to end."""
    child = subprocess.Popen(command, start_new_session=True)
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, frame: told.append(received))
    while child.poll() is None and not told and os.getppid() == parent:
        time.sleep(INTERVAL_SECONDS)
    # The server's own children outlive it when it was killed, so its group is ended in either case.
    _signal_group(child.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.1)
    _signal_group(child.pid, signal.SIGKILL)
    return child.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(watch(int(sys.argv[1]), sys.argv[2:]))
