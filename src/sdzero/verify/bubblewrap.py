"""The sandbox by bubblewrap: namespaces, a filter of system calls, control groups, and no privileges.

A program sees /usr and the interpreter read-only, an empty writable folder in memory, a /proc of its own
processes and the pseudo devices; it has no network, and runs as a user without rights. Nothing is written to
the machine's disks: programs come in through memory and are gone with their namespaces. Source:
https://github.com/containers/bubblewrap (0.8 or newer).
"""

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from sdzero.errors import UserError
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify.interpreter import find_interpreter
from sdzero.verify.launching import Launcher
from sdzero.verify.sandbox import (
    INSTALL_BUBBLEWRAP,
    MEBIBYTE,
    PROGRAM_FOLDER,
    WORK_FOLDER,
    Ending,
    Finished,
    Job,
    Limits,
    Running,
    Sandbox,
    SandboxError,
    sealed,
)
from sdzero.verify.seccomp import filter_program

USERS = range(61_000, 61_184)
"""When this process is root, programs run as one of these users, which neither Debian nor systemd uses."""

INSTALL = f"{INSTALL_BUBBLEWRAP}, or use docker or podman"
KEY = "verifier.sandbox.backend"
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": WORK_FOLDER,
    "TMPDIR": WORK_FOLDER,
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
}
"""All that a program sees of an environment. One arena: threads would reserve 128 MB of addresses each."""

DEVICES = ("null", "zero", "full", "random", "urandom")
_NEEDED = ("--json-status-fd", "--size", "--perms", "--ro-bind-data", "--disable-userns", "--seccomp")
_SMALL = 64 * 1024


class BubblewrapSandbox(Sandbox):
    """Raises UserError, saying what to install, if bubblewrap is missing or too old."""

    name = "bubblewrap"

    def __init__(self, settings: SandboxSettings) -> None:
        self._program = _find_bubblewrap()
        self._version = _version(self._program)
        self._interpreter = find_interpreter(settings.python)
        self._packages = _packages_folder(settings.packages)
        self._as_root = os.geteuid() == 0
        # Of each slot its own: two programs that start at the same time would read one from two ends.
        self._filters = [sealed(filter_program()) for _ in range(2)]
        self._launchers = [Launcher(slot) for slot in ("judge", "program")]
        self._status: dict[int, int] = {}

    def describe(self) -> str:
        """The version, the user, and whether memory is limited in total."""
        user = f"user {self._user(0)}" if self._as_root else "a user namespace"
        total = "in total" if self._launchers[0].group else "for each process (no control group may be made)"
        return f"{self._version}, Python {self._interpreter.version}, {user}, memory limited {total}"

    def versions(self) -> str:
        """Of bubblewrap and of the interpreter."""
        return f"{self._version}, Python {self._interpreter.version}"

    def python(self) -> tuple[str, ...]:
        """Isolated mode: no user packages, no current folder on the path; `site` only where it has work."""
        return (self._interpreter.executable, "-I", *([] if self._packages else ["-S"]))

    def _user(self, slot: int) -> int:
        """Of each slot its own: the kernel counts the processes of a user."""
        return USERS[(2 * os.getpid() + slot) % len(USERS)]

    @cached_property
    def _view(self) -> list[str]:
        """The arguments that are the same for every job: what a program sees of the machine."""
        arguments = ["--unshare-ipc", "--unshare-pid", "--die-with-parent", "--new-session", "--clearenv"]
        if not all(launcher.apart for launcher in self._launchers):
            arguments += ["--unshare-net", "--unshare-cgroup-try", "--unshare-uts", "--hostname", "sandbox"]
        if self._as_root:
            # Only to change the user further on; that gives them up.
            kept = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
            arguments += ["--cap-drop", "ALL", *(word for name in kept for word in ("--cap-add", name))]
        else:
            arguments += ["--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
        for name, value in ENVIRONMENT.items():
            arguments += ["--setenv", name, value]
        arguments += ["--ro-bind", "/usr", "/usr"]
        for folder in ("bin", "sbin", "lib", "lib32", "lib64"):
            path = Path("/") / folder
            if path.is_symlink():
                arguments += ["--symlink", os.readlink(path), str(path)]
            elif path.is_dir():
                arguments += ["--ro-bind", str(path), str(path)]
        # What bubblewrap makes on the way to a place would be for root alone.
        ways = ["/etc", "/dev", PROGRAM_FOLDER, *_ways(self._interpreter.folders)]
        for way in ways:
            arguments += ["--perms", "0755", "--dir", way]
        for file in ("/etc/ld.so.cache", "/etc/alternatives"):
            arguments += ["--ro-bind-try", file, file]
        for folder in self._interpreter.folders:
            arguments += ["--ro-bind", folder, folder]
        for site in self._interpreter.sites:
            if self._packages:
                arguments += ["--ro-bind", self._packages, site]
            else:
                arguments += ["--size", str(_SMALL), "--tmpfs", site]
        arguments += ["--proc", "/proc"]
        for device in DEVICES:
            arguments += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
        for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
            arguments += ["--symlink", f"/proc/self/{target}", f"/dev/{name}"]
        return [*arguments, "--symlink", WORK_FOLDER.lstrip("/"), "/tmp"]

    def _start(self, job: Job, stdin: int, stdout: int | None, slot: int) -> Running:
        limits, launcher = job.limits, self._launchers[slot]
        os.lseek(self._filters[slot], 0, os.SEEK_SET)
        status, told = os.pipe()
        stdout_to_read, written = os.pipe() if stdout is None else (None, stdout)
        stderr_to_read, stderr = os.pipe()
        files = [sealed(content) for content in job.files.values()]
        # In this order they have the numbers 0, 1, 2, ... in the program that is started.
        descriptors = [stdin, written, stderr, self._filters[slot], told, *files]
        options = [*self._view, "--seccomp", "3", "--json-status-fd", "4"]
        size = str(limits.disk_megabytes * MEBIBYTE)
        options += ["--size", size, "--perms", "0777", "--tmpfs", WORK_FOLDER]
        for number, name in enumerate(job.files, start=5):
            options += ["--perms", "0555", "--ro-bind-data", str(number), f"{PROGRAM_FOLDER}/{name}"]
        options += ["--chdir", WORK_FOLDER, "--remount-ro", "/"]
        command = [*self._unprivileged(limits, slot), *job.command]
        room = _with_room(limits, job.files.values())
        try:
            process = launcher.start(self._program, options, command, descriptors, room)
        except SandboxError:
            for descriptor in (status, stderr_to_read, *([] if stdout_to_read is None else [stdout_to_read])):
                os.close(descriptor)
            raise
        finally:
            for descriptor in (told, stderr, *([written] if stdout is None else []), *files):
                os.close(descriptor)
        if slot in self._status:  # of a run that did not come to its end
            os.close(self._status[slot])
        self._status[slot] = status

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)

        return Running(job, process, stdout_to_read, stderr_to_read, kill)

    def _unprivileged(self, limits: Limits, slot: int) -> list[str]:
        """The command that gives up rights, or sets what only an ordinary user can, then runs the rest."""
        if not self._as_root:
            return ["/usr/bin/prlimit", f"--nproc={limits.processes}"]
        user = str(self._user(slot))
        found = ["/usr/bin/setpriv", "--reuid", user, "--regid", user, "--clear-groups"]
        return [*found, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]

    def _finish(self, running: Running, slot: int) -> Finished:
        starved, status = self._launchers[slot].finish()
        told, ending, code = self._told(slot), running.ending, None
        if starved and ending is None:
            ending = Ending.MEMORY
        if ending is None:
            if "exit-code" not in told:
                last = bytes(running.stderr[-300:]).decode(errors="replace").strip()
                raise SandboxError(f"bubblewrap failed with wait status {status}: {last}")
            ending, code = Ending.EXITED, int(told["exit-code"])
        return Finished(ending, code, bytes(running.stdout), bytes(running.stderr), running.seconds)

    def _told(self, slot: int) -> dict[str, int]:
        """What bubblewrap has said about the run: `child-pid`, and `exit-code` once it has one."""
        told: dict[str, int] = {}
        with os.fdopen(self._status.pop(slot), "rb") as lines:
            for line in lines:
                with contextlib.suppress(ValueError):  # cut short when it was killed
                    told |= json.loads(line)
        return told

    def close(self) -> None:
        """End the launchers and remove their control groups."""
        for launcher in self._launchers:
            launcher.close()
        for descriptor in (*self._filters, *self._status.values()):
            os.close(descriptor)


