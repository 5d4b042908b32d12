"""The divergence between the student's and the teacher's next-token distributions, chunk by chunk.

`L_SD = sum_t KL(pi_theta(. | x, y_<t) || pi_T(. | x, y, P_r, y_<t))` (arXiv 2604.12002, equation 5),
over the full vocabulary. A [T, V] tensor of logits would not fit for long responses (16K tokens times
152K vocabulary entries are 10 GB in float32), so logits are made from the hidden states for one chunk
of tokens at a time. The forward pass keeps no logits; the backward pass makes them again, chunk by
chunk, and applies the gradients below. That costs one more product with each head and saves the
memory. The temperature is 1.

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

A token may have a factor that depends on its own divergence and entropy (a clip, a choice of tokens): it is
made between the two passes, and tokens whose weight is 0 have no part in the second.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from sdzero.method.roles import AlignmentError

DivergenceKind = Literal["reverse", "forward", "mixed", "jsd"]
FactorsOf = Callable[[Tensor, Tensor], Tensor | None]
"""From each token's divergence and student entropy, [T] both, its factor [T]; None means ones."""


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
    chunk_tokens: int,
    weights_T: Tensor | None = None,
    student_bias_V: Tensor | None = None,
    teacher_bias_V: Tensor | None = None,
    factors_of: FactorsOf | None = None,
) -> Divergence:
    """Sum over tokens of the divergence between two heads' distributions.

    Row t of both hidden states belongs to the same target token; the widths D may differ between
    student and teacher, the vocabulary may not. `weights_T` defaults to ones, and is multiplied with what
    `factors_of` gives. Logits are computed in
    the inputs' dtype (under autocast, in autocast's) and raised to float32 within the chunk; float64
    stays. At most `chunk_tokens` rows of logits per model are alive at a time.

    Raises AlignmentError when the lengths differ, ValueError for other shapes that do not fit.
    """
    if student_hidden_TD.shape[0] != teacher_hidden_TD.shape[0]:
        raise AlignmentError(
            f"{student_hidden_TD.shape[0]} student rows but {teacher_hidden_TD.shape[0]} teacher rows"
        )
    if weights_T is None:
        weights_T = student_hidden_TD.new_ones(student_hidden_TD.shape[0])
    if weights_T.shape != student_hidden_TD.shape[:1]:
        raise ValueError(f"weights of shape {tuple(weights_T.shape)} for {len(student_hidden_TD)} tokens")
    if student_head_VD.shape[0] != teacher_head_VD.shape[0]:
        raise ValueError(
            f"the student's vocabulary has {student_head_VD.shape[0]} entries, "
            f"the teacher's {teacher_head_VD.shape[0]}"
        )
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, not {chunk_tokens}")
    if kind not in ("reverse", "forward", "mixed", "jsd"):
        raise ValueError(f"unknown divergence {kind!r}")
    total, per_token_T, entropy_T = _ChunkedDivergence.apply(  # type: ignore[no-untyped-call]
        student_hidden_TD,
        student_head_VD,
        student_bias_V,
        teacher_hidden_TD.detach(),
        teacher_head_VD.detach(),
        None if teacher_bias_V is None else teacher_bias_V.detach(),
        weights_T.detach(),
        kind,
        chunk_tokens,
        factors_of,
    )
    return Divergence(total, per_token_T, entropy_T)


