"""The sandbox by docker or podman: one container for each run, removed at its end.

A program runs as a user without rights in an image that is read-only, without network, and within limits of
memory, processes and disk that hold for the container as a whole. Its files go in as an archive through the
client, so the daemon may be anywhere and sees no path of this machine. Sources: docker-create(1),
docker-cp(1), podman-create(1), podman-start(1).
"""

import contextlib
import io
import json
import os
import resource
import secrets
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from sdzero.errors import UserError
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify.bubblewrap import ENVIRONMENT
from sdzero.verify.launching import resource_limits
from sdzero.verify.sandbox import (
    PROGRAM_FOLDER,
    WORK_FOLDER,
    Ending,
    Finished,
    Job,
    Running,
    Sandbox,
    SandboxError,
)

USER = "65534:65534"
LABEL = "sdzero"
OWNER = "sdzero.owner"
KEY = "verifier.sandbox.backend"
PATH = "/usr/local/bin:/usr/bin:/bin"
"""For an image that sets none."""

CLIENT_SECONDS = 60.0
"""How long one call of the client may take."""

START_SECONDS = 2.0
"""How long a container may take to start beyond the wall clock of its program; what counts against the
program is the time between start and end that the daemon measures."""

OWN_PROCESSES = 2
"""Beside the program's: the shell before it, one spare. The runtime starts within three."""

OWN_MEGABYTES = 16
"""Their memory."""

USER_PROCESSES = 4096
"""The kernel counts a user's processes over all containers together; each has a limit of its own."""

_ULIMITS = {
    resource.RLIMIT_CPU: "cpu",
    resource.RLIMIT_FSIZE: "fsize",
    resource.RLIMIT_STACK: "stack",
    resource.RLIMIT_NOFILE: "nofile",
    resource.RLIMIT_CORE: "core",
    resource.RLIMIT_MEMLOCK: "memlock",
    resource.RLIMIT_MSGQUEUE: "msgqueue",
}

_FIRST = f'cd {WORK_FOLDER} && ulimit -v "$1" || exit; shift; "$@"; exit $?'
"""The shell that is process 1: it buries orphans, and a signal that ends the program ends the program alone.
Docker knows no limit of addresses, so the shell sets it (kilobytes)."""

_GUARD = """
sweep() {
    found=$("$0" ps --all --quiet --filter "label=$1")
    if [ -n "$found" ]; then "$0" rm --force --volumes $found; fi
}
read -r _ || { sweep "$1"; sleep 3; }
sweep "$1"
"""
"""Waits for the end of the process that holds its standard input, then removes the containers of a label.

If that process died, a client of its may still be about to create one: hence the second sweep.
"""


class _InContainer(Running):
    """A run in a container; `client` is the process that carries its streams.

    To stop it, the client is killed: with nobody to read, the container's end would wait for its output. The
    container itself ends when it is removed, right after.
    """

    def __init__(
        self,
        job: Job,
        name: str,
        client: subprocess.Popen[bytes],
        stdout: int | None,
        stderr: int,
        remove: Callable[[str], None],
    ) -> None:
        super().__init__(job, os.pidfd_open(client.pid), stdout, stderr, client.kill)
        self.name, self._client, self._remove, self._removed = name, client, remove, False

    @property
    def deadline(self) -> float:
        """When its time is over, with what the start of a container takes."""
        return super().deadline + START_SECONDS

    def remove(self) -> None:
        """Kill and remove the container, unless that is done."""
        if not self._removed:
            self._remove(self.name)
            self._removed = True

    def close(self) -> None:
        """End and bury the client, and remove the container."""
        self._client.kill()
        self._client.wait()
        self.ended = True
        super().close()
        self.remove()


