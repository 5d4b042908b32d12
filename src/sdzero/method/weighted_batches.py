"""Batches of weighted token sequences: how rows are ordered, and how they are padded."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

BATCHES_SORTED = 8
"""Batches that are drawn together and sorted by length, to cut padding."""


@dataclass(frozen=True)
class WeightedCollator:
    """Pads rows on the right into `input_ids` and `token_weights`, both [B, T]; padding weighs 0.

    No attention mask is made: attention is causal, so nothing before the padding sees it.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Collate. Raises ValueError if a row's weights and ids differ in number."""
        longest = max(len(row["input_ids"]) for row in rows)
        ids_BT = torch.full((len(rows), longest), self.pad_token_id)
        weights_BT = torch.zeros(len(rows), longest)
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            if len(row["token_weights"]) != length:
                raise ValueError(f"{length} token ids but {len(row['token_weights'])} weights")
            ids_BT[index, :length] = torch.tensor(row["input_ids"])
            weights_BT[index, :length] = torch.tensor(row["token_weights"])
        return {"input_ids": ids_BT, "token_weights": weights_BT}


class LengthSortedSampler(Sampler[int]):
    """A random order in which rows of one batch are of like length; a function of seed and epoch alone.

    Rows are shuffled, sorted by length within each `BATCHES_SORTED` batches, and the batches shuffled
    again. Rows that do not fill a batch come last.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = list(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self._seed}, epoch {self._epoch}")
        order = list(range(len(self._lengths)))
        rng.shuffle(order)
        size = self._batch_size
        full = len(order) - len(order) % size
        batches: list[list[int]] = []
        for start in range(0, full, size * BATCHES_SORTED):
            drawn = sorted(
                order[start : min(start + size * BATCHES_SORTED, full)], key=lambda row: self._lengths[row]
            )
            batches += [drawn[i : i + size] for i in range(0, len(drawn), size)]
        rng.shuffle(batches)
        for batch in [*batches, order[full:]]:
            yield from batch
