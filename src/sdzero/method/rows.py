"""Token ids of several sequences as one tensor: padded rows, or one packed row."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Rows:
    """Token ids of several sequences as one tensor: padded, [B, T], or packed in one row, [1, T].

    `lengths` is None for padded rows: attention is causal, so no real token sees the padding.
    """

    ids_BT: torch.Tensor
    starts: tuple[int, ...]
    lengths: tuple[int, ...] | None

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], pad: int, packed: bool) -> "Rows":
        """Pad on the right, or pack."""
        if packed:
            lengths = tuple(map(len, sequences))
            ids_1T = torch.tensor([token for ids in sequences for token in ids])[None]
            return cls(ids_1T, tuple(accumulate(lengths, initial=0))[:-1], lengths)
        ids_BT = pad_sequence([torch.tensor(ids) for ids in sequences], batch_first=True, padding_value=pad)
        return cls(ids_BT, tuple(range(0, ids_BT.numel(), ids_BT.shape[1])), None)

    def flat(self, positions: Sequence[Sequence[int]]) -> torch.Tensor:
        """Positions in each sequence as positions in the flattened tensor."""
        return torch.tensor([s + p for s, own in zip(self.starts, positions, strict=True) for p in own])


def weighted_rows(
    ids: Sequence[Sequence[int]], weights: Sequence[Sequence[float]], pad: int, packed: bool
) -> dict[str, Any]:
    """`ids` and `weights`, both [B, T] or packed [1, T], and `lengths`.

    The first token of a sequence, which nothing predicts, and padding have weight 0. Raises ValueError if ids
    and weights of a sequence differ in number.
    """
    rows = Rows.of(ids, pad, packed)
    weights_BT = torch.zeros(rows.ids_BT.shape)
    flat_N = weights_BT.view(-1)
    for start, sequence, own in zip(rows.starts, ids, weights, strict=True):
        if len(own) != len(sequence):
            raise ValueError(f"{len(sequence)} token ids but {len(own)} weights")
        flat_N[start + 1 : start + len(own)] = torch.tensor(own[1:])
    return {
        "ids": rows.ids_BT,
        "weights": weights_BT,
        "lengths": rows.lengths,
    }
