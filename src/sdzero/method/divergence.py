"""The divergence between the student's and the teacher's next-token distributions, chunk by chunk.

`L_SD = sum_t KL(pi_theta(. | x, y_<t) || pi_T(. | x, y, P_r, y_<t))` (arXiv 2604.12002, equation 5),
over the full vocabulary. A [T, V] tensor of logits would not fit for long responses (16K tokens times
152K vocabulary entries are 10 GB in float32), so logits are made from the hidden states for one chunk
of tokens at a time. A chunk's gradient is taken while its logits are there, and kept as the gradient of
the hidden states and of the head: four products with a head a token (two of them logits), as many as the
gradient needs, and no logits between the passes. The temperature is 1.

With student log-probabilities s and probabilities P, teacher t and Q, the mixture M = (P + Q) / 2 and
m = log M, for one token:

    kind      value L                        gradient with respect to the student's logits
    reverse   sum P (s - t)                  P ((s - t) - L)
    forward   sum Q (t - s)                  P - Q
    mixed     (reverse + forward) / 2        the mean of the two
    jsd       KL(P || M) / 2 + KL(Q || M) / 2    P ((s - m) - KL(P || M)) / 2

`reverse` is the paper's; `mixed` is its authors' code's; `jsd` is the generalized Jensen-Shannon
divergence with beta 0.5 (GKD, arXiv 2306.13649). Gradient reaches the student's hidden states, head
and bias; none reaches the teacher.

A token may have a factor that depends on divergence and entropy (a clip, a choice of tokens). Where its
own are enough, the factor is made chunk by chunk; where all tokens have to be known, there are two
passes, and the second makes the logits again. Tokens whose weight is 0 have no gradient to be made.

The table of backends, `BACKENDS`, has two that compute this: `chunked`, in PyTorch, on any device, and
`trl`, the kernel of TRL's distillation trainer (Triton on a GPU, PyTorch elsewhere), which keeps no gradients
and makes the logits again in the backward pass; it has no `mixed`.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from sdzero.errors import UserError
from sdzero.method.divergence_chunks import ChunkedDivergence, DivergenceKind, FactorsOf
from sdzero.method.roles import AlignmentError

__all__ = ["BACKENDS", "Backend", "Divergence", "DivergenceKind", "FactorsOf", "divergence_from_hidden"]

Backend = Literal["chunked", "trl"]

CHUNK_LOGITS = {"cpu": 1 << 25, "default": 1 << 28}
"""Logits of one model in a chunk of automatic size. On a CPU more than these slow down; on a GPU a chunk has
to be long enough for the pass over the head's gradient, once a chunk, not to count."""

TRL_BETA: dict[str, float] = {"forward": 0.0, "jsd": 0.5, "reverse": 1.0}
"""What TRL's kernel calls them."""


@dataclass(frozen=True)
class Divergence:
    """`total` is the weighted sum over tokens, in nats, and carries the gradient.

    `per_token_T` (unweighted) and `student_entropy_T` are detached; all three are float32, or float64
    if the inputs are.
    """

    total: Tensor
    per_token_T: Tensor
    student_entropy_T: Tensor


def divergence_from_hidden(
    student_hidden_TD: Tensor,
    teacher_hidden_TD: Tensor,
    student_head_VD: Tensor,
    teacher_head_VD: Tensor,
    kind: DivergenceKind,
    chunk_tokens: int | Literal["auto"],
    weights_T: Tensor | None = None,
    student_bias_V: Tensor | None = None,
    teacher_bias_V: Tensor | None = None,
    factors_of: FactorsOf | None = None,
    factors_are_local: bool = False,
    backend: Backend = "chunked",
) -> Divergence:
    """Sum over tokens of the divergence between two heads' distributions.

    Row t of both hidden states belongs to the same target token; the widths D may differ between
    student and teacher, the vocabulary may not. `weights_T` defaults to ones, and is multiplied with what
    `factors_of` gives; with `factors_are_local` a token's factor depends on its own divergence and entropy
    alone, and `factors_of` is called with some of the tokens at a time. Logits are computed in
    the inputs' dtype (under autocast, in autocast's) and raised to float32 within the chunk; float64
    stays. At most `chunk_tokens` rows of logits per model are alive at a time (`auto`: as the device and the
    vocabulary allow; `trl` has a size of its own,
    and works in float32 always).

    Raises AlignmentError when the lengths differ, ValueError for other shapes that do not fit, UserError for
    a backend that does not have this divergence.
    """
    check_shapes(student_hidden_TD, teacher_hidden_TD, student_head_VD, teacher_head_VD, weights_T)
    if chunk_tokens == "auto":
        chunk_tokens = automatic_chunk(student_hidden_TD.device.type, len(student_head_VD))
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, not {chunk_tokens}")
    if kind not in ("reverse", "forward", "mixed", "jsd"):
        raise ValueError(f"unknown divergence {kind!r}")
    if weights_T is None:
        weights_T = student_hidden_TD.new_ones(student_hidden_TD.shape[0])
    check_backend(backend, kind)
    student = student_hidden_TD, student_head_VD, student_bias_V
    teacher = (
        teacher_hidden_TD.detach(),
        teacher_head_VD.detach(),
        None if teacher_bias_V is None else teacher_bias_V.detach(),
    )
    factors = factors_of, factors_are_local or factors_of is None
    return BACKENDS[backend](student, teacher, weights_T.detach(), kind, chunk_tokens, *factors)


