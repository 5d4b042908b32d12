"""What the student and the Reviser would have written at each token of a response: their likeliest tokens.

Beside the divergence of a token (`sdzero.analyze.localization`) these say what the Reviser would change it
to. Probabilities are those at temperature 1, over the full vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from sdzero.method.divergence import automatic_chunk
from sdzero.method.hidden import check_output_head, evaluating, hidden_states, logits_of, output_head
from sdzero.method.micro_batches import make_micro_batch
from sdzero.method.roles import DistillationPair


@dataclass(frozen=True)
class Alternatives:
    """One model's view of a response of T tokens.

    `ids` and `probabilities` are T lists of the likeliest tokens, the likeliest first; `target` has the
    probability of each token that was sampled.
    """

    ids: list[list[int]]
    probabilities: list[list[float]]
    target: list[float]


def token_alternatives(
    model: PreTrainedModel,
    teacher_model: PreTrainedModel,
    pairs: Sequence[DistillationPair],
    count: int,
    chunk_tokens: int | Literal["auto"],
) -> list[tuple[Alternatives, Alternatives]]:
    """The student's and the teacher's `count` likeliest tokens at every target, pair by pair.

    Both models are in eval mode meanwhile, without gradients; logits exist for one chunk of tokens at a
    time. Raises ValueError for a count below 1, UserError for a model without a plain output head.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    check_output_head(model)
    check_output_head(teacher_model)
    found = []
    with evaluating(model, teacher_model):
        for pair in pairs:
            batch = make_micro_batch([(pair, 0)], [], pad=0)
            student = _alternatives(
                model, batch["input_ids"], batch["student_positions"], pair.targets, count, chunk_tokens
            )
            teacher = _alternatives(
                teacher_model,
                batch["teacher_ids"],
                batch["teacher_positions"],
                pair.targets,
                count,
                chunk_tokens,
            )
            found.append((student, teacher))
    return found


def _alternatives(
    model: PreTrainedModel,
    ids_BT: torch.Tensor,
    positions_T: torch.Tensor,
    targets: Sequence[int],
    count: int,
    chunk_tokens: int | Literal["auto"],
) -> Alternatives:
    head = output_head(model)
    hidden_TD = hidden_states(model, ids_BT.to(model.device), positions_T)
    targets_T = torch.tensor(targets, device=hidden_TD.device)
    vocabulary = int(head.weight.shape[0])
    size = automatic_chunk(hidden_TD.device.type, vocabulary) if chunk_tokens == "auto" else chunk_tokens
    ids: list[list[int]] = []
    probabilities: list[list[float]] = []
    target: list[float] = []
    for start in range(0, len(targets), size):
        probabilities_TV = logits_of(head, hidden_TD[start : start + size]).float().softmax(-1)
        top = probabilities_TV.topk(min(count, vocabulary), dim=-1)
        ids += top.indices.tolist()
        probabilities += top.values.tolist()
        target += probabilities_TV.gather(1, targets_T[start : start + size, None])[:, 0].tolist()
    return Alternatives(ids, probabilities, target)
