"""The sandbox by docker or podman for real, in an image made of this machine's own Python."""

import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify.backends import limits_of, opened
from sdzero.verify.interpreter import find_interpreter
from sdzero.verify.sandbox import Ending, Finished, Job, Sandbox

LEFT_OUT = {"__pycache__", "test", "idlelib", "ensurepip", "tkinter", "site-packages", "dist-packages"}
WORKS = (
    "run --rm --pull never --network none --memory 64m --pids-limit 9"
    " --ulimit nofile=99:99 --ulimit nproc=4096:4096"
)
SECONDS = 120.0


def _image_of_this_machine() -> bytes:
    """An archive with a shell, env, the interpreter, its library, and what these link to."""
    interpreter = find_interpreter(None)
    executable, version = interpreter.executable, ".".join(interpreter.version.split(".")[:2])
    library = Path(interpreter.prefix) / "lib" / f"python{version}"
    programs = ["/bin/sh", "/usr/bin/env", executable]
    linked = [*programs, *map(str, library.glob("lib-dynload/*.so"))]
    told = subprocess.run(["ldd", *linked], capture_output=True, text=True).stdout
    libraries = {word for word in told.split() if word.startswith("/") and not word.endswith(":")}
    files = {path: Path(path).resolve() for path in {*programs, *libraries}}
    folders = {str(parent) for path in (*files, str(library)) for parent in Path(path).parents}
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for folder in sorted(folders - {"/"}):
            entry = tarfile.TarInfo(folder.lstrip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for path, source in files.items():
            archive.add(source, path.lstrip("/"))
        link = tarfile.TarInfo("bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, executable
        archive.addfile(link)
        archive.add(
            library,
            str(library).lstrip("/"),
            filter=lambda entry: None if LEFT_OUT & set(Path(entry.name).parts) else entry,
        )
    return content.getvalue()


def _call(*command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, input=stdin, capture_output=True, timeout=SECONDS)


@pytest.fixture(scope="module", params=["docker", "podman"])
def settings(request: pytest.FixtureRequest) -> Iterator[SandboxSettings]:
    """Of a client that runs containers here; skips where it does not."""
    name, image = request.param, f"sdzero-test-{os.getpid()}"
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    if _call(name, "info").returncode != 0:
        pytest.skip(f"{name} does not answer")
    imported = _call(name, "import", "-", image, stdin=_image_of_this_machine())
    assert imported.returncode == 0, imported.stderr
    try:
        tried = _call(name, *WORKS.split(), image, "/bin/sh", "-c", "exit 0")
        if tried.returncode != 0:
            pytest.skip(f"{name} runs no container here: {tried.stderr.decode().strip()[-300:]}")
        yield SandboxSettings(
            backend=name, image=image, memory_megabytes=128, processes=16, disk_megabytes=8, cpu_seconds=5
        )
    finally:
        _call(name, "rmi", "--force", image)


@pytest.fixture(scope="module")
def sandbox(settings: SandboxSettings) -> Iterator[Sandbox]:
    with opened(settings) as made:
        yield made
    left = _call(settings.backend, "ps", "--all", "--quiet", "--filter", "label=sdzero")
    assert left.stdout == b"", "containers are left behind"


def _job(sandbox: Sandbox, settings: SandboxSettings, source: str, stdin: bytes = b"", **limits: Any) -> Job:
    given = replace(limits_of(settings), **limits)
    return Job((*sandbox.python(), sandbox.place("main.py")), given, {"main.py": source.encode()}, stdin)


def _run(sandbox: Sandbox, settings: SandboxSettings, source: str, **more: Any) -> Finished:
    return sandbox.run(_job(sandbox, settings, source, **more))


def test_a_program_runs(sandbox: Sandbox, settings: SandboxSettings) -> None:
    source = "import sys\nprint(len(sys.stdin.buffer.read()))\nsys.exit(7)"
    done = _run(sandbox, settings, source, stdin=b"\x10\x11" * 500_000)  # control P, control Q: no detaching
    assert (done.ending, done.exit_code, done.stdout, done.stderr) == (Ending.EXITED, 7, b"1000000\n", b"")


def test_a_pair_talks(sandbox: Sandbox, settings: SandboxSettings) -> None:
    judge = "print(21, flush=True)\nassert input() == '42'"
    answer = "print(2 * int(input()), flush=True)\nimport time\ntime.sleep(60)"
    judged, answered = sandbox.run_pair(_job(sandbox, settings, judge), _job(sandbox, settings, answer))
    assert (judged.exit_code, judged.stderr) == (0, b"")
    assert (answered.ending, answered.exit_code) == (Ending.EXITED, None)


def test_only_the_private_folders_can_be_written(sandbox: Sandbox, settings: SandboxSettings) -> None:
    source = """
import json, os
def writes(path):
    try:
        open(path, "a").close()
    except OSError:
        return False
    return True
paths = ["/work/x", "/tmp/x", "/x", "/program/x", "/program/main.py", "/etc/x", "/dev/x", "/dev/shm/x"]
paths += ["/run/x", "/var/tmp/x"]
print(json.dumps([[path for path in paths if writes(path)], os.getuid(), os.listdir("/program")]))
"""
    done = _run(sandbox, settings, source)
    assert json.loads(done.stdout) == [["/work/x", "/tmp/x"], 65534, ["main.py"]]


def test_there_are_no_network_and_no_rights(sandbox: Sandbox, settings: SandboxSettings) -> None:
    source = """
import json, os
interfaces = [line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]]
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
rights = [status[key].strip() for key in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")]
print(json.dumps([interfaces, *rights]))
"""
    done = _run(sandbox, settings, source)
    nothing = "0" * 16
    interfaces, *rights = json.loads(done.stdout)
    assert rights == [nothing, nothing, "1", "2"]
    assert "eth0" not in interfaces
    away = "import socket\nsocket.create_connection(('192.0.2.1', 80), 1)"
    done = _run(sandbox, settings, away)
    assert done.exit_code == 1
    assert b"unreachable" in done.stderr


def test_limits_hold(sandbox: Sandbox, settings: SandboxSettings) -> None:
    bomb = "import os, time\nfor n in range(99):\n    if os.fork() == 0:\n        time.sleep(9)"
    done = _run(sandbox, settings, bomb)
    assert b"BlockingIOError" in done.stderr
    done = _run(sandbox, settings, "x = bytearray(200 << 20)")
    assert b"MemoryError" in done.stderr
    shared = "import os, time\nfor n in range(3): os.fork()\nx = b'x' * (60 << 20)\ntime.sleep(1)\nprint(1)"
    done = _run(sandbox, settings, shared)
    assert done.ending == Ending.MEMORY or done.stdout.count(b"1") < 8
    done = _run(sandbox, settings, "open('/work/x', 'wb').write(bytes(9 << 20))")
    assert b"No space left" in done.stderr
    done = _run(sandbox, settings, "while True: pass", cpu_seconds=1)
    assert (done.ending, done.exit_code) == (Ending.EXITED, 152)
    done = _run(sandbox, settings, "import time\ntime.sleep(60)", wall_seconds=1.0)
    assert (done.ending, done.exit_code) == (Ending.TIMEOUT, None)
    done = _run(sandbox, settings, "while True: print('x' * 10000)", output_megabytes=1)
    assert (done.ending, done.exit_code) == (Ending.OUTPUT, None)
