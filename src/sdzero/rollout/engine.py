"""Who samples: the protocol that every rollout engine keeps."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from sdzero.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Sampling:
    """How to sample. `temperature` 0 is greedy; `top_p` 1 and `top_k` 0 leave the distribution whole."""

    temperature: float
    max_new_tokens: int
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class Request:
    """One response to sample: prompt token ids, and the seed that alone decides its randomness."""

    prompt_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Response:
    """Sampled token ids, exactly as sampled; the end token stands last if `stop_reason` is `end`.

    `weight_version` says which weights sampled it (see `RolloutEngine.weight_version`).
    """

    token_ids: tuple[int, ...]
    stop_reason: Literal["end", "length"]
    weight_version: int = 0


class RolloutEngine(Protocol):
    """Samples responses for a batch of requests, in the order of the requests."""

    @property
    def weight_version(self) -> int:
        """How many times the weights were changed, by training steps or otherwise; 0 to begin with."""
        ...

    @property
    def max_context(self) -> int | None:
        """The most tokens that prompt and response may have together; None if there is no limit."""
        ...

    @property
    def samples_elsewhere(self) -> bool:
        """Whether it samples with weights of its own, so that it can while the model is trained."""
        ...

    def read_weights(self) -> None:
        """Have the weights of the next responses now; later, they may be in the middle of a change.

        Called by the thread that trains, before another one asks for responses while the training goes on;
        only of engines that sample elsewhere.
        """
        ...

    def take_weights(self, model: "PreTrainedModel", steps: int = 1) -> None:
        """Sample with `model`'s weights from now on; they are `steps` training steps further than before.

        A trainer calls it after each optimizer step; one that resumes, with the steps that lie behind it;
        and with `steps` 0 to say which model it trains. The weights are read when the next responses are
        asked for, before any is sampled. Raises ValueError for a model that the engine cannot sample with.
        """
        ...

    def rest(self) -> None:
        """No responses are asked for in a while: memory may be given back. The next request wakes it."""
        ...

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """Sample one response per request. The same requests and weights give the same responses."""
        ...


@runtime_checkable
class StreamingEngine(Protocol):
    """An engine that can also hand out responses as they end, so that they are graded meanwhile."""

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[tuple[int, Response]]]:
        """What `generate` returns, in groups of (index of the request, response), each once."""
        ...


def streamed(
    engine: RolloutEngine, requests: Sequence[Request], sampling: Sampling
) -> Iterator[list[tuple[int, Response]]]:
    """The responses of any engine in groups: as they end if it can, else all at once."""
    if isinstance(engine, StreamingEngine):
        yield from engine.stream(requests, sampling)
    else:
        yield list(enumerate(engine.generate(requests, sampling)))


def check_requests(requests: Sequence[Request], sampling: Sampling, max_context: int | None) -> None:
    """Raise UserError for impossible settings, for an empty prompt, and for a prompt that together with
    `max_new_tokens` does not fit the context."""
    if sampling.temperature < 0 or not 0 < sampling.top_p <= 1 or sampling.top_k < 0:
        raise UserError(
            f"cannot sample with {sampling}",
            todo="temperature must be 0 or more, top_p above 0 and at most 1, top_k 0 or more",
        )
    if sampling.max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {sampling.max_new_tokens}", todo="set it to 1 or more")
    for index, request in enumerate(requests):
        length = len(request.prompt_ids)
        if length == 0:
            raise UserError("a prompt has no tokens", where=f"request {index}")
        if max_context is not None and length + sampling.max_new_tokens > max_context:
            raise UserError(
                f"a prompt of {length} tokens and max_new_tokens {sampling.max_new_tokens} do not fit"
                f" the model's context of {max_context} tokens",
                where=f"request {index}",
                todo="leave out over-long questions, or lower max_new_tokens",
            )


def seed_of(*parts: object) -> int:
    """A seed in [0, 2**63) that depends on every part and on nothing else."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
