"""The batches of the on-policy trainer: which questions are next, and micro-batches of padded tensors."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from sdzero.method.roles import ContrastivePair, DistillationPair, StudentTargets, WeightedSequence

Row = TypeVar("Row")

Context = DistillationPair | StudentTargets
"""A response in its context, or contexts; all of one batch are of the same type."""


class QuestionNumbers(torch.utils.data.Dataset[dict[str, int]]):
    """The numbers of the questions: all that the data loader has to shuffle and to skip."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"index": index}


def collate_numbers(rows: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
    """One tensor of question numbers."""
    return {"index": torch.tensor([row["index"] for row in rows])}


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    """Token ids as a padded tensor [B, T]. Attention is causal, so no real token sees the padding."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad)


def flat_positions(positions: Sequence[Sequence[int]], row_length: int) -> torch.Tensor:
    """Positions in rows as positions in the flattened [B * T] tensor."""
    return torch.tensor([row * row_length + p for row, own in enumerate(positions) for p in own])


def make_micro_batch(
    contexts: Sequence[tuple[Context, int]], rehearsal: Sequence[WeightedSequence], pad: int
) -> dict[str, Any]:
    """Tensors of one micro-batch. `contexts` carry the reward; both may be empty.

    Those of the teacher are there if the contexts are pairs of a student's and a teacher's, those of the
    targets' weights if some context has weights.
    """
    batch: dict[str, Any] = {}
    if contexts:
        student_ids_BT = pad_right([context.student_ids for context, _ in contexts], pad)
        batch |= {
            "input_ids": student_ids_BT,
            "student_positions": flat_positions(
                [context.student_logit_positions for context, _ in contexts], student_ids_BT.shape[1]
            ),
            "targets_T": torch.tensor([token for context, _ in contexts for token in context.targets]),
            "lengths_B": torch.tensor([len(context.targets) for context, _ in contexts]),
            "rewards_B": torch.tensor([reward for _, reward in contexts]),
        }
        if any(context.loss_weights is not None for context, _ in contexts):
            weights = [context.loss_weights or (1.0,) * len(context.targets) for context, _ in contexts]
            batch["target_weights_T"] = torch.tensor([weight for own in weights for weight in own])
            batch["weight_sums_B"] = torch.tensor([sum(own) for own in weights])
    pairs = [context for context, _ in contexts if isinstance(context, DistillationPair)]
    if pairs:
        teacher_ids_BT = pad_right([pair.teacher_ids for pair in pairs], pad)
        batch["teacher_ids"] = teacher_ids_BT
        batch["teacher_positions"] = flat_positions(
            [pair.teacher_logit_positions for pair in pairs], teacher_ids_BT.shape[1]
        )
    contrastive = [pair for pair in pairs if isinstance(pair, ContrastivePair)]
    if contrastive:
        other_ids_BT = pad_right([pair.other_ids for pair in contrastive], pad)
        batch["other_ids"] = other_ids_BT
        batch["other_positions"] = flat_positions(
            [pair.other_logit_positions for pair in contrastive], other_ids_BT.shape[1]
        )
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
