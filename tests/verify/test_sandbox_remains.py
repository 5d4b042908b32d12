"""Nothing of a program stays behind: no process, no descriptor, no control group."""

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ordinary_user import SOURCES
from sandboxed import needs_sandbox
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify.attack_scene import running_with
from sdzero.verify.backends import limits_of, opened
from sdzero.verify.cgroups import PREFIX
from sdzero.verify.sandbox import Ending, Job, Sandbox

pytestmark = needs_sandbox


def job_of(sandbox: Sandbox, program: str, word: str) -> Job:
    command = (*sandbox.python(), "-c", program, word)
    return Job(command, limits_of(SandboxSettings(wall_seconds=5.0)))


def groups_of_this_process() -> list[Path]:
    return list(Path("/sys/fs/cgroup").rglob(f"{PREFIX}{os.getpid()}-*"))


def children() -> dict[int, str]:
    """The children of this process and their states; Z is one that has ended and was not buried."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                state, parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
                if int(parent) == os.getpid():
                    found[int(entry)] = state
    return found


LEAVES = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    os.fork()
    time.sleep(60)
sys.exit(len(os.listdir(".")))
"""


def test_thirty_runs_leave_nothing_behind() -> None:
    word, known_groups = secrets.token_hex(8), groups_of_this_process()
    known = os.listdir("/proc/self/fd"), set(children())
    with opened(SandboxSettings()) as one:
        before = len(os.listdir("/proc/self/fd"))
        for number in range(30):
            job = job_of(one, (LEAVES, "print(1)", "import os\nos.abort()")[number % 3], word)
            assert one.run(job).ending is Ending.EXITED
            assert len(os.listdir("/proc/self/fd")) == before
            assert len(children()) == len(known[1]) + 2, "more than the two that start programs"
        one.run_pair(job_of(one, "print(input())", word), job_of(one, LEAVES, word))
        assert len(os.listdir("/proc/self/fd")) == before
    assert running_with(word) == []
    assert "Z" not in children().values()
    assert (os.listdir("/proc/self/fd"), set(children())) == known
    assert groups_of_this_process() == known_groups


OWNER = """
import sys
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify.backends import limits_of, opened
from sdzero.verify.sandbox import Job
with opened(SandboxSettings()) as one:
    program = b"import os, time\\nif os.fork() == 0: os.setsid()\\ntime.sleep(60)"
    command = (*one.python(), one.place("main.py"), sys.argv[1])
    one.run(Job(command, limits_of(SandboxSettings(wall_seconds=60)), {"main.py": program}))
"""


def test_a_program_ends_with_the_process_that_runs_it() -> None:
    word = secrets.token_hex(8)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, word], env={**os.environ, "PYTHONPATH": str(SOURCES)}
    )
    try:
        wait_for(lambda: len(running_with(word)) >= 4)  # the owner, bubblewrap, the program and its child
    finally:
        owner.kill()
        owner.wait()
    wait_for(lambda: not running_with(word))


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_two_sandboxes_of_one_process_do_not_disturb_each_other() -> None:
    with opened(SandboxSettings()) as first:
        with opened(SandboxSettings()) as second:
            for one in (first, second, first):
                assert one.run(job_of(one, "print('well')", "")).stdout == b"well\n"
        assert first.run(job_of(first, "print('well')", "")).stdout == b"well\n"