class ContainerSandbox(Sandbox):
    """Raises UserError, saying what to do, if the program, its daemon or the image is missing."""

    start_seconds = START_SECONDS

    def __init__(self, settings: SandboxSettings) -> None:
        assert settings.image is not None
        self.name = settings.backend
        self._program = _find(self.name)
        self._image_name = settings.image
        told = self._ask(self._no_daemon, "info", "--format", "{{json .}}")
        self._podman = "host" in told  # also where it is called docker
        _check_limits(self.name, told, self._podman)
        self._limits_swap = self._podman or bool(told.get("SwapLimit"))
        image = self._ask(self._no_image, "image", "inspect", settings.image)
        if volumes := image["Config"].get("Volumes"):
            raise UserError(
                f"the image declares volumes, which no limit holds for: {', '.join(volumes)}",
                f"verifier.sandbox.image: {settings.image}",
                "name an image without VOLUME",
            )
        self._image = image["Id"]
        inherited = dict(entry.partition("=")[::2] for entry in image["Config"].get("Env") or [])
        self._environment = ENVIRONMENT | {"PATH": inherited.get("PATH", PATH)}
        self._mark = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._started = 0
        # In a session of its own, so that what kills this process and its children leaves it.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, self._program, f"{OWNER}={self._mark}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def describe(self) -> str:
        """The version, the image, and whether memory may be swapped out beyond its limit."""
        version = subprocess.run([self._program, "--version"], capture_output=True, text=True).stdout.strip()
        image = f"{self._image_name} ({self._image.removeprefix('sha256:')[:12]})"
        swap = "" if self._limits_swap else ", but not in swap, which the machine does not count"
        return f"{version}, image {image}, user {USER}, memory limited in total{swap}"

    def versions(self) -> str:
        """The image, whatever its name: it holds interpreter and compiler."""
        return f"image {self._image}"

    def python(self) -> tuple[str, ...]:
        """The image's, in isolated mode: no user packages, no current folder on the path."""
        return ("python3", "-I")

    def _start(self, job: Job, stdin: int, stdout: int | None, slot: int) -> Running:
        self._started += 1
        name = f"sdzero-{self._mark}-{self._started}"
        try:
            self._must("create", *self._options(job), "--name", name, self._image, *self._first(job))
            if job.files:
                self._must("cp", "-", f"{name}:{PROGRAM_FOLDER}", stdin=_archive(job.files))
            return self._attach(job, name, stdin, stdout)
        except BaseException:
            self._call("rm", "--force", "--volumes", name)  # fails where nothing was created
            raise

    def _options(self, job: Job) -> list[str]:
        """The options of `create`."""
        limits = job.limits
        memory = f"{limits.memory_megabytes + OWN_MEGABYTES}m"
        space = f"rw,exec,nosuid,nodev,size={limits.disk_megabytes}m,mode=1777"
        if not self._podman:
            space += ",uid=65534,gid=65534"  # the mode may be that of the image's own folder
        options = ["--interactive", "--pull", "never", "--label", LABEL, "--label", f"{OWNER}={self._mark}"]
        options += ["--network", "none", "--ipc", "none", "--hostname", "sandbox", "--log-driver", "none"]
        options += ["--no-healthcheck", "--stop-timeout", "0", "--entrypoint", "/bin/sh"]
        options += ["--user", USER, "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        options += ["--read-only", "--tmpfs", f"{WORK_FOLDER}:{space}", "--tmpfs", f"/tmp:{space}"]
        options += ["--workdir", "/", "--memory", memory, "--memory-swap", memory]
        options += ["--pids-limit", str(limits.processes + OWN_PROCESSES)]
        options += ["--ulimit", f"nproc={USER_PROCESSES}:{USER_PROCESSES}"]
        for which, soft, hard in resource_limits(limits):
            if which in _ULIMITS:
                options += ["--ulimit", f"{_ULIMITS[which]}={soft}:{hard}"]
        if self._podman:
            options += ["--read-only-tmpfs=false", "--http-proxy=false"]
        if job.files:
            # Docker copies nothing into what is read-only, but there the files are root's; podman gives them
            # to the user, but copies into what is read-only for the program.
            read_only = ",ro" if self._podman else ""
            options += ["--mount", f"type=volume,destination={PROGRAM_FOLDER}{read_only}"]
        return options

    def _first(self, job: Job) -> list[str]:
        """The arguments of the container's shell: they end with the job's command."""
        environment = [f"{name}={value}" for name, value in self._environment.items()]
        kilobytes = str(job.limits.memory_megabytes * 1024)
        return ["-c", _FIRST, "sh", kilobytes, "/usr/bin/env", "-i", *environment, *job.command]

    def _attach(self, job: Job, name: str, stdin: int, stdout: int | None) -> Running:
        command = [self._program, "start", "--attach", "--interactive"]
        if self._podman:
            # Else two bytes of the input, control P and Q, would cut the program off from the rest of it.
            command += ["--detach-keys", ""]
        with contextlib.ExitStack() as on_fault, contextlib.ExitStack() as always:
            stdout_to_read, written = os.pipe() if stdout is None else (None, stdout)
            stderr_to_read, stderr = os.pipe()
            for descriptor in (stderr, *([written] if stdout is None else [])):
                always.callback(os.close, descriptor)
            for descriptor in (stderr_to_read, *([] if stdout_to_read is None else [stdout_to_read])):
                on_fault.callback(os.close, descriptor)
            client = subprocess.Popen([*command, name], stdin=stdin, stdout=written, stderr=stderr)
            on_fault.pop_all()
        return _InContainer(job, name, client, stdout_to_read, stderr_to_read, self._remove)

    def _remove(self, name: str) -> None:
        self._must("rm", "--force", "--volumes", name)

    def _finish(self, running: Running, slot: int) -> Finished:
        assert isinstance(running, _InContainer)
        try:
            ending, code, seconds = self._judged(running)
        finally:
            running.remove()
        return Finished(ending, code, bytes(running.stdout), bytes(running.stderr), seconds)

    def _judged(self, running: _InContainer) -> tuple[Ending, int | None, float]:
        """How a run ended, by the daemon's word unless it was stopped, its exit code and its time.

        Raises SandboxError if it never began: slowness of the machine is no fault of the program.
        """
        if running.ending not in (None, Ending.TIMEOUT):
            return running.ending, None, running.seconds
        asked = ("--type", "container", "--format", "{{json .State}}", running.name)
        state = json.loads(self._must("inspect", *asked))
        started, finished = (datetime.fromisoformat(state[key]) for key in ("StartedAt", "FinishedAt"))
        has_ended = state["Status"] in ("exited", "stopped")
        if started.year == 1 or not (has_ended or running.ending):
            said = state.get("Error") or bytes(running.stderr[-300:]).decode(errors="replace").strip()
            raise SandboxError(f"{self.name} did not run the program ({state['Status']}): {said}")
        if running.ending is not None:
            return running.ending, None, running.seconds
        # The daemon's clock may have been set meanwhile.
        seconds = min(max((finished - started).total_seconds(), 0.0), running.seconds)
        if state["OOMKilled"]:
            return Ending.MEMORY, None, seconds
        if seconds > running.limits.wall_seconds:
            return Ending.TIMEOUT, None, seconds
        return Ending.EXITED, state["ExitCode"], seconds

    def _call(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                [self._program, *arguments], input=stdin, capture_output=True, timeout=CLIENT_SECONDS
            )
        except subprocess.TimeoutExpired as fault:
            raise SandboxError(
                f"`{self.name} {arguments[0]}` does not end within {CLIENT_SECONDS:g} seconds"
            ) from fault

    def _must(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """What the client printed. Raises SandboxError if it failed."""
        done = self._call(*arguments, stdin=stdin)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()
            raise SandboxError(f"`{self.name} {arguments[0]}` failed with {done.returncode}: {said[-300:]}")
        return done.stdout

    def _ask(self, fault: Callable[[str], UserError], *arguments: str) -> dict[str, Any]:
        """What the client knows about something, before the first run. Raises the fault, given its words."""
        try:
            told = json.loads(self._must(*arguments))
        except SandboxError as cause:
            raise fault(str(cause)) from cause
        found: dict[str, Any] = told[0] if isinstance(told, list) else told
        if found.get("ServerErrors"):
            raise fault("; ".join(found["ServerErrors"]))
        return found

    def _no_daemon(self, said: str) -> UserError:
        start = (
            "run `podman info` and mend what it says"
            if self.name == "podman"
            else "start its daemon (systemctl start docker) and let this user reach it (group docker)"
        )
        return UserError(f"{self.name} does not answer: {said}", f"{KEY}={self.name}", start)

    def _no_image(self, said: str) -> UserError:
        name = self._image_name
        return UserError(
            f"{self.name} has no image {name}: {said}",
            f"verifier.sandbox.image: {name}",
            f"nothing is fetched while programs run: `{self.name} pull {name}` beforehand, or"
            f" `{self.name} load` a file that `{self.name} save {name}` made on another machine",
        )

    def close(self) -> None:
        """End the guard, which removes what might be left."""
        assert self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.write(b"end\n")
            self._guard.stdin.close()
        self._guard.wait(timeout=2 * CLIENT_SECONDS)


def _archive(files: Mapping[str, bytes]) -> bytes:
    """The files as an archive, root's and for reading (and running) alone."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        ways = {str(way) for name in files for way in PurePosixPath(name).parents} - {"."}
        for way in sorted(ways):
            folder = tarfile.TarInfo(way)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
        for name, data in files.items():
            file = tarfile.TarInfo(name)
            file.size, file.mode = len(data), 0o555
            archive.addfile(file, io.BytesIO(data))
    return content.getvalue()


def _find(backend: str) -> str:
    program = shutil.which(backend)
    if program is None:
        raise UserError(
            f"programs cannot be run in isolation: {backend} is not installed",
            f"{KEY}={backend}",
            f"install {backend} (Debian, Ubuntu: apt-get install"
            f" {'podman' if backend == 'podman' else 'docker.io'}), or name another backend",
        )
    return program


def _check_limits(backend: str, told: dict[str, Any], podman: bool) -> None:
    """Raises UserError if the daemon would limit less than it is asked to, for which it would only warn."""
    if podman:
        controllers = told["host"].get("cgroupControllers") or []
        memory, processes = "memory" in controllers, "pids" in controllers
        filtered = bool(told["host"].get("security", {}).get("seccompEnabled"))
    else:
        memory, processes = bool(told.get("MemoryLimit")), bool(told.get("PidsLimit"))
        options = told.get("SecurityOptions") or []
        filtered = any("seccomp" in option and "unconfined" not in option for option in options)
    kept = {"memory": memory, "the number of processes": processes, "system calls": filtered}
    lacking = [what for what, is_limited in kept.items() if not is_limited]
    if lacking:
        raise UserError(
            f"{backend} cannot limit {' and '.join(lacking)} here",
            f"{KEY}={backend}",
            "give it control groups (version 2, delegated to your user if it runs without root) and seccomp",
        )
