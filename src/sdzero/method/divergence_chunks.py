"""The chunked divergence in PyTorch: logits of some tokens at a time, and their gradient while they exist.

See `sdzero.method.divergence` for the formulas. Without factors that need all tokens there is one pass over
the chunks, in the forward pass of autograd; what is kept are the gradients of hidden states and head.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdzero.method.head_products import (
    HeadGradients,
    OutputHead,
    Rows,
    block_rows,
    chunks_by_weight,
    log_probabilities_of,
    part_of,
)

DivergenceKind = Literal["reverse", "forward", "mixed", "jsd"]

FactorsOf = Callable[[Tensor, Tensor], Tensor | None]
"""From each token's divergence and student entropy, [T] both, its factor [T]; None means ones."""


class ChunkedDivergence(torch.autograd.Function):
    """Keeps the gradients between the passes, or hidden states and heads; never logits."""

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
        one_pass: bool,
        wants_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        student = OutputHead(student_hidden_TD, student_head_VD, student_bias_V)
        teacher = OutputHead(teacher_hidden_TD, teacher_head_VD, teacher_bias_V)
        per_token_T = student_hidden_TD.new_zeros(len(student_hidden_TD), dtype=student.dtype)
        entropy_T = torch.zeros_like(per_token_T)
        wants = ctx.needs_input_grad[:3] if wants_gradient else (False, False, False)
        ctx.one_pass = one_pass
        gradients = HeadGradients(student, wants) if one_pass and any(wants) else None
        factors_T = torch.ones_like(per_token_T) if one_pass and factors_of is not None else None
        logits = _Logits(student, teacher, chunk_tokens)
        for rows, weighted in chunks_by_weight(weights_T, chunk_tokens, gradients is not None):
            logits.make(rows)
            for block in logits.blocks():
                values = _of_block(block.student_CV, block.teacher_CV, kind, weighted)
                per_token_T[block.rows], entropy_T[block.rows] = values.divergence_C, values.entropy_C
                scale_C = weights_T[block.rows]
                if factors_T is not None and factors_of is not None:
                    factors_C = factors_of(values.divergence_C, values.entropy_C)
                    if factors_C is not None:
                        factors_T[block.rows] = factors_C
                        scale_C = scale_C * factors_C
                if values.gradient_CV is not None:
                    block.take_gradient(values.gradient_CV.mul_(scale_C[:, None]))
                del values, block  # before the next block's are made
            if gradients is not None and weighted:
                gradients.add(rows, logits.student_CV)
        if not one_pass:
            assert factors_of is not None
            factors_T = factors_of(per_token_T, entropy_T)
        if factors_T is not None:
            weights_T = weights_T * factors_T
        if gradients is not None:
            ctx.save_for_backward(*gradients.finished())
        elif any(wants):
            ctx.kind, ctx.chunk_tokens = kind, chunk_tokens
            ctx.product_dtypes = student.product_dtype, teacher.product_dtype
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
        if ctx.one_pass:
            found = ctx.saved_tensors
            # On a CPU a look is free, and a pass over the head's gradient is not.
            if total_gradient.device.type != "cpu" or total_gradient.item() != 1.0:
                found = [None if one is None else one * total_gradient.to(one.dtype) for one in found]
            return (*found, *(None,) * 9)
        saved = ctx.saved_tensors
        student = OutputHead(saved[0], saved[1], saved[2], ctx.product_dtypes[0])
        teacher = OutputHead(saved[3], saved[4], saved[5], ctx.product_dtypes[1])
        weights_T = saved[6]
        gradients = HeadGradients(student, ctx.needs_input_grad[:3])
        scale_T = total_gradient * weights_T
        logits = _Logits(student, teacher, ctx.chunk_tokens)
        for rows, weighted in chunks_by_weight(weights_T, ctx.chunk_tokens, True):
            if not weighted:
                continue
            logits.make(rows)
            for block in logits.blocks():
                gradient_CV = _of_block(block.student_CV, block.teacher_CV, ctx.kind, True).gradient_CV
                assert gradient_CV is not None
                block.take_gradient(gradient_CV.mul_(scale_T[block.rows, None]))
                del gradient_CV, block
            gradients.add(rows, logits.student_CV)
        return (*gradients.finished(), *(None,) * 9)


