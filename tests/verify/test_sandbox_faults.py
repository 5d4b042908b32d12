"""A sandbox that is itself broken says so, takes nothing along, and others beside it go on."""

import contextlib
import os
import platform
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from machine import children_of, groups_of, open_descriptors, running_with
from ordinary_user import SOURCES, run_as_ordinary_user
from sandboxed import needs_sandbox
from sdzero.errors import UserError
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify import launcher
from sdzero.verify.backends import limits_of, opened
from sdzero.verify.sandbox import Ending, Finished, Job, Sandbox, SandboxError

pytestmark = needs_sandbox

SETTINGS = SandboxSettings(wall_seconds=5.0, memory_megabytes=128)
ASK = "import sys; print(20, flush=True); sys.stderr.write(input())"
ANSWER = "print(int(input()) + 1, flush=True)"


def job(sandbox: Sandbox, program: str) -> Job:
    return Job((*sandbox.python(), "-c", program), limits_of(SETTINGS))


def talk(sandbox: Sandbox) -> tuple[Finished, Finished]:
    return sandbox.run_pair(job(sandbox, ASK), job(sandbox, ANSWER))


def descends(process: int, generations: int) -> bool:
    """Whether a process has children, their children and so on, so many generations."""
    return generations == 0 or any(descends(child, generations - 1) for child in children_of(process))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No descriptor, no child, no control group that was not there before."""
    own = os.getpid()
    before = open_descriptors(), children_of(own), groups_of(own)
    yield
    assert (open_descriptors(), children_of(own), groups_of(own)) == before


@pytest.mark.parametrize("killed", [0, 1], ids=["the judge's", "the program's"])
def test_without_the_process_that_starts_programs_there_is_no_verdict(killed: int) -> None:
    children = children_of(os.getpid())
    with opened(SETTINGS) as sandbox:
        before = open_descriptors()
        process = sorted(children_of(os.getpid()) - children)[killed]
        os.kill(process, signal.SIGKILL)
        with pytest.raises(SandboxError):
            talk(sandbox)
        if killed == 0:
            with pytest.raises(SandboxError):
                sandbox.run(job(sandbox, "print(1)"))
        else:
            assert sandbox.run(job(sandbox, "print(1)")).stdout == b"1\n"
        # One is what bubblewrap tells of the program, closed at the end.
        assert len(open_descriptors() - before) <= 1


def test_if_it_goes_while_a_program_runs_the_sandbox_failed_and_not_the_program() -> None:
    children = children_of(os.getpid())
    with opened(SETTINGS) as sandbox, ThreadPoolExecutor(1) as threads:
        judges, _ = sorted(children_of(os.getpid()) - children)
        running = threads.submit(sandbox.run, job(sandbox, "import time; time.sleep(60)"))
        while not descends(judges, 3):  # bubblewrap outside, inside, and the program
            assert not running.done()
        os.kill(judges, signal.SIGKILL)
        with pytest.raises(SandboxError):
            running.result()


WORKER = """
from sdzero.errors import UserError
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify import launcher
from sdzero.verify.backends import limits_of, opened
from sdzero.verify.sandbox import Job
settings = SandboxSettings()
with opened(settings) as one:
    print("ready", flush=True)
    one.run(Job((*one.python(), "-c", PROGRAM, TOKEN), limits_of(settings)))
