"""Cutting the global batch of phase 2 into micro-batches of padded tensors."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from sdzero.method.roles import DistillationPair, WeightedSequence

Row = TypeVar("Row")


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    """Token ids as a padded tensor [B, T]. Attention is causal, so no real token sees the padding."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad)


def flat_positions(positions: Sequence[Sequence[int]], row_length: int) -> torch.Tensor:
    """Positions in rows as positions in the flattened [B * T] tensor."""
    return torch.tensor([row * row_length + p for row, own in enumerate(positions) for p in own])


def make_micro_batch(
    pairs: Sequence[tuple[DistillationPair, int]], rehearsal: Sequence[WeightedSequence], pad: int
) -> dict[str, Any]:
    """Tensors of one micro-batch. `pairs` carry the reward; both may be empty."""
    batch: dict[str, Any] = {}
    if pairs:
        student_ids_BT = pad_right([pair.student_ids for pair, _ in pairs], pad)
        teacher_ids_BT = pad_right([pair.teacher_ids for pair, _ in pairs], pad)
        lengths = torch.tensor([len(pair.targets) for pair, _ in pairs])
        batch |= {
            "input_ids": student_ids_BT,
            "teacher_ids": teacher_ids_BT,
            "student_positions": flat_positions(
                [pair.student_logit_positions for pair, _ in pairs], student_ids_BT.shape[1]
            ),
            "teacher_positions": flat_positions(
                [pair.teacher_logit_positions for pair, _ in pairs], teacher_ids_BT.shape[1]
            ),
            "lengths_B": lengths,
            "rewards_B": torch.tensor([reward for _, reward in pairs]),
        }
    if rehearsal:
        batch["rehearsal_ids"] = pad_right([s.token_ids for s in rehearsal], pad)
        batch["rehearsal_weights"] = pad_sequence(
            [torch.tensor(s.weights) for s in rehearsal], batch_first=True, padding_value=0.0
        )
    return batch


def deal(rows: Sequence[Row], hands: int) -> list[list[Row]]:
    """Cut rows into `hands` consecutive parts of nearly equal size; some are empty if rows are few."""
    size, extra = divmod(len(rows), hands)
    starts = [hand * size + min(hand, extra) for hand in range(hands + 1)]
    return [list(rows[starts[i] : starts[i + 1]]) for i in range(hands)]
