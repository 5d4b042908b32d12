"""Drawing tokens: random numbers that depend on a request's seed alone, and the token each one means."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sdzero.rollout.engine import Request, Sampling

NUMBERS_AT_A_TIME = 1 << 18
"""Float64 probabilities that are held at once while tokens are drawn; larger batches go in slices.

2 MiB: such a slice stays in the processor's cache and in memory that is used again. Slices of 10 MiB take
seven times as long (V = 152K, 8 rows), nearly all of it for fresh pages from the system.
"""

NUMBERS_AT_A_TIME_ON_GPU = 1 << 24


def random_numbers(requests: Sequence[Request], steps: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 `[requests, steps]`; a row depends on its seed alone.

    Philox is counter-based: the first numbers of a row are the same whatever `steps` is.
    """
    rows = [np.random.Generator(np.random.Philox(key=request.seed)).random(steps) for request in requests]
    return torch.from_numpy(np.stack(rows))


def draw_tokens(logits_BV: Tensor, numbers_B: Tensor | None, sampling: Sampling) -> Tensor:
    """One token per row of logits: the argmax at temperature 0, else by inverse cumulative distribution.

    `numbers_B` are uniform in [0, 1), float64. The distribution is the softmax of the logits over the
    temperature, cut to the `top_k` likeliest tokens, then to the smallest set of likeliest tokens whose
    share reaches `top_p` (the order in which transformers applies them).
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    assert numbers_B is not None
    at_a_time = NUMBERS_AT_A_TIME if logits_BV.device.type == "cpu" else NUMBERS_AT_A_TIME_ON_GPU
    rows, size = len(logits_BV), max(1, at_a_time // logits_BV.shape[-1])
    slices = [slice(start, start + size) for start in range(0, rows, size)]
    return torch.cat([_draw_slice(logits_BV[part], numbers_B[part], sampling) for part in slices])


def _draw_slice(logits_SV: Tensor, numbers_S: Tensor, sampling: Sampling) -> Tensor:
    scaled_SV = logits_SV.double()
    if sampling.temperature != 1:
        scaled_SV = scaled_SV / sampling.temperature
    probabilities_SV = scaled_SV.softmax(dim=-1)
    if sampling.top_k or sampling.top_p < 1:
        probabilities_SV = _cut_tail(probabilities_SV, sampling)
    cumulative_SV = probabilities_SV.cumsum(dim=-1)
    total_S1 = cumulative_SV[:, -1:]
    # Strictly below the total, so that the first token whose cumulative share exceeds the number exists;
    # its own probability is then above 0.
    targets_S1 = torch.minimum(numbers_S[:, None] * total_S1, total_S1.nextafter(torch.zeros_like(total_S1)))
    return torch.searchsorted(cumulative_SV, targets_S1, right=True)[:, 0]


def _cut_tail(probabilities_SV: Tensor, sampling: Sampling) -> Tensor:
    """Set the probabilities outside top_k and top_p to 0; what is left keeps the vocabulary's order."""
    sorted_SV, order_SV = probabilities_SV.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        sorted_SV[:, sampling.top_k :] = 0
    before_SV = sorted_SV.cumsum(dim=-1) - sorted_SV
    share_S1 = sorted_SV.sum(dim=-1, keepdim=True) * sampling.top_p
    if sampling.top_p < 1:
        sorted_SV = sorted_SV.masked_fill(before_SV >= share_S1, 0)
    return torch.zeros_like(probabilities_SV).scatter(-1, order_SV, sorted_SV)
