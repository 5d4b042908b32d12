"""The sandbox in ordinary use: what a program sees, how runs end, and that nothing stays behind."""

import hashlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ordinary_user import run_as_ordinary_user
from sandboxed import needs_sandbox
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify.backends import opened
from sdzero.verify.bubblewrap import ENVIRONMENT, USERS
from sdzero.verify.sandbox import STDERR_KEPT, Ending, Finished, Job, Limits, Sandbox

pytestmark = needs_sandbox

LIMITS = Limits(
    wall_seconds=5.0,
    cpu_seconds=5.0,
    memory_megabytes=128,
    processes=16,
    open_files=32,
    file_megabytes=2,
    disk_megabytes=4,
    output_megabytes=1,
)
LATE_SECONDS = 2.0
"""How much later than its limit a run may end on a busy machine."""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with opened(SandboxSettings()) as one:
        yield one


def job_of(sandbox: Sandbox, program: str, *words: str, stdin: bytes = b"", **limits: float) -> Job:
    command = (*sandbox.python(), sandbox.place("main.py"), *words)
    return Job(command, replace(LIMITS, **limits), {"main.py": program.encode()}, stdin)


def run(sandbox: Sandbox, program: str, *, stdin: bytes = b"", **limits: float) -> Finished:
    return sandbox.run(job_of(sandbox, program, stdin=stdin, **limits))


def said(sandbox: Sandbox, program: str) -> str:
    """What a program that ends well writes."""
    done = run(sandbox, program)
    assert done.exit_code == 0, done.stderr
    return done.stdout.decode().strip()


# ---- how a run ends ----


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_code_is_the_programs(sandbox: Sandbox, code: int) -> None:
    done = run(sandbox, f"import sys\nsys.exit({code})")
    assert (done.ending, done.exit_code) == (Ending.EXITED, code)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_a_signal_shows_in_the_exit_code(sandbox: Sandbox, number: int) -> None:
    done = run(sandbox, f"import os\nos.kill(os.getpid(), {int(number)})")
    assert (done.ending, done.exit_code) == (Ending.EXITED, 128 + number)


@pytest.mark.parametrize(
    "program", ["while True: pass", "import time\ntime.sleep(60)", "import os\nos.read(os.pipe()[0], 1)"]
)
def test_the_clock_ends_a_program(sandbox: Sandbox, program: str) -> None:
    done = run(sandbox, program, wall_seconds=0.4)
    assert (done.ending, done.exit_code) == (Ending.TIMEOUT, None)
    assert 0.4 <= done.seconds < 0.4 + LATE_SECONDS


def test_the_processor_time_ends_a_program_with_a_signal(sandbox: Sandbox) -> None:
    done = run(sandbox, "while True: pass", cpu_seconds=1)
    assert (done.ending, done.exit_code) == (Ending.EXITED, 128 + signal.SIGXCPU)


def test_a_process_gets_no_more_memory_than_it_may(sandbox: Sandbox) -> None:
    done = run(sandbox, "print(len(b'x' * (64 << 20)))\nb'x' * (256 << 20)")
    assert done.stdout == b"%d\n" % (64 << 20)
    assert done.exit_code == 1
    assert done.stderr.rstrip().endswith(b"MemoryError")


@pytest.mark.parametrize(
    "program",
    [
        "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n        kept = b'x' * (40 << 20)\n"
        "        time.sleep(0.5)\n        os._exit(0)\nfor _ in range(8):\n    os.wait()",
        "import os\nfiles = [os.memfd_create('x') for _ in range(25)]\n"
        "for _ in range(7):\n    for file in files:\n        os.write(file, bytes(1 << 20))",
        "import os\nwhile True:\n    os.mkdir('x')\n    os.chdir('x')",
    ],
    ids=["processes", "files in memory", "folders"],
)
def test_memory_in_total_ends_a_program_and_the_next_one_runs(sandbox: Sandbox, program: str) -> None:
    if "in total" not in sandbox.describe():
        pytest.skip("no control group may be made here, so memory is limited for each process only")
    done = run(sandbox, program, file_megabytes=16, memory_megabytes=64)
    assert (done.ending, done.exit_code) == (Ending.MEMORY, None)
    assert said(sandbox, "print('well')") == "well"


COUNT = """
number = 0
try:
    while number < 100:
        {step}
        number += 1
except {fault} as fault:
    print(number, getattr(fault, "errno", None))
"""


@pytest.mark.parametrize(
    ("step", "fault", "least", "most"),
    [
        ("import os, time; os.fork() or (time.sleep(3), os._exit(0))", "OSError", 10, 16),
        ("import threading, time; threading.stack_size(1 << 16); "
         "threading.Thread(target=time.sleep, args=(3,), daemon=True).start()", "RuntimeError", 10, 16),
        ("import os; os.dup(0)", "OSError", 24, 29),
        ("open('large', 'ab', buffering=0).write(bytes(1 << 18))", "OSError", 8, 8),
        ("open(str(number), 'wb', buffering=0).write(bytes(1 << 18))", "OSError", 12, 16),
    ],
    ids=["processes", "threads", "open files", "file size", "disk"],
)  # fmt: skip
def test_what_a_program_may_have_is_counted(
    sandbox: Sandbox, step: str, fault: str, least: int, most: int
) -> None:
    program = COUNT.format(step=step, fault=fault)
    assert least <= int(said(sandbox, program).split()[0]) <= most