def check_backend(backend: Backend, kind: DivergenceKind) -> None:
    """Raise UserError if the backend does not have this divergence."""
    if backend == "trl" and kind not in TRL_BETA:
        raise UserError(
            f"TRL's kernel has no `{kind}` divergence",
            "distill.divergence_backend",
            f"set distill.divergence_backend=chunked, or distill.divergence={'|'.join(sorted(TRL_BETA))}",
        )


Side = tuple[Tensor, Tensor, Tensor | None]
"""One model's hidden states [T, D], head [V, D] and bias [V]."""


class _BackendFunction(Protocol):
    def __call__(
        self,
        student: Side,
        teacher: Side,
        weights_T: Tensor,
        kind: DivergenceKind,
        chunk_tokens: int,
        factors_of: FactorsOf | None,
        factors_are_local: bool,
    ) -> Divergence: ...


def _chunked(
    student: Side,
    teacher: Side,
    weights_T: Tensor,
    kind: DivergenceKind,
    chunk_tokens: int,
    factors_of: FactorsOf | None,
    factors_are_local: bool,
) -> Divergence:
    total, per_token_T, entropy_T = ChunkedDivergence.apply(  # type: ignore[no-untyped-call]
        *student,
        *teacher,
        weights_T,
        kind,
        chunk_tokens,
        factors_of,
        factors_are_local,
        torch.is_grad_enabled(),
    )
    return Divergence(total, per_token_T, entropy_T)


def _trl(
    student: Side,
    teacher: Side,
    weights_T: Tensor,
    kind: DivergenceKind,
    chunk_tokens: int,
    factors_of: FactorsOf | None,
    factors_are_local: bool,
) -> Divergence:
    # Imports Triton where there is a GPU, so only if it is asked for.
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    found = ChunkedDivergenceFunction.apply(*student, *teacher, TRL_BETA[kind])  # type: ignore[no-untyped-call]
    per_token_T, entropy_T = found
    measured_T, entropy_T = per_token_T.detach(), entropy_T.detach()
    factors_T = None if factors_of is None else factors_of(measured_T, entropy_T)
    if factors_T is not None:
        weights_T = weights_T * factors_T
    return Divergence((per_token_T * weights_T).sum(), measured_T, entropy_T)


BACKENDS: dict[Backend, _BackendFunction] = {"chunked": _chunked, "trl": _trl}
"""What computes the divergence."""


def automatic_chunk(device_type: str, vocabulary: int) -> int:
    """How many tokens a chunk has: what fits `CHUNK_LOGITS`, 32 to 1,024."""
    logits = CHUNK_LOGITS.get(device_type, CHUNK_LOGITS["default"])
    return min(1024, max(32, logits // vocabulary))


def check_shapes(
    student_hidden_TD: Tensor,
    teacher_hidden_TD: Tensor,
    student_head_VD: Tensor,
    teacher_head_VD: Tensor,
    weights_T: Tensor | None,
) -> None:
    """Raise AlignmentError when the lengths differ, ValueError for other shapes that do not fit."""
    if student_hidden_TD.shape[0] != teacher_hidden_TD.shape[0]:
        raise AlignmentError(
            f"{student_hidden_TD.shape[0]} student rows but {teacher_hidden_TD.shape[0]} teacher rows"
        )
    if weights_T is not None and weights_T.shape != student_hidden_TD.shape[:1]:
        raise ValueError(f"weights of shape {tuple(weights_T.shape)} for {len(student_hidden_TD)} tokens")
    if student_head_VD.shape[0] != teacher_head_VD.shape[0]:
        raise ValueError(
            f"the student's vocabulary has {student_head_VD.shape[0]} entries, "
            f"the teacher's {teacher_head_VD.shape[0]}"
        )
