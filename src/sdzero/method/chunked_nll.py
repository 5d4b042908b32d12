"""-log p of given tokens, weighted and summed, without logits of more than a chunk.

As with the divergence, a chunk's gradient p - 1[target] is taken while its logits are there, so a token costs
the three products that the gradient needs, and nothing is made twice.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdzero.method.head_products import (
    HeadGradients,
    OutputHead,
    block_rows,
    chunks_by_weight,
    log_probabilities_of,
    part_of,
)


def weighted_nll_sum(
    hidden_TD: Tensor,
    head_VD: Tensor,
    bias_V: Tensor | None,
    targets_T: Tensor,
    weights_T: Tensor,
    chunk_tokens: int,
) -> Tensor:
    """Sum of weight * -log p(target), a scalar in float32 (float64 stays) that carries gradient."""
    total: Tensor = _ChunkedNll.apply(  # type: ignore[no-untyped-call]
        hidden_TD, head_VD, bias_V, targets_T, weights_T, chunk_tokens, torch.is_grad_enabled()
    )
    return total


class _ChunkedNll(torch.autograd.Function):
    """Keeps the gradients of hidden states and head between the passes."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        head_VD: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        weights_T: Tensor,
        chunk_tokens: int,
        wants_gradient: bool,
    ) -> Tensor:
        head = OutputHead(hidden_TD, head_VD, bias_V)
        wants = ctx.needs_input_grad[:3] if wants_gradient else (False, False, False)
        gradients = HeadGradients(head, wants) if any(wants) else None
        total = hidden_TD.new_zeros((), dtype=head.dtype)
        room_CV = head.room(min(chunk_tokens, len(hidden_TD)))
        size = block_rows(hidden_TD.device.type, len(head_VD))
        for rows, _ in chunks_by_weight(weights_T, chunk_tokens, apart=False):
            logits_CV = head.logits(rows, room_CV)
            for start in range(0, len(logits_CV), size):
                part = slice(start, min(start + size, len(logits_CV)))
                own = part_of(rows, part)
                log_CV = log_probabilities_of(logits_CV[part], head.dtype)
                targets_C1 = targets_T[own][:, None]
                weights_C = weights_T[own].to(head.dtype)
                total -= (log_CV.gather(-1, targets_C1)[:, 0] * weights_C).sum()
                if gradients is not None:
                    gradient_CV = log_CV.exp_()
                    gradient_CV.scatter_add_(-1, targets_C1, gradient_CV.new_full(targets_C1.shape, -1.0))
                    logits_CV[part] = gradient_CV.mul_(weights_C[:, None])
            if gradients is not None:
                gradients.add(rows, logits_CV)
        if gradients is not None:
            ctx.save_for_backward(*gradients.finished())
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total_gradient: Tensor) -> tuple[Tensor | None, ...]:
        found = [None if g is None else g * total_gradient.to(g.dtype) for g in ctx.saved_tensors]
        return (*found, None, None, None, None)