def _with_room(limits: Limits, contents: Iterable[bytes]) -> Limits:
    """Limits under which bubblewrap, which the largest file binds too, can copy the files in."""
    largest = max((-(-len(content) // MEBIBYTE) for content in contents), default=0)
    return replace(limits, file_megabytes=max(limits.file_megabytes, largest))


def _ways(folders: list[str]) -> list[str]:
    """The folders on the way to some, outermost first."""
    found = [str(parent) for folder in folders for parent in reversed(Path(folder).parents)]
    return [way for way in dict.fromkeys(found) if way != "/"]


def _find_bubblewrap() -> str:
    program = shutil.which("bwrap")
    if program is None:
        raise UserError("programs cannot be run in isolation: bubblewrap is not installed", KEY, INSTALL)
    shown = subprocess.run([program, "--help"], capture_output=True, text=True).stdout
    if os.geteuid() != 0 and os.stat(program).st_mode & stat.S_ISUID:
        raise UserError(
            "bubblewrap runs as root here, so that what it runs cannot be limited",
            f"{KEY}, {program}",
            f"have it run as its caller (chmod u-s {program}) where users may make namespaces",
        )
    missing = [option for option in _NEEDED if option not in shown]
    if missing:
        raise UserError(
            f"{_version(program)} is too old: it has no {', '.join(missing)}", f"{KEY}, {program}", INSTALL
        )
    for needed in ("/usr/bin/prlimit", "/usr/bin/setpriv"):
        if not Path(needed).exists():
            raise UserError(
                f"programs cannot be limited: there is no {needed}",
                KEY,
                "install util-linux, to which it belongs",
            )
    return program


def _version(program: str) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True).stdout.strip()


def _packages_folder(packages: str | None) -> str | None:
    if packages is None:
        return None
    folder = Path(packages).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(
            "there is no such folder",
            f"verifier.sandbox.packages: {packages}",
            "make it with `pip install --target FOLDER PACKAGE`, or leave the key out",
        )
    return str(folder)
