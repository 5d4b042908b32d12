"""The command in a process of its own that starts in milliseconds.

A server process imports what the command imports, once, and forks for each command that it is asked for: the
child has descriptors, environment and process group as if it had been started, and calls the command's
`main`. What starts, signals, kills and waits for it is the same as with `subprocess.Popen`.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import IO, Any

SECONDS_TO_START = 120.0


class ForkedCommand:
    """One command: the part of `subprocess.Popen` that tests use."""

    def __init__(
        self,
        arguments: list[str],
        *,
        env: dict[str, str],
        stdout: int,
        stderr: int,
        start_new_session: bool = False,
        cwd: Path | None = None,
    ) -> None:
        """`stdout` and `stderr` are PIPE or DEVNULL of `subprocess`."""
        self.returncode: int | None = None
        self._files: dict[str, IO[str] | None] = {}
        writers = []
        for name, kind in (("stdout", stdout), ("stderr", stderr)):
            if kind == subprocess.PIPE:
                reader, writer = os.pipe()
                self._files[name] = os.fdopen(reader, encoding="utf-8")
            else:
                writer = os.open(os.devnull, os.O_WRONLY)
                self._files[name] = None
            writers.append(writer)
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._line.connect(_server_address())
        asked = {
            "arguments": arguments,
            "env": env,
            "cwd": str(cwd or Path.cwd()),
            "new_session": start_new_session,
        }
        data = json.dumps(asked).encode()
        socket.send_fds(self._line, [len(data).to_bytes(4, "big")], writers)
        self._line.sendall(data)
        for writer in writers:
            os.close(writer)
        self._answers = self._line.makefile()
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        """The status, if it has ended: minus the signal's number for one that was killed."""
        if self.returncode is None and select.select([self._line], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        """Wait for its end."""
        if self.returncode is None:
            self.returncode = int(self._answers.readline())
            self._line.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed, once it has ended. Raises TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        found: dict[str, bytes] = {"stdout": b"", "stderr": b""}
        open_files = {file.fileno(): name for name, file in self._files.items() if file is not None}
        while open_files:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select(list(open_files), [], [], left)
            if not ready:
                os.kill(self.pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired("sdzero", timeout or 0.0)
            for descriptor in ready:
                data = os.read(descriptor, 1 << 16)
                found[open_files[descriptor]] += data
                if not data:
                    del open_files[descriptor]
        for file in self._files.values():
            if file is not None:
                file.close()
        self.wait()
        return found["stdout"].decode(), found["stderr"].decode()


_started: dict[str, Any] = {}


def _server_address() -> str:
    """Of this process's server, which is started by the first who asks."""
    if not _started:
        folder = tempfile.TemporaryDirectory(prefix="forked-")
        address = str(Path(folder.name) / "socket")
        ours, theirs = os.pipe()
        process = subprocess.Popen(
            [sys.executable, __file__, address, str(theirs)], pass_fds=[theirs], stdin=subprocess.PIPE
        )
        os.close(theirs)
        assert select.select([ours], [], [], SECONDS_TO_START)[0], (
            "the server of forked commands did not start"
        )
        assert os.read(ours, 1), "the server of forked commands ended"
        os.close(ours)
        _started.update(address=address, process=process, folder=folder)
        atexit.register(process.kill)
    return str(_started["address"])


# ---- the server's side ----


def serve(address: str, ready: int) -> None:
    """Import, then fork for each connection; ends with the process that started it."""
    import datasets  # noqa: F401
    import trl.trainer.grpo_trainer
    import trl.trainer.sft_trainer  # noqa: F401

    import sdzero.cli
    import sdzero.compare
    import sdzero.dry_run
    import sdzero.evaluate.audit
    import sdzero.pipeline
    import sdzero.studies.run  # noqa: F401

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.write(ready, b"1")
    os.close(ready)
    while True:
        readable, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in readable:  # closed
            return
        line, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            attend(line)
        line.close()


def attend(line: socket.socket) -> None:
    """Start one command and tell how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, descriptors, _, _ = socket.recv_fds(line, 4, 2)
    data = b""
    while len(data) < int.from_bytes(size, "big"):
        data += line.recv(1 << 16)
    asked = json.loads(data)
    child = os.fork()
    if child == 0:
        line.close()
        run(asked, *descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(OSError):
        line.sendall(f"{child}\n".encode())
        line.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
    os._exit(0)


def run(asked: dict[str, Any], stdout: int, stderr: int) -> None:
    """Become the command."""
    if asked["new_session"]:
        os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, standard in ((nothing, 0), (stdout, 1), (stderr, 2)):
        os.dup2(ours, standard)
        os.close(ours)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.argv = ["sdzero", *asked["arguments"]]
    status = 1
    try:
        from sdzero.cli import main

        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