@dataclass(frozen=True)
class _Block:
    """Some rows of a chunk: where they stand among all tokens, and both log-probabilities, [C, V]."""

    rows: Rows
    student_CV: Tensor
    teacher_CV: Tensor
    room_CV: Tensor

    def take_gradient(self, gradient_CV: Tensor) -> None:
        """Put the gradient where the student's logits stood."""
        if gradient_CV.data_ptr() != self.room_CV.data_ptr():
            self.room_CV.copy_(gradient_CV)


class _Logits:
    """Both models' logits of one chunk after the other, in the same memory."""

    def __init__(self, student: OutputHead, teacher: OutputHead, chunk_tokens: int) -> None:
        tokens = min(chunk_tokens, len(student.hidden_TD))
        self._student, self._teacher = student, teacher
        self._rooms = student.room(tokens), teacher.room(tokens)
        self._block = block_rows(student.hidden_TD.device.type, len(student.head_VD))
        self._rows: Rows = slice(0, 0)

    def make(self, rows: Rows) -> None:
        """Make the logits of these rows; those of the rows before are gone."""
        self._rows = rows
        self.student_CV = self._student.logits(rows, self._rooms[0])
        self.teacher_CV = self._teacher.logits(rows, self._rooms[1])

    def blocks(self) -> Iterator[_Block]:
        """The chunk, a few rows at a time."""
        for start in range(0, len(self.student_CV), self._block):
            part = slice(start, min(start + self._block, len(self.student_CV)))
            own_CV = self.student_CV[part]
            yield _Block(
                part_of(self._rows, part),
                log_probabilities_of(own_CV, self._student.dtype),
                log_probabilities_of(self.teacher_CV[part], self._teacher.dtype),
                own_CV,
            )


@dataclass(frozen=True)
class _Values:
    divergence_C: Tensor
    entropy_C: Tensor
    gradient_CV: Tensor | None


def _of_block(s_CV: Tensor, t_CV: Tensor, kind: DivergenceKind, wants_gradient: bool) -> _Values:
    """Divergence and student entropy of each row, and the derivative with respect to the student's logits.

    Both log-probabilities are overwritten.
    """
    p_CV = s_CV.exp()
    entropy_C = -(p_CV * s_CV).sum(-1)
    if kind == "reverse":
        ratio_CV = s_CV.sub_(t_CV)
        reverse_C1 = torch.mul(p_CV, ratio_CV, out=t_CV).sum(-1, keepdim=True)
        gradient_CV = ratio_CV.sub_(reverse_C1).mul_(p_CV) if wants_gradient else None
        return _Values(reverse_C1[:, 0], entropy_C, gradient_CV)
    if kind == "jsd":
        m_CV = torch.logaddexp(s_CV, t_CV).sub_(math.log(2.0))
        ratio_CV = s_CV.sub_(m_CV)
        torch.sub(t_CV, m_CV, out=m_CV)
        teacher_C = t_CV.exp_().mul_(m_CV).sum(-1)
        student_C1 = torch.mul(p_CV, ratio_CV, out=t_CV).sum(-1, keepdim=True)
        gradient_CV = ratio_CV.sub_(student_C1).mul_(p_CV).mul_(0.5) if wants_gradient else None
        return _Values(0.5 * (student_C1[:, 0] + teacher_C), entropy_C, gradient_CV)
    q_CV = t_CV.exp()
    if kind == "forward":
        forward_C = t_CV.sub_(s_CV).mul_(q_CV).sum(-1)
        return _Values(forward_C, entropy_C, p_CV.sub_(q_CV) if wants_gradient else None)
    ratio_CV = s_CV.sub_(t_CV)
    reverse_C1 = torch.mul(p_CV, ratio_CV, out=t_CV).sum(-1, keepdim=True)
    forward_C = -torch.mul(q_CV, ratio_CV, out=t_CV).sum(-1)
    if not wants_gradient:
        return _Values(0.5 * (reverse_C1[:, 0] + forward_C), entropy_C, None)
    gradient_CV = ratio_CV.sub_(reverse_C1).mul_(p_CV).add_(p_CV).sub_(q_CV).mul_(0.5)
    return _Values(0.5 * (reverse_C1[:, 0] + forward_C), entropy_C, gradient_CV)
