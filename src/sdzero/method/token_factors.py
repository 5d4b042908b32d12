"""How much each token of a response counts in the divergence: clipped, or chosen by entropy.

Both are factors of the tokens' losses, made from detached values: no gradient passes through a factor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ClipGradient = Literal["scale", "stop"]


@dataclass(frozen=True)
class TokenFactors:
    """Clip and choice of tokens, as the recipe has them.

    `clip` (nats) bounds what one token adds to the loss. `clip_gradient` says what becomes of the gradient of
    a token above it: `scale` makes it smaller in the same proportion, `stop` drops it, which is the
    derivative of min(L, clip). `token_share` keeps that share of each response's tokens, those where the
    student's entropy is highest (TIP, arXiv 2604.14084).
    """

    clip: float | None = None
    clip_gradient: ClipGradient = "scale"
    token_share: float = 1.0

    @property
    def are_ones(self) -> bool:
        """Whether nothing is clipped or left out."""
        return self.clip is None and self.token_share == 1.0

    @property
    def are_local(self) -> bool:
        """Whether a token's factor depends on that token alone."""
        return self.token_share == 1.0

    def __call__(self, divergence_T: Tensor, entropy_T: Tensor, lengths: Sequence[int]) -> Tensor | None:
        """The factors of the tokens of responses with these lengths; None where all are 1."""
        factors_T = None
        if self.clip is not None:
            factors_T = clip_factors(divergence_T, self.clip, self.clip_gradient)
        if self.token_share < 1.0:
            chosen_T = entropy_factors(entropy_T, lengths, self.token_share)
            factors_T = chosen_T if factors_T is None else factors_T * chosen_T
        return factors_T


def clip_factors(divergence_T: Tensor, clip: float, gradient: ClipGradient) -> Tensor:
    """1 up to `clip`; above it clip / L, or with `stop` 0."""
    above_T = divergence_T > clip
    scaled_T = clip / divergence_T.clamp_min(clip)
    return torch.where(above_T, torch.zeros_like(scaled_T) if gradient == "stop" else scaled_T, 1.0)


def entropy_factors(entropy_T: Tensor, lengths: Sequence[int], share: float) -> Tensor:
    """0 for the tokens that are left out; for the others of a response, its length over their number.

    So a response weighs what it weighed with all its tokens. The chosen are ceil(share * length) of each
    response, the earlier ones of equals; the choice does not depend on what else is in the batch.
    """
    factors_T = torch.zeros_like(entropy_T)
    start = 0
    for length in lengths:
        kept = math.ceil(share * length)
        order = torch.argsort(entropy_T[start : start + length], descending=True, stable=True)[:kept]
        factors_T[start + order] = length / kept
        start += length
    return factors_T
