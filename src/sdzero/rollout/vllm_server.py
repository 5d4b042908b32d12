"""The server process that a run starts for itself: on the loopback, ended with the run."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sdzero.errors import UserError
from sdzero.rollout.vllm_package import is_cpu_build, set_environment

LOG_LINES = 12
END_SECONDS = 20.0
HOST = "127.0.0.1"


def server_command(model: Path, port: int, flags: Sequence[str]) -> list[str]:
    """The command line of vLLM's server for a model's folder.

    The CPU build's own command `vllm` looks its version up under a name that is not its own and fails; the
    module behind it does not.
    """
    shared = ["--host", HOST, "--port", str(port), "--tokens-only", *flags]
    if is_cpu_build():
        module = "vllm.entrypoints.openai.api_server"
        return [sys.executable, "-m", module, "--model", str(model), *shared]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model), *shared]


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        port: int = found.getsockname()[1]
    return port


class ServerProcess:
    """A running server. What it prints goes to `log`."""

    def __init__(self, command: Sequence[str], port: int, log: Path) -> None:
        self.url = f"http://{HOST}:{port}"
        self.log = log
        environment = dict(os.environ)
        set_environment(environment)
        environment["VLLM_SERVER_DEV_MODE"] = "1"  # weights are pushed by its routes for development
        log.parent.mkdir(parents=True, exist_ok=True)
        launcher = [sys.executable, "-m", "sdzero.rollout.vllm_launcher", str(os.getpid()), *command]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                launcher,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # an interrupt from the keyboard reaches the run first
            )

    def is_alive(self) -> bool:
        """Whether the server still runs."""
        return self._process.poll() is None

    def last_lines(self) -> str:
        """The end of what it printed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-LOG_LINES:])

    def died(self) -> UserError:
        """The error for a server that ended by itself."""
        return UserError(
            f"vLLM's server ended by itself (status {self._process.poll()}). Its last lines:\n"
            f"{self.last_lines()}",
            str(self.log),
            "mend what its lines say (rollout.vllm has its settings), and run the same command again:"
            " finished batches are kept",
        )

    def wait_until(self, answers: Callable[[], bool], seconds: float) -> None:
        """Wait until it answers. Raises UserError if it ends, or does not in `seconds`."""
        deadline = time.monotonic() + seconds
        while not answers():
            if not self.is_alive():
                raise self.died()
            if time.monotonic() > deadline:
                raise UserError(
                    f"vLLM's server does not answer after {seconds:g} s. Its last lines:\n"
                    f"{self.last_lines()}",
                    str(self.log),
                    "raise rollout.vllm.startup_seconds, or mend what its lines say",
                )
            time.sleep(0.2)

    def end(self) -> None:
        """End it and all of its children."""
        if not self.is_alive():
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the launcher; the server it started is gone with its grace
            self._process.wait()
