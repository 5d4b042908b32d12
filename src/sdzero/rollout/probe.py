"""The probe: does the engine sample with the weights that it was sent?

After every push the engine's log-probs of a few fixed sequences are compared with the model's own. Two
things are caught: a difference beyond the tolerance (the weights were not loaded, or only some of them, or
the cached keys and values of earlier weights are still in use), and log-probs that are the very same as
before the push although the model's have changed (a step so small that stale weights would pass for
rounding).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

from sdzero.errors import UserError

TOLERANCES = {"float32": 0.01, "bfloat16": 0.5, "float16": 0.1}
"""Largest difference in nats that is taken for rounding, by the engine's dtype (docs/rollouts.md)."""


@dataclass(frozen=True)
class ProbeSequence:
    """A prompt and what is scored after it."""

    prompt_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt and continuation."""
        return self.prompt_ids + self.continuation_ids


@dataclass(frozen=True)
class Score:
    """What an engine says of a sequence: log p of each token but the first, and its likeliest next token
    with that token's log p (which comes by way of cached prefixes)."""

    log_probs: tuple[float, ...]
    next_token: int
    next_log_prob: float


class Scorer(Protocol):
    """Scores sequences."""

    def score(self, sequences: Sequence[Sequence[int]]) -> list[Score]:
        """One score a sequence, in their order; the next tokens are asked for before the log-probs."""
        ...


def probe_sequence(prompt_ids: Sequence[int], continuation_ids: Sequence[int], length: int) -> ProbeSequence:
    """A sequence of `length` tokens: the continuation repeated after the prompt. Engines cache prefixes by
    the block, so a short sequence would not show a stale cache."""
    room = max(1, length - len(prompt_ids))
    repeated = [continuation_ids[i % len(continuation_ids)] for i in range(room)]
    return ProbeSequence(tuple(prompt_ids), tuple(repeated))


class Probe:
    """Compares an engine with the model whose weights it was sent. `tolerance` is in nats.

    `same_dtype`: engine and model compute in the same dtype, so that changed weights change both.
    """

    def __init__(self, sequences: Sequence[ProbeSequence], tolerance: float, same_dtype: bool) -> None:
        if not sequences:
            raise ValueError("a probe needs a sequence")
        self.sequences = tuple(sequences)
        self.tolerance = tolerance
        self._same_dtype = same_dtype
        self._before: tuple[list[float], list[float]] | None = None

    def check(self, model: PreTrainedModel, engine: Scorer, version: int) -> float:
        """The largest difference in nats. Raises UserError if the engine has other weights than `model`."""
        of_engine, of_model = self.compare(model, engine)
        before, self._before = self._before, None  # only what passed is remembered
        differences = [abs(a - b) for a, b in zip(of_engine, of_model, strict=True)]
        largest = largest_of(differences)
        if not largest <= self.tolerance:
            raise UserError(
                f"vLLM does not sample with the weights that it was sent: after the push of version {version}"
                f" its log-probs differ from the model's by up to {largest:.3g} (tolerance"
                f" {self.tolerance:g}, mean {sum(differences) / len(differences):.3g}, over"
                f" {len(differences)} tokens)",
                "rollout.vllm.probe_tolerance",
                "if the mean is large too, the weights are stale or loaded wrongly: use the vLLM version"
                " that `sdzero doctor` names, start the server again, or set rollout.engine=transformers."
                " If only single tokens are above it, it is rounding: raise rollout.vllm.probe_tolerance, or"
                " set rollout.vllm.dtype=float32",
            )
        if before is not None and self._same_dtype and before[0] == of_engine:
            moved = [abs(a - b) for a, b in zip(before[1], of_model, strict=True)]
            # One that changed in its last bit may be rounding; weights that changed move most of them.
            if sum(change > 0 for change in moved) > len(moved) / 2:
                raise UserError(
                    f"vLLM has stale weights: the push of version {version} changed none of its"
                    f" {len(of_engine)} log-probs, while the model's changed by up to {max(moved):.3g}",
                    "rollout.vllm",
                    "start the server again; use the vLLM version that `sdzero doctor` names, or set"
                    " rollout.engine=transformers",
                )
        self._before = of_engine, of_model
        return largest

    def compare(self, model: PreTrainedModel, engine: Scorer) -> tuple[list[float], list[float]]:
        """log p of every token of the continuations and of a next token: the engine's, the model's."""
        scores = engine.score([sequence.token_ids for sequence in self.sequences])
        of_engine: list[float] = []
        of_model: list[float] = []
        for sequence, score in zip(self.sequences, scores, strict=True):
            own, next_log_prob = model_log_probs(model, sequence, score.next_token)
            of_engine += [*score.log_probs[-len(sequence.continuation_ids) :], score.next_log_prob]
            of_model += [*own, next_log_prob]
        return of_engine, of_model


def largest_of(differences: Sequence[float]) -> float:
    """The largest; one that is not a number is larger than all."""
    return max(differences, key=lambda value: float("inf") if value != value else value)


@torch.no_grad()
def model_log_probs(
    model: PreTrainedModel, sequence: ProbeSequence, next_token: int
) -> tuple[list[float], float]:
    """log p of each token of the continuation, and of `next_token` after it, in float32 or better."""
    was_training = model.training
    model.train(False)
    try:
        ids_1T = torch.tensor([sequence.token_ids], device=model.device)
        logits_TV = model(input_ids=ids_1T).logits[0, len(sequence.prompt_ids) - 1 :]
    finally:
        model.train(was_training)
    if logits_TV.dtype != torch.float64:
        logits_TV = logits_TV.float()
    targets_T = torch.tensor([*sequence.continuation_ids, next_token], device=logits_TV.device)
    found: list[float] = logits_TV.log_softmax(-1).gather(1, targets_T[:, None])[:, 0].tolist()
    return found[:-1], found[-1]
