"""The process that starts programs for a worker (`launcher.py`), seen from the worker."""

import contextlib
import math
import os
import resource
import signal
import socket
import subprocess
import sys

from sdzero.verify import launcher
from sdzero.verify.cgroups import ControlGroup, possible_groups
from sdzero.verify.sandbox import MEBIBYTE, Limits, SandboxError

OWN_PROCESSES = 4
"""Processes beside the program's in its control group: two of bubblewrap, the launcher, one spare."""

OWN_MEGABYTES = 16
"""Their memory."""

STACK_MEGABYTES = 64
"""Of the first thread, and reserved for every other one."""


def resource_limits(limits: Limits) -> list[tuple[int, int, int]]:
    """The kernel's limits of one process (resource, soft, hard), for `setrlimit`.

    Processes are counted for a whole user: only root, who is not bound by it, can set that limit beforehand
    for the user that it becomes.
    """
    cpu = math.ceil(limits.cpu_seconds)
    sizes = {
        resource.RLIMIT_AS: limits.memory_megabytes * MEBIBYTE,
        resource.RLIMIT_FSIZE: limits.file_megabytes * MEBIBYTE,
        resource.RLIMIT_STACK: STACK_MEGABYTES * MEBIBYTE,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_CORE: 1,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if os.geteuid() == 0:
        sizes[resource.RLIMIT_NPROC] = limits.processes
    return [(resource.RLIMIT_CPU, cpu, cpu + 1), *((which, size, size) for which, size in sizes.items())]


class Launcher:
    """The process that starts the programs of one slot, one at a time, and their control group if any."""

    def __init__(self, slot: str) -> None:
        self.group: ControlGroup | None = None
        self.apart = False
        """Whether what it starts is in namespaces without network, name and control group already."""
        for group in possible_groups(slot):
            if self._begin(group):
                self.group = group
                break
            group.close()
        else:
            if not self._begin(None):
                raise SandboxError("the process that starts programs does not start")
        self._running: int | None = None
        self._killed_before = 0

    def _begin(self, group: ControlGroup | None) -> bool:
        """Start the process, inside the group; False if it may not join it."""
        self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            command = [sys.executable, "-I", "-S", launcher.__file__, str(other.fileno())]
            self._process = subprocess.Popen(
                [*command, *(group.doors if group else [])],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                # Whoever kills the worker with its group must not kill this one too: it ends the program.
                start_new_session=True,
            )
        answer = launcher.receive(self._channel)
        if answer is not None and "ready" in answer[0]:
            self.apart = bool(answer[0]["apart"])
            return True
        self._end()
        return False

    def start(
        self, program: str, options: list[str], command: list[str], descriptors: list[int], limits: Limits
    ) -> int:
        """Start a command by bubblewrap with descriptors 0, 1, 2, ...; a pidfd of it. Raises SandboxError."""
        message = {
            "start": program,
            "options": options,
            "command": command,
            "limits": resource_limits(limits),
        }
        try:
            if self.group is not None:
                self.group.limit(limits.memory_megabytes + OWN_MEGABYTES, limits.processes + OWN_PROCESSES)
                self._killed_before = self.group.out_of_memory()
            launcher.send(self._channel, message, descriptors)
            answer = launcher.receive(self._channel)
        except OSError as fault:
            raise SandboxError(f"a program cannot be started: {fault}") from fault
        if answer is None:
            raise SandboxError("the process that starts programs is gone")
        self._running = answer[0]["pid"]
        return answer[1][0]

    def finish(self) -> tuple[bool, int]:
        """Bury the command that was started: whether memory ran out meanwhile, and its wait status.

        Raises SandboxError if something of it stays behind.
        """
        try:
            launcher.send(self._channel, {"bury": self._running}, [])
            answer = launcher.receive(self._channel)
        except OSError:
            answer = None
        if answer is None:
            return self._begin_again()
        self._running = None
        if self.group is None:
            return False, answer[0]["status"]
        if not self.group.wait_for_others_than(self._process.pid):
            raise SandboxError(f"processes stay behind: {self.group.processes()}")
        return self.group.out_of_memory() > self._killed_before, answer[0]["status"]

    def _begin_again(self) -> tuple[bool, int]:
        """Start the process that starts programs anew: it was ended, and its program with it.

        Raises SandboxError, unless it was for want of memory, which the program used.
        """
        self._running, starved = None, False
        self._end()
        if self.group is not None:
            for process in self.group.processes():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process, signal.SIGKILL)
            if not self.group.wait_for_others_than(self._process.pid):
                raise SandboxError(f"processes stay behind: {self.group.processes()}")
            starved = self.group.out_of_memory() > self._killed_before
        if not self._begin(self.group) or not starved:
            raise SandboxError("the process that starts programs is gone")
        return True, signal.SIGKILL

    def _end(self) -> None:
        self._channel.close()
        self._process.wait()

    def close(self) -> None:
        """End it, and with it what it started."""
        self._end()
        if self.group is not None:
            self.group.close()