@pytest.mark.parametrize("descriptor", [1, 2])
def test_too_much_output_ends_a_program(sandbox: Sandbox, descriptor: int) -> None:
    done = run(sandbox, f"import os\nwhile True:\n    os.write({descriptor}, b'x' * 65536)")
    assert (done.ending, done.exit_code) == (Ending.OUTPUT, None)
    assert done.seconds < LATE_SECONDS
    assert len(done.stdout) <= 1.1 * (1 << 20)
    assert len(done.stderr) <= STDERR_KEPT


# ---- what a program sees ----


def test_the_environment_is_the_same_for_every_program(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "12345678")
    told = said(sandbox, "import os\nprint(*sorted(f'{name}={value}' for name, value in os.environ.items()))")
    assert told.split() == sorted(
        f"{name}={value}" for name, value in {**ENVIRONMENT, "PWD": "/work"}.items()
    )


def test_a_program_sees_little_of_the_machine(sandbox: Sandbox) -> None:
    names = set(said(sandbox, "import os\nprint(*os.listdir('/'))").split())
    way = Path(sandbox.python()[0]).parts[1]
    system = {"usr", "bin", "sbin", "lib", "lib32", "lib64", "etc", "dev", "proc", "tmp", "program", "work"}
    assert names <= system | {way}
    assert said(sandbox, "import os\nprint(*os.listdir('/proc/self/fd'))").split()[:3] == ["0", "1", "2"]
    groups = said(sandbox, "print(open('/proc/self/cgroup').read())").split()
    assert all(line.endswith(":/") for line in groups)
    assert set(said(sandbox, "import os\nprint(*os.listdir('/etc'))").split()) <= {
        "alternatives",
        "ld.so.cache",
    }


def test_a_program_runs_without_the_packages_of_the_trainer(sandbox: Sandbox) -> None:
    told = said(
        sandbox, "import importlib.util as u\nprint(*(u.find_spec(n) is None for n in ('sdzero', 'torch')))"
    )
    assert told == "True True"


def test_a_program_is_an_ordinary_user_of_its_own(sandbox: Sandbox) -> None:
    user = int(said(sandbox, "import os\nprint(os.getuid())"))
    assert user in USERS if os.geteuid() == 0 else user == os.getuid()


def test_signals_have_their_usual_effect(sandbox: Sandbox) -> None:
    done = sandbox.run(Job(("/usr/bin/grep", "SigIgn", "/proc/self/status"), LIMITS))
    ignored = int(done.stdout.split()[1], 16)
    assert ignored & (1 << 31) - 1 == 0  # the C library keeps signals 32 and 33 for itself


def test_standard_input_arrives_whole(sandbox: Sandbox) -> None:
    data = bytes(range(256)) * 4096
    program = "import hashlib, sys\nprint(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"
    assert run(sandbox, program, stdin=data).stdout.decode().strip() == hashlib.sha256(data).hexdigest()
    assert run(sandbox, program).stdout.decode().strip() == hashlib.sha256(b"").hexdigest()


def test_output_is_kept_byte_for_byte_and_the_end_of_errors(sandbox: Sandbox) -> None:
    data = bytes(range(256)) * 1024
    program = "import os\ndata = bytes(range(256)) * 1024\nfor number in (1, 2):\n    left = data\n"
    program += "    while left:\n        left = left[os.write(number, left):]"
    done = run(sandbox, program)
    assert done.stdout == data
    assert done.stderr == data[-STDERR_KEPT:]


def test_files_of_a_job_can_be_read_and_run_but_not_changed(sandbox: Sandbox) -> None:
    script = (
        "for name in data.bin run.sh new; do echo changed 2>/dev/null > /program/$name && echo changed $name;"
        " rm -f /program/$name 2>/dev/null && test $name != new && echo removed $name; done;"
        " cat /program/data.bin"
    )
    files = {"data.bin": b"\0\xff data", "run.sh": f"#!/bin/sh\n{script}\n".encode()}
    done = sandbox.run(Job((sandbox.place("run.sh"),), LIMITS, files))
    assert done.stdout == b"\0\xff data"


def test_a_program_finds_an_empty_folder_each_time(sandbox: Sandbox) -> None:
    program = "import os\nprint(os.getcwd(), os.listdir('.'), os.listdir('/tmp'))\nopen('left', 'w').close()"
    assert [said(sandbox, program) for _ in range(2)] == ["/work [] []"] * 2


def test_a_file_larger_than_a_program_may_write_can_be_given_to_it(sandbox: Sandbox) -> None:
    job = job_of(sandbox, "import os\nprint(os.path.getsize('/program/large'))")
    done = sandbox.run(replace(job, files={**job.files, "large": bytes(3 << 20)}))
    assert done.stdout == b"%d\n" % (3 << 20), done.stderr


