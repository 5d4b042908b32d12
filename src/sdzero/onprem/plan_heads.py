"""Memory of a loss over the vocabulary: chunks of logits, and the gradients of head and hidden states.

The sizes are those of `sdzero.method.divergence`, `divergence_chunks` and `chunked_nll`, which import torch;
a test holds the numbers here against theirs.
"""

from dataclasses import dataclass
from typing import Literal

from sdzero.onprem.model_shape import ModelShape
from sdzero.onprem.plan_activations import FLOAT
from sdzero.recipe_distill import DistillSettings

CHUNK_LOGITS = {"cpu": 1 << 25, "cuda": 1 << 28}
"""Logits of one model in a chunk of automatic size (`divergence.CHUNK_LOGITS`)."""
BLOCK_LOGITS = {"cpu": 1 << 19, "cuda": 1 << 26}
"""Logits that are worked on at once (`head_products.BLOCK_LOGITS`)."""
LOGITS_AT_A_TIME = 1 << 27
"""Logits of phase 1 that are held at once (`srt.LOGITS_AT_A_TIME`)."""

Kind = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Head:
    """Bytes of the loss: while it is computed, what stays of it for the backward pass, and what that pass
    takes for it at its start."""

    forward: float
    kept: float
    backward: float


def chunk_tokens(settings: DistillSettings, kind: Kind, vocabulary: int) -> int:
    """How many tokens a chunk of the divergence has."""
    if settings.chunk_tokens != "auto":
        return settings.chunk_tokens
    return min(1024, max(32, CHUNK_LOGITS[kind] // vocabulary))


def divergence_head(
    shape: ModelShape, size: int, kind: Kind, trains_head: bool, settings: DistillSettings, targets: float
) -> Head:
    """Of phase 2. Two rooms of logits, a block of both models' probabilities, and both gradients."""
    vocabulary, exact = shape.vocabulary, max(size, FLOAT)
    rows = min(chunk_tokens(settings, kind, vocabulary), targets)
    rooms = 2 * rows * vocabulary * size
    block = min(rows, max(1, BLOCK_LOGITS[kind] // vocabulary)) * vocabulary * exact
    # Probabilities and one tensor that comes and goes; copies of both logits where they are short.
    tensors = 2 + (2 if size < FLOAT else 0) + (0 if settings.divergence == "reverse" else 1)
    hidden = targets * shape.width * size
    gradient = (exact + (size if size < FLOAT else 0)) * shape.head if trains_head else 0
    final = size * shape.head if trains_head else 0
    working = rooms + tensors * block
    if settings.divergence_backend == "trl" or settings.token_share < 1:
        found = Head(working, 2 * hidden, working + gradient + hidden)
    else:
        found = Head(working + gradient + hidden, final, 0.0)
    if not settings.policy_gradient_weight:
        return found
    logits = FLOAT * min(targets * vocabulary, LOGITS_AT_A_TIME)
    whole = targets * vocabulary <= LOGITS_AT_A_TIME
    return Head(
        found.forward + 2 * logits, found.kept + (logits if whole else 0), found.backward + 2 * logits
    )


def nll_head(shape: ModelShape, size: int, kind: Kind, trains_head: bool, targets: float) -> Head:
    """Of phase 1 and of fine-tuning: all logits if they are few, else chunk by chunk."""
    vocabulary, exact = shape.vocabulary, max(size, FLOAT)
    final = size * shape.head if trains_head else 0
    short = size if size < FLOAT else 0
    rows = max(1, LOGITS_AT_A_TIME // vocabulary)
    if targets <= rows:
        logits = targets * vocabulary
        return Head((2 * exact + short) * logits, exact * logits, (exact + short) * logits + final)
    hidden = targets * shape.width * size
    block = min(rows, max(1, BLOCK_LOGITS[kind] // vocabulary)) * vocabulary * exact
    gradient = (exact + short) * shape.head if trains_head else 0
    forward = rows * vocabulary * size + (2 if short else 1) * block + gradient + hidden
    return Head(forward, final, final + hidden)
