"""A micro-batch in parts: what goes through the model at one time is measured in tokens, not in sequences.

Sequences of like length are put together, and a part ends where one sequence more would be too much. The loss
is a sum over sequences whose normaliser is the step's, so it does not depend on where the parts end.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from sdzero import ranks
from sdzero.method.data_parallel import DataParallel

Row = TypeVar("Row")


def cut_by_tokens(
    rows: Sequence[Row], tokens_of: Callable[[Row], int], limit: int | None, packed: bool
) -> list[list[Row]]:
    """Cut rows, in their order, into parts of at most `limit` tokens; at least one part, none but that empty.

    Padded, a part has as many tokens as its longest row, times its rows; packed, as many as its rows. A
    row that is over the limit on its own is a part on its own.
    """
    parts: list[list[Row]] = [[]]
    longest = total = 0
    for row in rows:
        own = tokens_of(row)
        longest, total = max(longest, own), total + own
        size = total if packed else longest * (len(parts[-1]) + 1)
        if limit is not None and parts[-1] and size > limit:
            parts.append([])
            longest = total = own
        parts[-1].append(row)
    return parts


EMPTY: dict[str, Any] = {"empty": True}
"""The part of a process that nothing is left for."""


class TrainsInParts(DataParallel):
    """A trainer whose micro-batches are `{"parts": [batch, ...]}`; each part has its own backward pass.

    All processes make as many passes: who has fewer parts fills up with empty ones.
    """

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The sum of the parts' losses; processes exchange gradients after the last part only."""
        parts = inputs["parts"]
        parts = parts + [EMPTY] * (max(ranks.gather(len(parts))) - len(parts))
        losses = []
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            with contextlib.nullcontext() if last else self.no_step_yet(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        return torch.stack(losses).sum()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: the ledger counts tokens, the trainer's estimate is shown nowhere."""
        return 0
