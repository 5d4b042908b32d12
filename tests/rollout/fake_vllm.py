"""Stands in for vLLM where it is not installed: a backend in memory, and a server that speaks its routes."""

import json
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from safetensors.torch import load_file

from sdzero.rollout.engine import Request, Sampling
from sdzero.rollout.probe import ProbeSequence, Score, model_log_probs
from sdzero.rollout.vllm_engine import Sampled


class QuietServer(ThreadingHTTPServer):
    """Says nothing of a client that hung up: it would stand among the errors of other tests."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class FakeBackend:
    """Answers every request with its prompt's last token and the end token, and scores with a copy of the
    weights that it was last sent. `drops_pushes`: it goes on with those that it had."""

    where = "a fake"

    def __init__(self, model: Any, end: int) -> None:
        import copy

        self.held = copy.deepcopy(model)
        self.end = end
        self.stamp = "default"
        self.pushes: list[str] = []
        self.naps = self.wakes = 0
        self.drops_pushes = self.is_closed = False
        self.answers: list[Sampled] | None = None

    def push(self, model: Any, stamp: str) -> None:
        if not self.drops_pushes:
            self.held.load_state_dict(model.state_dict())
        self.stamp = stamp
        self.pushes.append(stamp)

    def stream(
        self, requests: Sequence[Request], sampling: Sampling, end_token_ids: Sequence[int]
    ) -> Iterator[list[tuple[int, Sampled]]]:
        for index in reversed(range(len(requests))):
            if self.answers is not None:
                yield [(index, self.answers[index])]
            else:
                yield [(index, Sampled((requests[index].prompt_ids[-1], self.end), (self.stamp,)))]

    def score(self, sequences: Sequence[Sequence[int]]) -> list[Score]:
        found = []
        for ids in sequences:
            own, next_log_prob = model_log_probs(self.held, ProbeSequence(tuple(ids[:1]), tuple(ids[1:])), 3)
            found.append(Score(tuple(own), 3, next_log_prob))
        return found

    def sleep(self) -> bool:
        self.naps += 1
        return True

    def wake(self) -> None:
        self.wakes += 1

    def close(self) -> None:
        self.is_closed = True


class FakeServer:
    """vLLM's routes, as far as they are used: answers with one token and the end token."""

    def __init__(self, end: int, fails_at: int | None = None, missing: str | None = None) -> None:
        self.end, self.fails_at, self.missing = end, fails_at, missing
        self.version = "default"
        self.loaded: list[set[str]] = []
        self.bodies: list[Any] = []
        self.resets = 0
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                self._answer(json.loads(self.rfile.read(length) or b"null"))

            def _answer(self, body: Any) -> None:
                status, found = fake.answer(self.path, body)
                text = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        self._server = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        if path == self.missing:
            return 404, {"detail": "Not Found"}
        if path == "/health":
            return 200, None
        if path == "/weight_info":
            return 200, {"weight_version": self.version}
        if path == "/collective_rpc":
            folder = body["kwargs"]["weights_path"]
            self.loaded.append(set(load_file(f"{folder}/model.safetensors")))
            return 200, {"results": [None]}
        if path == "/reset_prefix_cache":
            self.resets += 1
            return 200, {"success": self.resets > 1}  # busy the first time
        if path == "/update_weight_version":
            self.version = body["new_version"]
            return 200, {"success": True}
        self.bodies.append(body)
        if self.fails_at is not None and len(self.bodies) > self.fails_at:
            return 500, {"error": "out of memory"}
        return 200, self._generated(body)

    def _generated(self, body: Any) -> Any:
        ids, asked = body["token_ids"], body["sampling_params"]
        rows = [{str(token): {"logprob": -1.0}} for token in ids[1:]]
        return {
            "prompt_logprobs": [None, *rows] if "prompt_logprobs" in asked else None,
            "choices": [
                {
                    "token_ids": [ids[-1], self.end] if asked["max_tokens"] > 1 else [ids[-1]],
                    "weight_versions": [{"version": self.version, "start": 0, "end": 2}],
                    "logprobs": {"content": [{"token_id": ids[-1], "logprob": -0.5}]}
                    if "logprobs" in asked
                    else None,
                }
            ],
        }