"""


@pytest.mark.parametrize("generations", [1, 2, 3])
def test_a_program_ends_with_a_worker_whose_whole_group_is_killed(generations: int) -> None:
    token = f"sdzero-{secrets.token_hex(8)}"
    script = WORKER.replace("TOKEN", repr(token)).replace("PROGRAM", repr("import time; time.sleep(60)"))
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    worker = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"ready\n"
    launchers = children_of(worker.pid)
    while not any(descends(one, generations) for one in launchers):
        assert worker.poll() is None
    os.killpg(worker.pid, signal.SIGKILL)
    worker.communicate()
    give_up = time.monotonic() + 5.0
    while running_with(token) and time.monotonic() < give_up:
        time.sleep(0.01)
    assert running_with(token) == []


def test_a_program_ends_with_a_worker_that_was_killed_with_an_answer_unread(tmp_path: Path) -> None:
    program = tmp_path / "sleeps"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with other:
        command = [sys.executable, "-I", "-S", launcher.__file__, str(other.fileno())]
        process = subprocess.Popen(command, pass_fds=[other.fileno()], start_new_session=True)
    assert launcher.receive(ours) is not None
    launcher.send(ours, {"start": str(program), "options": [], "command": [], "limits": []}, [])
    assert select.select([ours], [], [], 10.0)[0] == [ours], "the answer is there, and is not read"
    started = children_of(process.pid)
    assert len(started) == 1
    ours.close()
    assert process.wait(10.0) == 0
    assert not any(Path(f"/proc/{one}").exists() for one in started)


HOLDING_ON = """
import os, time
# The same as in the attack: the first process forgets that it should end with its parent.
code = bytes.fromhex("b89d000000bf0100000031f60f05b8220000000f05ebf7")
with open("/proc/1/syscall") as told, open("/proc/1/mem", "r+b", buffering=0) as memory:
    memory.seek(int(told.read().split()[-1], 16))
    memory.write(code)
if os.fork() == 0:
    os.fork() or time.sleep(0.05)
    os._exit(0)
os.wait()
time.sleep(60)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the program writes code for x86_64")
def test_not_even_a_program_that_takes_over_the_first_process_outlives_its_worker() -> None:
    token = f"sdzero-{secrets.token_hex(8)}"
    worker = WORKER.replace("TOKEN", repr(token)).replace("PROGRAM", repr(HOLDING_ON))
    script = f"""
import os, signal, subprocess, sys, time
worker = subprocess.Popen(
    [sys.executable, "-c", {worker!r}], stdout=subprocess.PIPE, start_new_session=True
)
worker.stdout.readline()
time.sleep(1.5)
print(worker.poll())
os.killpg(worker.pid, signal.SIGKILL)
worker.communicate()
"""
    try:
        assert run_as_ordinary_user(script) == "None\n"
        give_up = time.monotonic() + 5.0
        while running_with(token) and time.monotonic() < give_up:
            time.sleep(0.01)
        assert running_with(token) == []
    finally:
        for process in running_with(token):
            with contextlib.suppress(ProcessLookupError):  # the first takes the others along
                os.kill(process, signal.SIGKILL)


def test_a_pair_whose_judge_cannot_be_started_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(SETTINGS) as sandbox:
        before, start = open_descriptors(), sandbox._start

        def refuse(one: Job, stdin: int, stdout: int | None, slot: int) -> object:
            if slot == 0:
                raise SandboxError("on purpose")
            return start(one, stdin, stdout, slot)

        monkeypatch.setattr(sandbox, "_start", refuse)
        with pytest.raises(SandboxError, match="on purpose"):
            talk(sandbox)
        monkeypatch.undo()
        assert (
            len(open_descriptors() - before) <= 1
        )  # what bubblewrap tells of the program; closed at the end


def test_a_command_that_does_not_exist_is_the_programs_fault() -> None:
    with opened(SETTINGS) as sandbox:
        done = sandbox.run(Job(("/usr/bin/no-such-program",), limits_of(SETTINGS)))
        assert (done.ending, done.exit_code) == (Ending.EXITED, 127)


def test_two_sandboxes_run_programs_at_the_same_time() -> None:
    programs = [f"import time; time.sleep(0.1); print({number})" for number in range(4)]

    def run_all(sandbox: Sandbox) -> list[bytes]:
        return [sandbox.run(job(sandbox, program)).stdout for program in programs]

    with opened(SETTINGS) as first, opened(SETTINGS) as second, ThreadPoolExecutor(2) as threads:
        done = [threads.submit(run_all, one) for one in (first, second)]
        assert [one.result() for one in done] == [[b"0\n", b"1\n", b"2\n", b"3\n"]] * 2
        assert talk(first)[0].stderr == talk(second)[0].stderr == b"21"


def test_bubblewrap_that_runs_as_root_is_refused_to_ordinary_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "bwrap"
    shutil.copy(str(shutil.which("bwrap")), program)
    program.chmod(0o4755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 61_000)
    with pytest.raises(UserError, match=r"(?s)cannot be limited.*chmod u-s"):
        opened(SETTINGS).__enter__()