class _ChunkedDivergence(torch.autograd.Function):
    """Keeps hidden states and heads between the passes, never logits."""

    @staticmethod
    def forward(
        ctx: Any,
        student_hidden_TD: Tensor,
        student_head_VD: Tensor,
        student_bias_V: Tensor | None,
        teacher_hidden_TD: Tensor,
        teacher_head_VD: Tensor,
        teacher_bias_V: Tensor | None,
        weights_T: Tensor,
        kind: DivergenceKind,
        chunk_tokens: int,
        factors_of: FactorsOf | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        student = _Head(student_hidden_TD, student_head_VD, student_bias_V)
        teacher = _Head(teacher_hidden_TD, teacher_head_VD, teacher_bias_V)
        ctx.kind, ctx.chunk_tokens = kind, chunk_tokens
        ctx.product_dtypes = student.product_dtype, teacher.product_dtype
        per_token_T = student_hidden_TD.new_zeros(len(student_hidden_TD), dtype=student.dtype)
        entropy_T = torch.zeros_like(per_token_T)
        for rows in _chunks(len(student_hidden_TD), chunk_tokens):
            per_token_T[rows], entropy_T[rows] = _chunk_values(student, teacher, rows, kind)
        factors_T = None if factors_of is None else factors_of(per_token_T, entropy_T)
        if factors_T is not None:
            weights_T = weights_T * factors_T
        ctx.save_for_backward(
            student_hidden_TD,
            student_head_VD,
            student_bias_V,
            teacher_hidden_TD,
            teacher_head_VD,
            teacher_bias_V,
            weights_T,
        )
        ctx.mark_non_differentiable(per_token_T, entropy_T)
        return (per_token_T * weights_T).sum(), per_token_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total_gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TD, head_VD, bias_V, teacher_hidden_TD, teacher_head_VD, teacher_bias_V, weights_T = (
            ctx.saved_tensors
        )
        student = _Head(hidden_TD, head_VD, bias_V, ctx.product_dtypes[0])
        teacher = _Head(teacher_hidden_TD, teacher_head_VD, teacher_bias_V, ctx.product_dtypes[1])
        wants_hidden, wants_head, wants_bias = ctx.needs_input_grad[:3]
        hidden_gradient_TD = torch.zeros_like(hidden_TD) if wants_hidden else None
        # Summed over the chunks, so in full precision until the end.
        head_gradient_VD = torch.zeros_like(head_VD, dtype=student.dtype) if wants_head else None
        bias_gradient_V = torch.zeros_like(bias_V, dtype=student.dtype) if wants_bias else None
        scale_T = total_gradient * weights_T
        for rows in _weighted_chunks(weights_T, ctx.chunk_tokens):
            gradient_CV = _chunk_gradients(student, teacher, rows, ctx.kind).mul_(scale_T[rows, None])
            if bias_gradient_V is not None:
                bias_gradient_V += gradient_CV.sum(0)
            gradient_CV = gradient_CV.to(student.product_dtype)
            if hidden_gradient_TD is not None:
                hidden_gradient_TD[rows] = (gradient_CV @ student.head_VD).to(hidden_TD.dtype)
            if head_gradient_VD is not None:
                head_gradient_VD += gradient_CV.T @ student.hidden_TD[rows]
            del gradient_CV  # before the next chunk's logits are made
        return (
            hidden_gradient_TD,
            None if head_gradient_VD is None else head_gradient_VD.to(head_VD.dtype),
            None if bias_gradient_V is None else bias_gradient_V.to(bias_V.dtype),
            *(None,) * 7,
        )


class _Head:
    """One model's hidden states and head, brought to the dtype in which their product is taken."""

    def __init__(
        self,
        hidden_TD: Tensor,
        head_VD: Tensor,
        bias_V: Tensor | None,
        product_dtype: torch.dtype | None = None,
    ) -> None:
        if product_dtype is None:
            product_dtype = torch.promote_types(hidden_TD.dtype, head_VD.dtype)
            if torch.is_autocast_enabled(hidden_TD.device.type):
                product_dtype = torch.get_autocast_dtype(hidden_TD.device.type)
        self.product_dtype = product_dtype
        self.dtype = torch.promote_types(product_dtype, torch.float32)
        self.hidden_TD = hidden_TD.to(product_dtype)
        self.head_VD = head_VD.to(product_dtype)
        self.bias_V = None if bias_V is None else bias_V.to(product_dtype)

    def log_probabilities(self, rows: slice | Tensor) -> Tensor:
        """[C, V] log-probabilities of one chunk, in float32 or float64."""
        logits_CV = functional.linear(self.hidden_TD[rows], self.head_VD, self.bias_V).to(self.dtype)
        return logits_CV.sub_(logits_CV.logsumexp(-1, keepdim=True))


def _chunks(tokens: int, chunk_tokens: int) -> list[slice]:
    return [slice(start, start + chunk_tokens) for start in range(0, tokens, chunk_tokens)]


def _weighted_chunks(weights_T: Tensor, chunk_tokens: int) -> list[slice] | list[Tensor]:
    """Chunks of the tokens that have a weight."""
    if bool((weights_T != 0).all()):
        return _chunks(len(weights_T), chunk_tokens)
    return list(torch.split(weights_T.nonzero()[:, 0], chunk_tokens))


def _chunk_values(student: _Head, teacher: _Head, rows: slice, kind: DivergenceKind) -> tuple[Tensor, Tensor]:
    """The divergence and the student's entropy of each row of a chunk."""
    s_CV, t_CV = student.log_probabilities(rows), teacher.log_probabilities(rows)
    entropy_C = -s_CV.exp().mul_(s_CV).sum(-1)
    return _values(s_CV, t_CV, kind), entropy_C


def _values(s_CV: Tensor, t_CV: Tensor, kind: DivergenceKind) -> Tensor:
    if kind == "jsd":
        m_CV = _log_mixture(s_CV, t_CV)
        return 0.5 * (_kl(s_CV, m_CV) + _kl(t_CV, m_CV))
    if kind == "reverse":
        return _kl(s_CV, t_CV)
    if kind == "forward":
        return _kl(t_CV, s_CV)
    return 0.5 * (_kl(s_CV, t_CV) + _kl(t_CV, s_CV))


def _chunk_gradients(student: _Head, teacher: _Head, rows: slice | Tensor, kind: DivergenceKind) -> Tensor:
    """The derivative of each row's divergence with respect to the student's logits."""
    s_CV, t_CV = student.log_probabilities(rows), teacher.log_probabilities(rows)
    p_CV = s_CV.exp()
    # Both log-probabilities are this function's own, and are overwritten where they are needed last.
    if kind == "forward":
        return p_CV.sub_(t_CV.exp_())
    if kind == "jsd":
        return _kl_gradient(p_CV, s_CV.sub_(_log_mixture(s_CV, t_CV))).mul_(0.5)
    reverse_CV = _kl_gradient(p_CV, s_CV.sub_(t_CV))
    if kind == "reverse":
        return reverse_CV
    return reverse_CV.add_(p_CV).sub_(t_CV.exp_()).mul_(0.5)


def _kl(a_CV: Tensor, b_CV: Tensor) -> Tensor:
    """KL(A || B) of each row, from log-probabilities."""
    return a_CV.exp().mul_(a_CV - b_CV).sum(-1)


def _kl_gradient(p_CV: Tensor, ratio_CV: Tensor) -> Tensor:
    """P (ratio - sum P ratio), where `ratio` is a difference of log-probabilities (overwritten)."""
    mean_C1 = (p_CV * ratio_CV).sum(-1, keepdim=True)
    return ratio_CV.sub_(mean_C1).mul_(p_CV)


def _log_mixture(s_CV: Tensor, t_CV: Tensor) -> Tensor:
    return torch.logaddexp(s_CV, t_CV).sub_(math.log(2.0))
