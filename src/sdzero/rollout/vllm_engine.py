"""Sampling with vLLM: one running vLLM for a whole run, and an engine for each model that uses it in turn.

vLLM starts slowly, so stages share it: whoever samples next first sends it its model's weights. That is
done when responses are asked for and the weights that vLLM holds are not those of this engine at this
version: at the start of a stage, and after each optimizer step. Each push has a name of its own, under
which vLLM stamps what it samples, and is followed by the probe (`sdzero.rollout.probe`). A response that
does not bear the stamp of the last push stops the run.

Prefix caching is on: repeated samples share the keys and values of their prompt, and revisions those of
the prompt and the initial response. A push empties the cache.

Left out: an adapter is not pushed as one, but merged (`named_weights`). With several trainer processes only a
server can be used; the first process samples for all.
"""

import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from transformers import PreTrainedModel

from sdzero.errors import UserError
from sdzero.rollout.engine import Request, Response, Sampling, check_requests
from sdzero.rollout.named_weights import architecture
from sdzero.rollout.probe import Probe, Score, largest_of


@dataclass(frozen=True)
class Sampled:
    """Token ids as vLLM sampled them, and the names of the weights that it stamped on them."""

    token_ids: tuple[int, ...]
    stamps: tuple[str, ...]


class Backend(Protocol):
    """A running vLLM: in this process, or behind a server."""

    where: str
    """What a person is told when something is wrong with it."""

    def push(self, model: PreTrainedModel, stamp: str) -> None:
        """Load the model's weights, forget all cached prefixes, and stamp responses with `stamp`."""
        ...

    def stream(
        self, requests: Sequence[Request], sampling: Sampling, end_token_ids: Sequence[int]
    ) -> Iterator[list[tuple[int, Sampled]]]:
        """Sampled responses as they end, in groups of (index of the request, sampled)."""
        ...

    def score(self, sequences: Sequence[Sequence[int]]) -> list[Score]:
        """See `Scorer`."""
        ...

    def sleep(self) -> bool:
        """Give memory back, weights included; whether it did."""
        ...

    def wake(self) -> None:
        """Take the memory again; the weights in it are not to be used before a push."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class SharedVllm:
    """The one vLLM of a run. It is started by the first engine that samples.

    `start` starts it for a model's architecture; `make_probe` makes the probe. A model of another
    architecture (the user's own, to be scored) makes it start anew.
    """

    def __init__(
        self,
        start: Callable[[PreTrainedModel], Backend],
        make_probe: Callable[[PreTrainedModel], Probe],
        report: Callable[[str], None],
        elsewhere: bool = False,
    ) -> None:
        self._start, self._make_probe, self._report = start, make_probe, report
        self.elsewhere = elsewhere
        """Whether it is another process, which samples while this one trains."""
        self._backend: Backend | None = None
        self._probe: Probe | None = None
        self._architecture = ""
        # Whose weights vLLM holds. Weakly: a stage's model is let go of with its engine.
        self._held: tuple[weakref.ref[object], int] | None = None
        self._asleep = False
        self._run = uuid.uuid4().hex[:12]
        self._pushes = 0
        self.stamp = ""
        """The name of the weights that vLLM holds."""
        self.largest_difference = 0.0
        """What the probe found after the last push, in nats."""

    def backend_with(self, engine: object, model: PreTrainedModel, version: int) -> Backend:
        """vLLM, awake and with `model`'s weights, pushed if they are not those of `engine` at `version`."""
        backend = self._started(model)
        if self._asleep:
            backend.wake()
            self._asleep, self._held = False, None
        if self._held is None or self._held[0]() is not engine or self._held[1] != version:
            self._held = None  # whatever goes wrong below, the weights are sent again
            self._pushes += 1
            self.stamp = f"sdzero-{self._run}-{self._pushes}-v{version}"
            backend.push(model, self.stamp)
            assert self._probe is not None
            self.largest_difference = self._probe.check(model, backend, version)
            self._held = (weakref.ref(engine), version)
        return backend

    def difference_now(self, model: PreTrainedModel) -> float:
        """The largest difference between `model`'s log-probs and those of the weights that vLLM holds, in
        nats; for measurements. vLLM must have sampled before."""
        assert self._backend is not None
        assert self._probe is not None
        pairs = zip(*self._probe.compare(model, self._backend), strict=True)
        return largest_of([abs(own - other) for own, other in pairs])

    def _started(self, model: PreTrainedModel) -> Backend:
        own = architecture(model)
        if self._backend is not None and own != self._architecture:
            self.close()
        if self._backend is None:
            self._report("starting vLLM (once a run)")
            self._backend = self._start(model)
            self._architecture = own
            self._probe = self._make_probe(model)
            self._report(f"  vLLM is up: {self._backend.where}")
        return self._backend

    def rest(self) -> None:
        """Let vLLM sleep until responses are asked for again."""
        if self._backend is not None and not self._asleep:
            self._asleep = self._backend.sleep()

    def close(self) -> None:
        """End vLLM."""
        backend, self._backend = self._backend, None
        self._held, self._asleep = None, False
        if backend is not None:
            backend.close()


class VllmEngine:
    """A `RolloutEngine` that samples a model's responses with the run's vLLM.

    `end_token_ids` stop a response (the one sampled is kept); `max_context` is in tokens.
    """

    def __init__(
        self,
        shared: SharedVllm,
        model: PreTrainedModel,
        end_token_ids: Sequence[int],
        max_context: int | None,
    ) -> None:
        if not end_token_ids:
            raise UserError(
                "no end token is known, so no response would ever end",
                todo="give the tokenizer an end-of-turn token",
            )
        self._shared = shared
        self._model = model
        self._end_token_ids = tuple(sorted(set(end_token_ids)))
        self._max_context = max_context
        self._weight_version = 0

    @property
    def model(self) -> PreTrainedModel:
        """The model whose weights vLLM is sent."""
        return self._model

    @property
    def weight_version(self) -> int:
        """How many training steps the weights have gone through since the engine was made."""
        return self._weight_version

    @property
    def max_context(self) -> int | None:
        """The smaller of the model's context and the recipe's `max_model_len`, in tokens."""
        return self._max_context

    def take_weights(self, model: PreTrainedModel, steps: int = 1) -> None:
        """Send vLLM `model`'s weights before it samples again."""
        self._model = model
        self._weight_version += steps

    @property
    def samples_elsewhere(self) -> bool:
        """Whether vLLM is behind a server, and samples while the model is trained."""
        return self._shared.elsewhere

    def read_weights(self) -> None:
        """Send vLLM the model's weights now, if it does not have them."""
        self._shared.backend_with(self, self._model, self._weight_version)

    def rest(self) -> None:
        """Let vLLM sleep, if the recipe has it so and this build can."""
        self._shared.rest()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """Sample one response per request, in the order of the requests.

        A response depends on its request's seed and, but for rounding, not on its neighbours. Raises
        UserError for impossible requests, before anything is sampled; if the probe finds other weights than
        the model's; and if vLLM fails.
        """
        responses = dict(pair for group in self.stream(requests, sampling) for pair in group)
        return [responses[index] for index in range(len(requests))]

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[tuple[int, Response]]]:
        """What `generate` returns, as responses end: groups of (index of the request, response)."""
        check_requests(requests, sampling, self._max_context)
        if not requests:
            return
        version = self._weight_version
        backend = self._shared.backend_with(self, self._model, version)
        stamp = self._shared.stamp
        for group in backend.stream(requests, sampling, self._end_token_ids):
            yield [(index, self._response(one, sampling, version, stamp, backend)) for index, one in group]

    def _response(
        self, sampled: Sampled, sampling: Sampling, version: int, stamp: str, backend: Backend
    ) -> Response:
        if set(sampled.stamps) != {stamp}:
            raise UserError(
                f"vLLM sampled with other weights than this run sent it: stamped"
                f" {', '.join(sampled.stamps) or 'nothing'}, not {stamp}",
                backend.where,
                "let no other run use this server, and do not start it anew under a run; then run the same"
                " command again",
            )
        ids = sampled.token_ids
        inner = [position for position, token in enumerate(ids[:-1]) if token in self._end_token_ids]
        has_end = bool(ids) and ids[-1] in self._end_token_ids
        if inner or not (has_end or len(ids) == sampling.max_new_tokens):
            raise UserError(
                f"vLLM gave a response of {len(ids)} tokens that neither ends nor reaches the limit of"
                f" {sampling.max_new_tokens}, or goes on after its end",
                backend.where,
                "use the vLLM version that `sdzero doctor` names",
            )
        stop_reason: Literal["end", "length"] = "end" if has_end else "length"
        return Response(ids, stop_reason, version)
