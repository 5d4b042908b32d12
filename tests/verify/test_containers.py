"""The sandbox by docker or podman, against a stand-in for the client."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import sdzero.verify.containers as containers
from sdzero.errors import UserError
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify.backends import limits_of, opened
from sdzero.verify.bubblewrap import ENVIRONMENT
from sdzero.verify.containers import ContainerSandbox
from sdzero.verify.sandbox import Ending, Finished, Job, Sandbox, SandboxError

CLIENT = """#!{python} -IS
import contextlib, json, os, shutil, signal, subprocess, sys
state, name = "{state}", os.path.basename(sys.argv[0])
verb, arguments = sys.argv[1], sys.argv[2:]
with open(state + "/calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
with open(state + "/behaviour") as file:
    behaviour = json.load(file)
if verb in behaviour.get("fails", {{}}):
    sys.exit(behaviour["fails"][verb])
home = state + "/containers/" + (arguments[-1] if arguments else "")
if verb == "--version":
    print(name, "version 1")
elif verb == "info":
    print(json.dumps(behaviour["info"]))
elif verb == "image":
    if arguments[1] != "image":
        sys.exit("Error: no such image: " + arguments[1])
    print(json.dumps([{{"Id": "sha256:1234", "Config": behaviour["image"]}}]))
elif verb == "create":
    home = state + "/containers/" + arguments[arguments.index("--name") + 1]
    os.makedirs(home + "/work")
    os.mkdir(home + "/program")
    command = arguments[arguments.index("sha256:1234") + 1:]
    places = [word.replace("/program/", home + "/program/").replace("cd /work", "cd " + home + "/work")
              for word in command]
    json.dump(places, open(home + "/command", "w"))
elif verb == "cp":
    import tarfile
    container, _, folder = arguments[-1].partition(":")
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        archive.extractall(state + "/containers/" + container + folder, filter="data")
elif verb == "start":
    if behaviour.get("never"):
        signal.pause()
    process = subprocess.Popen(["/bin/sh", *json.load(open(home + "/command"))], start_new_session=True)
    print(process.pid, file=open(home + "/pid", "w"))
    code = process.wait()
    print(code, file=open(home + "/code", "w"))
    sys.exit(code)
elif verb == "inspect":
    never = "0001-01-01T00:00:00Z"
    told = {{"Status": "created", "OOMKilled": False, "StartedAt": never, "FinishedAt": never, "ExitCode": 0}}
    if os.path.exists(home + "/pid"):
        told |= {{"Status": "running", "StartedAt": "2024-01-01T00:00:01.123456789+02:00"}}
    if os.path.exists(home + "/code"):
        told |= {{"Status": "exited", "FinishedAt": "2024-01-01T00:00:01.133456789+02:00"}}
        told["ExitCode"] = int(open(home + "/code").read())
    print(json.dumps(told | behaviour.get("told", {{}})))
elif verb == "ps":
    print(*os.listdir(state + "/containers"), sep="\\n")
elif verb == "rm":
    for container in arguments[arguments.index("--volumes") + 1:]:
        home = state + "/containers/" + container
        if not os.path.exists(home):
            sys.exit("Error: no such container")
        if os.path.exists(home + "/pid") and not os.path.exists(home + "/code"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(open(home + "/pid").read()), signal.SIGKILL)
        shutil.rmtree(home)
else:
    sys.exit("unknown: " + verb)
"""
DOCKER_INFO = {
    "MemoryLimit": True,
    "SwapLimit": True,
    "PidsLimit": True,
    "SecurityOptions": ["name=seccomp,profile=default"],
}
PODMAN_INFO = {"host": {"cgroupControllers": ["memory", "pids"], "security": {"seccompEnabled": True}}}


class StandIn:
    """A client that runs a container's command itself, and keeps in a folder what was asked of it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.state = name, folder / "state"
        (self.state / "containers").mkdir(parents=True)
        self.folder = folder / "bin"
        self.folder.mkdir()
        program = self.folder / name
        program.write_text(CLIENT.format(python=sys.executable, state=self.state))
        program.chmod(0o755)
        path = f"PATH={Path(sys.executable).parent}:/usr/bin:/bin"
        image = {"Env": [path, "SECRET=1"], "Volumes": None}
        self.behaviour: dict[str, Any] = {
            "info": DOCKER_INFO if name == "docker" else PODMAN_INFO,
            "image": image,
        }
        self.behaves()

    def behaves(self, **changes: Any) -> None:
        """Change what it does from now on."""
        self.behaviour |= changes
        (self.state / "behaviour").write_text(json.dumps(self.behaviour))

    def settings(self, image: str = "image", **changes: Any) -> SandboxSettings:
        return SandboxSettings(backend=self.name, image=image, **changes)

    def calls(self, verb: str) -> list[list[str]]:
        """The arguments of every call of a verb so far."""
        lines = (self.state / "calls").read_text().splitlines()
        return [call[1:] for call in map(json.loads, lines) if call[0] == verb]

    def left(self) -> list[str]:
        """The containers that are there now."""
        return os.listdir(self.state / "containers")


@pytest.fixture(params=["docker", "podman"])
def client(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn(tmp_path, request.param)
    monkeypatch.setenv("PATH", f"{stand_in.folder}:/usr/bin:/bin")
    monkeypatch.setattr(containers, "START_SECONDS", 0.3)
    return stand_in


@pytest.fixture
def sandbox(client: StandIn) -> Iterator[ContainerSandbox]:
    made = ContainerSandbox(client.settings())
    yield made
    made.close()


def program(sandbox: Sandbox, source: str, stdin: bytes = b"", **limits: Any) -> Job:
    usual = {"wall_seconds": 20.0} | limits
    given = replace(limits_of(SandboxSettings()), **usual)
    return Job((*sandbox.python(), sandbox.place("main.py")), given, {"main.py": source.encode()}, stdin)


def pairs(arguments: list[str]) -> set[tuple[str, str]]:
    return set(itertools.pairwise(arguments))


def test_every_protection_is_asked_for(client: StandIn) -> None:
    settings = client.settings(memory_megabytes=100, processes=7, disk_megabytes=5, file_megabytes=3)
    made = ContainerSandbox(settings)
    made.run(Job((*made.python(), "-c", ""), limits_of(settings), {"a": b""}))
    made.close()
    (created,) = client.calls("create")
    given = pairs(created)
    for option in (
        ("--pull", "never"),
        ("--network", "none"),
        ("--ipc", "none"),
        ("--log-driver", "none"),
        ("--cap-drop", "ALL"),
        ("--security-opt", "no-new-privileges"),
        ("--user", "65534:65534"),
        ("--memory", "116m"),
        ("--memory-swap", "116m"),
        ("--pids-limit", "9"),
        ("--ulimit", "cpu=10:11"),
        ("--ulimit", "nofile=256:256"),
        ("--ulimit", f"fsize={3 << 20}:{3 << 20}"),
        ("--ulimit", "core=1:1"),
        ("--ulimit", f"stack={64 << 20}:{64 << 20}"),
        ("--entrypoint", "/bin/sh"),
    ):
        assert option in given, option
    assert "--read-only" in created
    assert not {"--privileged", "--volume", "-v", "--cap-add", "--env", "--publish"} & set(created)
    tmpfs = [value for option, value in given if option == "--tmpfs"]
    assert {value.partition(":")[0] for value in tmpfs} == {"/work", "/tmp"}
    assert all("size=5m" in value and "nosuid" in value and "nodev" in value for value in tmpfs)
    mounts = [value for option, value in given if option == "--mount"]
    writable_tmpfs = "--read-only-tmpfs=false"
    if client.name == "podman":
        assert mounts == ["type=volume,destination=/program,ro"]
        assert writable_tmpfs in created
        assert ("--detach-keys", "") in pairs(client.calls("start")[0])
    else:
        assert mounts == ["type=volume,destination=/program"]
        assert writable_tmpfs not in created


def test_a_program_reads_its_files_and_input(client: StandIn, sandbox: ContainerSandbox) -> None:
    source = "import os, sys\nprint(input(), os.path.basename(os.getcwd()))\nsys.exit(125)"
    done = sandbox.run(program(sandbox, source, b"hello\n"))
    assert (done.ending, done.exit_code, done.stdout) == (Ending.EXITED, 125, b"hello work\n")
    assert done.seconds == pytest.approx(0.01)
    assert client.left() == []


def test_files_are_roots_and_not_to_be_written() -> None:
    packed = containers._archive({"main": b"x", "part/module.py": b"y"})
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        seen = {member.name: (member.uid, member.mode, member.isdir()) for member in archive}
    assert seen == {
        "part": (0, 0o755, True),
        "main": (0, 0o555, False),
        "part/module.py": (0, 0o555, False),
    }


def test_the_environment_is_that_of_bubblewrap(client: StandIn, sandbox: ContainerSandbox) -> None:
    done = sandbox.run(
        program(
            sandbox,
            "import json, os, resource\nprint(json.dumps([dict(os.environ),"
            " resource.getrlimit(resource.RLIMIT_AS)]))",
            memory_megabytes=512,
        )
    )
    environment, addresses = json.loads(done.stdout)
    environment.pop("LC_CTYPE", None)
    assert environment.keys() == ENVIRONMENT.keys()
    assert environment | {"PATH": ""} == ENVIRONMENT | {"PATH": ""}
    assert addresses == [512 << 20, 512 << 20]


def test_what_is_stopped_is_removed(client: StandIn, sandbox: ContainerSandbox) -> None:
    sleeper = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    done = sandbox.run(program(sandbox, sleeper, wall_seconds=1.5))
    assert (done.ending, done.exit_code) == (Ending.TIMEOUT, None)
    assert client.left() == []
    _is_gone(int(done.stdout))
    done = sandbox.run(program(sandbox, "while True: print('x' * 10000)", output_megabytes=1))
    assert (done.ending, done.exit_code) == (Ending.OUTPUT, None)
    assert client.left() == []


def _is_gone(pid: int) -> None:
    give_up = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < give_up, f"process {pid} is still there"
        time.sleep(0.01)


def test_a_pair_talks(client: StandIn, sandbox: ContainerSandbox) -> None:
    judge = "print('6 7', flush=True)\nassert input() == '42'\nraise SystemExit(3)"
    answer = (
        "a, b = map(int, input().split())\nprint(a * b, flush=True)\ninput()\nimport time\ntime.sleep(60)"
    )
    judged, answered = sandbox.run_pair(program(sandbox, judge), program(sandbox, answer))
    assert (judged.ending, judged.exit_code) == (Ending.EXITED, 3)
    assert answered.ending == Ending.EXITED
    assert client.left() == []


def test_the_daemon_tells_how_it_ended(client: StandIn, sandbox: ContainerSandbox) -> None:
    def run() -> Finished:
        return sandbox.run(program(sandbox, "raise SystemExit(137)"))

    done = run()
    assert (done.ending, done.exit_code) == (Ending.EXITED, 137)  # not every 137 is want of memory
    client.behaves(told={"OOMKilled": True})
    done = run()
    assert (done.ending, done.exit_code) == (Ending.MEMORY, None)
    client.behaves(told={"FinishedAt": "2024-01-01T00:00:00+02:00"})
    assert run().seconds == 0.0  # its clock was set back
    client.behaves(told={"Status": "running"})
    with pytest.raises(SandboxError, match="did not run the program \\(running\\)"):
        run()
    assert client.left() == []


def test_the_start_of_a_container_is_not_counted(
    client: StandIn, sandbox: ContainerSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client takes longer than the limit; the daemon says that the program did not, or that it did."""
    monkeypatch.setattr(containers, "START_SECONDS", 20.0)
    job = program(sandbox, "import time\ntime.sleep(0.25)", wall_seconds=0.2)
    assert sandbox.run(job).ending == Ending.EXITED
    client.behaves(told={"FinishedAt": "2024-01-01T00:00:02+02:00"})
    assert sandbox.run(job).ending == Ending.TIMEOUT


def test_a_container_that_never_starts_is_a_fault_of_the_sandbox(
    client: StandIn, sandbox: ContainerSandbox
) -> None:
    client.behaves(never=True)
    with pytest.raises(SandboxError, match="did not run the program \\(created\\)"):
        sandbox.run(program(sandbox, "", wall_seconds=0.1))
    assert client.left() == []


@pytest.mark.parametrize("verb", ["create", "cp", "start", "inspect"])
def test_a_failing_client_is_a_fault_of_the_sandbox(
    client: StandIn, sandbox: ContainerSandbox, verb: str
) -> None:
    client.behaves(fails={verb: "Error: the disk is full"})
    with pytest.raises(SandboxError, match=r"failed with 1: Error: the disk|\(created\): Error: the disk"):
        sandbox.run(program(sandbox, ""))
    assert client.left() == []
    client.behaves(fails={})
    assert sandbox.run(program(sandbox, "print(1)")).stdout == b"1\n"


def test_what_cannot_be_removed_is_told_and_tried_again(client: StandIn) -> None:
    sandbox = ContainerSandbox(client.settings())
    client.behaves(fails={"rm": "Error: no"})
    with pytest.raises(SandboxError, match=f"`{client.name} rm` failed with 1: Error: no"):
        sandbox.run(program(sandbox, "print(1)"))
    assert len(client.left()) == 1
    client.behaves(fails={})
    sandbox.close()
    assert client.left() == []


def test_nothing_outlives_a_worker_that_is_killed(client: StandIn) -> None:
    script = (
        "import sys\n"
        "from sdzero.recipe_sandbox import SandboxSettings\n"
        "from sdzero.verify.backends import limits_of, opened\n"
        "from sdzero.verify.sandbox import Job\n"
        "settings = SandboxSettings(backend=sys.argv[1], image='image', wall_seconds=600)\n"
        "with opened(settings) as sandbox:\n"
        "    sleep = (*sandbox.python(), '-c', 'import time; time.sleep(600)')\n"
        "    sandbox.run(Job(sleep, limits_of(settings)))\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", script, client.name], start_new_session=True)
    pids = client.state / "containers"
    give_up = time.monotonic() + 20
    while not (found := list(pids.glob("*-2/pid"))) or not found[0].read_text():
        assert time.monotonic() < give_up, "the program does not start"
        time.sleep(0.02)
    pid = int(found[0].read_text())
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    while client.left():
        assert time.monotonic() < give_up, "the container is still there"
        time.sleep(0.02)
    _is_gone(pid)


def _refused(settings: SandboxSettings) -> str:
    with pytest.raises(UserError) as refused, opened(settings):
        pass
    return str(refused.value)


def test_what_is_missing_is_told_with_what_to_do(client: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    name = client.name
    told = _refused(client.settings(image="absent"))
    assert f"{name} has no image absent" in told
    assert f"`{name} pull absent`" in told
    assert f"`{name} load`" in told
    client.behaves(fails={"info": "Cannot connect to the Docker daemon"})
    told = _refused(client.settings())
    assert f"{name} does not answer" in told
    assert "Cannot connect" in told
    client.behaves(fails={}, image={"Volumes": {"/data": {}}})
    assert "declares volumes, which no limit holds for: /data" in _refused(client.settings())
    assert client.calls("create") == []
    monkeypatch.setenv("PATH", "/nowhere")
    told = _refused(client.settings())
    assert f"{name} is not installed" in told
    assert "apt-get install" in told


@pytest.mark.parametrize(
    ("lacking", "change"),
    [
        ("memory and the number of processes", {"cgroupControllers": []}),
        ("the number of processes", {"cgroupControllers": ["memory"], "PidsLimit": False}),
        ("system calls", {"security": {"seccompEnabled": False}, "SecurityOptions": ["name=apparmor"]}),
        ("system calls", {"security": {}, "SecurityOptions": ["name=seccomp,profile=unconfined"]}),
    ],
)
def test_limits_that_would_not_hold_are_refused(
    client: StandIn, lacking: str, change: dict[str, Any]
) -> None:
    if client.name == "podman":
        client.behaves(info={"host": PODMAN_INFO["host"] | change})
    else:
        absent = {"MemoryLimit": False, "PidsLimit": False} if change == {"cgroupControllers": []} else {}
        client.behaves(info=DOCKER_INFO | change | absent)
    assert f"{client.name} cannot limit {lacking} here" in _refused(client.settings())
