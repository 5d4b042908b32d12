"""The batches of the on-policy trainer: which questions are next, and the tensors of a micro-batch."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from sdzero.method.parts import cut_by_tokens
from sdzero.method.roles import ContrastivePair, DistillationPair, StudentTargets, WeightedSequence
from sdzero.method.rows import Rows, weighted_rows

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


def make_micro_batch(
    contexts: Sequence[tuple[Context, int]],
    rehearsal: Sequence[WeightedSequence],
    pad: int,
    packed: bool = False,
) -> dict[str, Any]:
    """Tensors of one micro-batch. `contexts` carry the reward; both may be empty.

    Those of the teacher are there if the contexts are pairs of a student's and a teacher's, those of the
    targets' weights if some context has weights. `*_lengths` are None for padded rows.
    """
    batch: dict[str, Any] = {}
    if contexts:
        student = Rows.of([context.student_ids for context, _ in contexts], pad, packed)
        batch |= {
            "input_ids": student.ids_BT,
            "student_lengths": student.lengths,
            "student_positions": student.flat([context.student_logit_positions for context, _ in contexts]),
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
        teacher = Rows.of([pair.teacher_ids for pair in pairs], pad, packed)
        batch |= {
            "teacher_ids": teacher.ids_BT,
            "teacher_lengths": teacher.lengths,
            "teacher_positions": teacher.flat([pair.teacher_logit_positions for pair in pairs]),
        }
    contrastive = [pair for pair in pairs if isinstance(pair, ContrastivePair)]
    if contrastive:
        other = Rows.of([pair.other_ids for pair in contrastive], pad, packed)
        batch |= {
            "other_ids": other.ids_BT,
            "other_lengths": other.lengths,
            "other_positions": other.flat([pair.other_logit_positions for pair in contrastive]),
        }
    if rehearsal:
        ids, weights = [s.token_ids for s in rehearsal], [s.weights for s in rehearsal]
        rows = weighted_rows(ids, weights, pad, packed)
        batch |= {f"rehearsal_{name}": value for name, value in rows.items()}
    return batch


def make_parts(
    contexts: Sequence[tuple[Context, int]],
    rehearsal: Sequence[WeightedSequence],
    pad: int,
    limit: int | None,
    packed: bool,
    one_pass_each: bool = False,
) -> list[dict[str, Any]]:
    """One micro-batch as parts of at most `limit` tokens (see `cut_by_tokens`); None: in one part.

    With `one_pass_each`, contexts and rehearsal are in parts of their own also without a limit.
    """
    if limit is None and not one_pass_each:
        return [make_micro_batch(contexts, rehearsal, pad, packed)]
    parts = [
        make_micro_batch(part, [], pad, packed)
        for part in cut_by_tokens(contexts, lambda row: row[0].context_tokens, limit, packed)
    ]
    if rehearsal:
        by_length = sorted(rehearsal, key=lambda sequence: len(sequence.token_ids))
        parts += [
            make_micro_batch([], part, pad, packed)
            for part in cut_by_tokens(by_length, lambda sequence: len(sequence.token_ids), limit, packed)
        ]
    return parts


def deal(rows: Sequence[Row], hands: int) -> list[list[Row]]:
    """Cut rows into `hands` consecutive parts of nearly equal size; some are empty if rows are few."""
    size, extra = divmod(len(rows), hands)
    starts = [hand * size + min(hand, extra) for hand in range(hands + 1)]
    return [list(rows[starts[i] : starts[i + 1]]) for i in range(hands)]
