"""Who samples: the protocol that every rollout engine keeps."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable


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


def seed_of(*parts: object) -> int:
    """A seed in [0, 2**63) that depends on every part and on nothing else."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
