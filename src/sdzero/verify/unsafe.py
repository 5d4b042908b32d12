"""No sandbox at all: programs run as you, with your files, your network and your rights.

It exists to show, in the tests of the attacks, that each attack would do harm if nothing stopped it, and for
programs that you trust. Only the wall clock and the size of the output are limited; a program's process
group is killed at its end, but what leaves the group stays.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify.interpreter import find_interpreter
from sdzero.verify.sandbox import Ending, Finished, Job, Running, Sandbox, SandboxError


class UnsafeSandbox(Sandbox):
    """Runs programs in a folder for temporary files."""

    name = "unsafe"

    def __init__(self, settings: SandboxSettings) -> None:
        self._interpreter = find_interpreter(settings.python)
        self._folder = Path(tempfile.mkdtemp(prefix="sdzero-unsafe-"))
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def describe(self) -> str:
        """Says that there is none."""
        return f"NO ISOLATION, Python {self._interpreter.version}"

    def versions(self) -> str:
        """Of the interpreter."""
        return f"Python {self._interpreter.version}"

    def python(self) -> tuple[str, ...]:
        """Isolated mode, but with the packages of the interpreter."""
        return (self._interpreter.executable, "-I")

    def place(self, name: str) -> str:
        """In the folder for temporary files."""
        return str(self._folder / "program" / name)

    def run_pair(self, judge: Job, program: Job) -> tuple[Finished, Finished]:
        """Both jobs have one folder here: raises ValueError for two files of one name that differ."""
        both = judge.files.keys() & program.files.keys()
        if any(judge.files[name] != program.files[name] for name in both):
            raise ValueError(f"two jobs of a pair have different files of one name: {sorted(both)}")
        return super().run_pair(judge, program)

    def _start(self, job: Job, stdin: int, stdout: int | None, slot: int) -> Running:
        work = self._folder / f"work-{slot}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        for name, content in job.files.items():
            path = Path(self.place(name))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o755)
        stdout_to_read, written = os.pipe() if stdout is None else (None, stdout)
        stderr_to_read, stderr = os.pipe()
        try:
            process = subprocess.Popen(
                job.command, stdin=stdin, stdout=written, stderr=stderr, cwd=work, start_new_session=True
            )
        except OSError as fault:
            for descriptor in (stderr_to_read, *([] if stdout_to_read is None else [stdout_to_read])):
                os.close(descriptor)
            raise SandboxError(f"{job.command[0]} cannot be started: {fault}") from fault
        finally:
            for descriptor in (stderr, *([written] if stdout is None else [])):
                os.close(descriptor)
        self._processes[slot] = process

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

        return Running(job, os.pidfd_open(process.pid), stdout_to_read, stderr_to_read, kill)

    def _finish(self, running: Running, slot: int) -> Finished:
        process = self._processes.pop(slot)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        ending = running.ending or Ending.EXITED
        exit_code = None if running.ending else (128 - code if code < 0 else code)
        return Finished(ending, exit_code, bytes(running.stdout), bytes(running.stderr), running.seconds)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)
