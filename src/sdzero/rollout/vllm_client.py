"""vLLM behind a server: token ids in, token ids out, each request on its own, so that each has its seed.

The server needs its routes for development (`VLLM_SERVER_DEV_MODE=1`), by which weights are loaded, the
prefix cache is emptied and weights are named, and its route for token ids (`--tokens-only`). Weights are
written to a folder, as one safetensors file, that the server reads.
"""

import http.client
import json
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from transformers import PreTrainedModel

from sdzero.errors import UserError
from sdzero.recipe_rollout import VllmSettings
from sdzero.rollout.engine import Request, Sampling
from sdzero.rollout.named_weights import write_config, write_weights
from sdzero.rollout.probe import Score
from sdzero.rollout.vllm_arguments import DTYPES, as_flags, can_sleep, engine_arguments
from sdzero.rollout.vllm_engine import Sampled
from sdzero.rollout.vllm_server import ServerProcess, free_port, server_command

GENERATE = "/inference/v1/generate"
LOOK_SECONDS = 5.0
RESET_TRIES = 50
TEXT_SHOWN = 400


def start_server(
    model: PreTrainedModel, settings: VllmSettings, folder: Path, dtype: str, batch_size: int
) -> "ServedVllm":
    """Start a server with this model, and wait until it answers. Raises UserError if it does not."""
    weights = own_weights_folder(settings, folder)
    write_config(model, weights)
    write_weights(model, weights, DTYPES[dtype])
    port = free_port()
    flags = as_flags(engine_arguments(settings, dtype, batch_size))
    process = ServerProcess(server_command(weights, port, flags), port, folder / "vllm-server.log")
    served = ServedVllm(process.url, settings, weights, dtype, batch_size, process)
    try:
        process.wait_until(served.answers, settings.startup_seconds)
    except BaseException:
        served.close()
        raise
    return served


def use_server(
    url: str, model: PreTrainedModel, settings: VllmSettings, folder: Path, dtype: str, batch_size: int
) -> "ServedVllm":
    """Use a server that the user started. Raises UserError if it does not serve."""
    weights = own_weights_folder(settings, folder)
    write_config(model, weights)
    served = ServedVllm(url, settings, weights, dtype, batch_size, None)
    if not served.answers():
        raise served.silent("it does not answer")
    served.call("GET", "/weight_info")
    return served


def own_weights_folder(settings: VllmSettings, folder: Path) -> Path:
    """A new folder for weights, in `weights_folder` or the run's: what else is there is not ours to touch."""
    place = Path(settings.weights_folder) if settings.weights_folder else folder
    return place / f"sdzero-weights-{uuid.uuid4().hex[:12]}"


