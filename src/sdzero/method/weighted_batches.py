"""Batches of weighted token sequences: how rows are ordered, and how they are cut into parts."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Sampler

from sdzero import ranks
from sdzero.method.micro_batches import deal
from sdzero.method.parts import cut_by_tokens
from sdzero.method.rows import weighted_rows

BATCHES_SORTED = 8
"""Batches that are drawn together and sorted by length, to cut padding."""


@dataclass(frozen=True)
class WeightedCollator:
    """Makes a micro-batch: `parts` of at most `limit` tokens, each with `ids`, `weights` and `lengths`.

    Of several processes, which are all given the same rows, each makes its share; `weight` is the sum of the
    weights of all rows, and `weighted_tokens` how many tokens have one. Rows are padded on the right, or
    packed (see `weighted_rows`). Without a limit there is one part, with the rows in their order; else they
    are ordered by length.
    """

    pad_token_id: int
    limit: int | None = None
    packed: bool = False

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate. Raises ValueError if a row's weights and ids differ in number."""
        weights = [weight for row in rows for weight in row["token_weights"][1:]]
        rows = deal(rows, ranks.count())[ranks.rank()]
        if self.limit is not None:
            rows = sorted(rows, key=_length)
        return {
            "weight": sum(weights),
            "weighted_tokens": sum(weight > 0 for weight in weights),
            "parts": [
                weighted_rows(
                    [row["input_ids"] for row in part],
                    [row["token_weights"] for row in part],
                    self.pad_token_id,
                    self.packed,
                )
                for part in cut_by_tokens(rows, _length, self.limit, self.packed)
                if part
            ],
        }


def _length(row: dict[str, Any]) -> int:
    return len(row["input_ids"])


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
