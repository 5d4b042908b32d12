"""Products with an output head, some tokens at a time: logits forward, gradients backward, both in one pass.

What a loss over the vocabulary needs of them: `OutputHead` makes the logits of a chunk in memory that
the next chunk takes over, the loss puts its gradient where the student's logits stood, and
`HeadGradients` adds up the products with it.
"""

import torch
from torch import Tensor

Rows = slice | Tensor
"""Some of the tokens: consecutive ones, or by number."""

BLOCK_LOGITS = {"cpu": 1 << 19, "default": 1 << 26}
"""Logits of one model that are worked on at once. On a CPU a block and its like stay in the caches: all
that is not a product then costs little."""


def block_rows(device_type: str, vocabulary: int) -> int:
    """How many tokens are worked on at once."""
    return max(1, BLOCK_LOGITS.get(device_type, BLOCK_LOGITS["default"]) // vocabulary)


class OutputHead:
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
        self.given = hidden_TD, head_VD, bias_V
        self.hidden_TD = hidden_TD.to(product_dtype)
        self.head_VD = head_VD.to(product_dtype)
        self.bias_V = None if bias_V is None else bias_V.to(product_dtype)

    def room(self, tokens: int) -> Tensor:
        """[C, V]: room for the logits of so many tokens."""
        return self.hidden_TD.new_empty((tokens, len(self.head_VD)))

    def logits(self, rows: Rows, room_CV: Tensor) -> Tensor:
        """[C, V] logits of one chunk, in `room_CV`."""
        hidden_CD = self.hidden_TD[rows]
        out_CV = room_CV[: len(hidden_CD)]
        if self.bias_V is None:
            return torch.mm(hidden_CD, self.head_VD.T, out=out_CV)
        return torch.addmm(self.bias_V, hidden_CD, self.head_VD.T, out=out_CV)


class HeadGradients:
    """The gradients of the student's hidden states, head and bias, as far as they are wanted."""

    def __init__(self, student: OutputHead, wants: tuple[bool, bool, bool]) -> None:
        self._student = student
        self._dtypes = [None if one is None else one.dtype for one in student.given]
        hidden_TD, head_VD, bias_V = student.given
        self._hidden_TD = torch.zeros_like(hidden_TD) if wants[0] else None
        # Summed over the chunks, so in full precision until the end.
        self._head_VD = torch.zeros_like(head_VD, dtype=student.dtype) if wants[1] else None
        self._bias_V = (
            torch.zeros_like(bias_V, dtype=student.dtype) if wants[2] and bias_V is not None else None
        )

    def add(self, rows: Rows, gradient_CV: Tensor) -> None:
        """Add what a chunk's logits got."""
        if self._bias_V is not None:
            self._bias_V += gradient_CV.sum(0, dtype=self._bias_V.dtype)
        if self._hidden_TD is not None:
            self._hidden_TD[rows] = (gradient_CV @ self._student.head_VD).to(self._hidden_TD.dtype)
        if self._head_VD is None:
            return
        hidden_CD = self._student.hidden_TD[rows]
        if self._head_VD.dtype == gradient_CV.dtype and self._head_VD.numel() > BLOCK_LOGITS["cpu"]:
            self._head_VD.addmm_(gradient_CV.T, hidden_CD)  # saves a pass over a head that fits no cache
        else:
            self._head_VD += gradient_CV.T @ hidden_CD

    def finished(self) -> tuple[Tensor | None, ...]:
        """The three gradients, each in the dtype of what it is the gradient of."""
        found = (self._hidden_TD, self._head_VD, self._bias_V)
        return tuple(
            None if one is None or dtype is None else one.to(dtype)
            for one, dtype in zip(found, self._dtypes, strict=True)
        )


def part_of(rows: Rows, part: slice) -> Rows:
    if isinstance(rows, slice):
        return slice(rows.start + part.start, rows.start + part.stop)
    return rows[part]


def log_probabilities_of(logits_CV: Tensor, dtype: torch.dtype) -> Tensor:
    """Log-probabilities in memory of their own, or in that of the logits if nobody needs them any more."""
    logits_CV = logits_CV.to(dtype)
    return logits_CV.sub_(logits_CV.logsumexp(-1, keepdim=True))


def chunks_by_weight(weights_T: Tensor, chunk_tokens: int, apart: bool) -> list[tuple[Rows, bool]]:
    """Chunks of all tokens; with `apart`, those of tokens with a weight (True) and of those without."""
    if not apart or bool((weights_T != 0).all()):
        starts = range(0, len(weights_T), chunk_tokens)
        return [(slice(start, min(start + chunk_tokens, len(weights_T))), apart) for start in starts]
    weighted = torch.split((weights_T != 0).nonzero()[:, 0], chunk_tokens)
    others = torch.split((weights_T == 0).nonzero()[:, 0], chunk_tokens)
    return [*((rows, True) for rows in weighted), *((rows, False) for rows in others)]