class ServedVllm:
    """A server, seen from the run. `process` is the server's, if the run started it."""

    def __init__(
        self,
        url: str,
        settings: VllmSettings,
        weights: Path,
        dtype: str,
        batch_size: int,
        process: ServerProcess | None,
    ) -> None:
        self.where = url
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), parts.port or 80
        self._seconds = settings.request_seconds
        self._weights = weights.resolve()
        self._dtype = DTYPES[dtype]
        self._batch_size = batch_size
        self._process = process
        self._open: set[http.client.HTTPConnection] = set()
        self._sleeps = process is not None and can_sleep(settings)

    # ---- talking to it ----

    def answers(self) -> bool:
        """Whether it says that it is healthy."""
        try:
            return self._ask("GET", "/health", None, LOOK_SECONDS)[0] == http.client.OK
        except (OSError, http.client.HTTPException):
            return False

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request; its answer, read as JSON. Raises UserError if the server fails or is gone."""
        try:
            status, text = self._ask(method, path, body, self._seconds)
        except (OSError, http.client.HTTPException) as fault:
            raise self.silent(f"{type(fault).__name__}: {fault}") from fault
        if status == http.client.NOT_FOUND:
            raise UserError(
                f"vLLM's server has no {path}",
                self.where,
                "start it with VLLM_SERVER_DEV_MODE=1 and --tokens-only (docs/rollouts.md)",
            )
        if status != http.client.OK:
            raise UserError(
                f"vLLM's server answers {path} with status {status}: {text[:TEXT_SHOWN]}",
                self.where,
                "see its log; its settings are under rollout.vllm",
            )
        return json.loads(text) if text.strip() else None

    def _ask(self, method: str, path: str, body: Any, seconds: float) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=seconds)
        self._open.add(connection)
        try:
            connection.request(
                method,
                path,
                None if body is None else json.dumps(body),
                {"Content-Type": "application/json"},
            )
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", errors="replace")
        finally:
            self._open.discard(connection)
            connection.close()

    def silent(self, reason: str) -> UserError:
        """The error for a server that does not answer."""
        if self._process is not None:
            deadline = time.monotonic() + LOOK_SECONDS  # a server that is dying takes a moment
            while self._process.is_alive() and time.monotonic() < deadline:
                time.sleep(0.1)
            if not self._process.is_alive():
                return self._process.died()
            return UserError(
                f"vLLM's server does not answer ({reason}). Its last lines:\n{self._process.last_lines()}",
                str(self._process.log),
                "run the same command again: finished batches are kept",
            )
        return UserError(
            f"vLLM's server does not answer ({reason})",
            self.where,
            "start it (docs/rollouts.md says how) and run the same command again: finished batches are"
            " kept. Without rollout.vllm.url the run starts one itself",
        )

    # ---- what `Backend` asks for ----

    def push(self, model: PreTrainedModel, stamp: str) -> None:
        """Write the weights, have them loaded, empty the prefix cache, and name them `stamp`."""
        write_weights(model, self._weights, self._dtype)
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(self._weights)}}
        self.call("POST", "/collective_rpc", reload)
        for _ in range(RESET_TRIES):
            if self.call("POST", "/reset_prefix_cache")["success"]:
                break
            time.sleep(0.1)
        else:
            raise UserError(
                "vLLM's server does not empty its prefix cache: other requests are running on it",
                self.where,
                "let no other run use this server",
            )
        self.call("POST", "/update_weight_version", {"new_version": stamp})

    def stream(
        self, requests: Sequence[Request], sampling: Sampling, end_token_ids: Sequence[int]
    ) -> Iterator[list[tuple[int, Sampled]]]:
        """Sampled responses in groups, as they end."""
        shared = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": list(end_token_ids),
            "ignore_eos": True,
            "detokenize": False,
        }
        bodies = [
            {"token_ids": list(r.prompt_ids), "sampling_params": shared | {"seed": r.seed}} for r in requests
        ]
        for group in self._all(bodies):
            yield [(index, _sampled(answer)) for index, answer in group]

    def score(self, sequences: Sequence[Sequence[int]]) -> list[Score]:
        """Log-probs of each sequence, and its likeliest next token: see `Scorer`."""
        shared = {"temperature": 0, "max_tokens": 1, "ignore_eos": True, "detokenize": False}
        nexts, wholes = (
            dict(
                pair
                for group in self._all(
                    [{"token_ids": list(ids), "sampling_params": own} for ids in sequences]
                )
                for pair in group
            )
            for own in (shared | {"logprobs": 0}, shared | {"prompt_logprobs": 0})
        )
        scores = []
        for index, ids in enumerate(sequences):
            found = nexts[index]["choices"][0]["logprobs"]["content"][0]
            at = wholes[index]["prompt_logprobs"][1:]
            log_probs = tuple(row[str(token)]["logprob"] for row, token in zip(at, ids[1:], strict=True))
            scores.append(Score(log_probs, int(found["token_id"]), float(found["logprob"])))
        return scores

    def _all(self, bodies: Sequence[Any]) -> Iterator[list[tuple[int, Any]]]:
        """The answers to many requests at a time, as they come. The first that fails ends them all."""
        stopped = threading.Event()

        def ask(body: Any) -> Any:
            return None if stopped.is_set() else self.call("POST", GENERATE, body)

        with ThreadPoolExecutor(min(len(bodies), self._batch_size)) as pool:
            waiting: dict[Future[Any], int] = {pool.submit(ask, body): i for i, body in enumerate(bodies)}
            try:
                while waiting:
                    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    yield [(waiting.pop(one), one.result()) for one in done]
            finally:
                stopped.set()
                if waiting:
                    self._hang_up()

    def _hang_up(self) -> None:
        """Close what is still open: the server gives a request up when nobody listens for its answer."""
        for connection in list(self._open):
            if connection.sock is not None:
                with suppress(OSError):  # it was just closed
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def sleep(self) -> bool:
        """Give the device's memory back, weights and cache, where the build can."""
        if self._sleeps:
            self.call("POST", "/sleep?level=2")
        return self._sleeps

    def wake(self) -> None:
        """Take the memory again."""
        self.call("POST", "/wake_up")

    def close(self) -> None:
        """End the server if the run started it, and remove the weights that were written."""
        if self._process is not None:
            self._process.end()
        shutil.rmtree(self._weights, ignore_errors=True)


def _sampled(answer: Any) -> Sampled:
    choice = answer["choices"][0]
    stamps = tuple(span["version"] for span in choice["weight_versions"] or ())
    return Sampled(tuple(choice["token_ids"]), stamps)