# ---- pairs ----

ASKS = """
import sys
for number in (1, 2, 3):
    print(number, flush=True)
    print(sys.stdin.readline().strip(), file=sys.stderr)
"""
DOUBLES = "import sys\nfor line in sys.stdin:\n    print(2 * int(line), flush=True)"
HANGS = "import time\ntime.sleep(60)"


def run_pair(sandbox: Sandbox, judge: str, program: str, **limits: float) -> tuple[Finished, Finished]:
    return sandbox.run_pair(job_of(sandbox, judge, **limits), job_of(sandbox, program, **limits))


def test_a_pair_talks_and_ends_with_the_judge(sandbox: Sandbox) -> None:
    judge, program = run_pair(sandbox, ASKS, DOUBLES + "\n" + HANGS)
    assert (judge.ending, judge.exit_code, judge.stderr) == (Ending.EXITED, 0, b"2\n4\n6\n")
    assert program.ending is Ending.EXITED
    assert (judge.stdout, program.stdout) == (b"", b"")
    stopped = run_pair(sandbox, "", HANGS)[1]
    assert (stopped.ending, stopped.exit_code) == (Ending.EXITED, None)


def test_the_judge_sees_the_end_of_a_program(sandbox: Sandbox) -> None:
    judge = "import sys\nprint(repr(sys.stdin.read()), file=sys.stderr)"
    told, program = run_pair(sandbox, judge, "import sys\nprint('bye', flush=True)\nsys.exit(3)")
    assert (told.exit_code, told.stderr) == (0, b"'bye\\n'\n")
    assert (program.ending, program.exit_code) == (Ending.EXITED, 3)


def test_a_pair_that_hangs_is_ended(sandbox: Sandbox) -> None:
    judge, program = run_pair(sandbox, HANGS, HANGS, wall_seconds=0.4)
    assert (judge.ending, program.ending) == (Ending.TIMEOUT, Ending.TIMEOUT)
    assert max(judge.seconds, program.seconds) < 0.4 + LATE_SECONDS


def test_a_fork_bomb_beside_it_does_not_keep_the_judge_from_work(sandbox: Sandbox) -> None:
    bomb = "import os, time\nwhile True:\n    try:\n        os.fork() or time.sleep(3)\n    except OSError:\n"
    bomb += "        time.sleep(0.01)"
    threads = "import sys, threading, time\ntime.sleep(0.2)\nwork = threading.Thread(target=print)\n"
    threads += "work.start()\nwork.join()\nprint('worked', file=sys.stderr)"
    judge, _ = run_pair(sandbox, threads, bomb)
    assert (judge.exit_code, judge.stderr) == (0, b"worked\n")


# ---- other users, other backends ----

AS_ORDINARY_USER = """
import os
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify.backends import limits_of, opened
from sdzero.verify.sandbox import Job
settings = SandboxSettings(wall_seconds=0.5, output_megabytes=1)
with opened(settings) as one:
    before = len(os.listdir("/proc/self/fd"))
    for program in ("print(os.getuid())", "while True: pass", "while True: print('x' * 1000)", "os.abort()",
                    "print(sum(name.isdigit() for name in os.listdir('/proc')))", "open('/usr/x', 'w')"):
        command = (*one.python(), "-c", "import os\\n" + program)
        done = one.run(Job(command, limits_of(settings)))
        print(done.ending, done.exit_code, done.stdout[:20].split())
    talk = ("import sys; print(6, flush=True); sys.exit(int(input()))", "print(7 * int(input()))")
    pair = [Job((*one.python(), "-c", words), limits_of(settings)) for words in talk]
    print(one.run_pair(*pair)[0].exit_code, len(os.listdir("/proc/self/fd")) - before)
"""


def test_it_works_for_an_ordinary_user_too() -> None:
    lines = run_as_ordinary_user(AS_ORDINARY_USER).splitlines()
    assert lines[0].startswith("exited 0 [b'")
    assert lines[1:] == [
        "timeout None []",
        "output None [b'xxxxxxxxxxxxxxxxxxxx']",
        "exited 134 []",
        "exited 0 [b'2']",
        "exited 1 []",
        "42 0",
    ]


def test_unsafe_has_no_isolation_and_says_so() -> None:
    with opened(SandboxSettings(backend="unsafe")) as unsafe:
        assert "NO ISOLATION" in unsafe.describe()
        assert int(said(unsafe, "import os\nprint(os.getppid())")) == os.getpid()
        assert run(unsafe, "while True: pass", wall_seconds=0.3).ending is Ending.TIMEOUT
        assert run(unsafe, "while True: print('x' * 1000)").ending is Ending.OUTPUT
        assert run(unsafe, "import os\nos.abort()").exit_code == 128 + signal.SIGABRT
        talk = [Job((*unsafe.python(), "-c", program), LIMITS) for program in (ASKS, DOUBLES)]
        assert unsafe.run_pair(*talk)[0].stderr == b"2\n4\n6\n"
        place = Path(unsafe.place("main.py"))
        assert place.exists()
    assert not place.exists()
