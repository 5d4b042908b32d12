"""The control: rejection-sampling fine-tuning (RFT) on the model's own verified-correct responses.

As many responses are sampled as SD-Zero samples; the correct ones are trained on once each, with
weight 1 on every token of the response, end token included (`sdzero.method.srt.train_weighted`).
What SD-Zero gains over it cannot come from more samples or from filtering.
"""

from collections.abc import Sequence

from sdzero.errors import UserError
from sdzero.method.roles import Roles, WeightedSequence
from sdzero.verify.verdict import Verdict


def rft_sequences(
    graded: Sequence[tuple[Sequence[int], Sequence[int], Verdict]], roles: Roles
) -> list[WeightedSequence]:
    """Training sequences from (prompt ids, response ids, verdict), in the order given.

    Only verified-correct responses are kept; of equal responses to one prompt, the first.
    Raises UserError if none is left.
    """
    kept: dict[tuple[tuple[int, ...], tuple[int, ...]], WeightedSequence] = {}
    for prompt_ids, response_ids, verdict in graded:
        pair = (tuple(prompt_ids), tuple(response_ids))
        if verdict.reward and pair not in kept:
            kept[pair] = roles.response_sequence(*pair)
    if not kept:
        raise UserError(
            f"none of the {len(graded)} sampled responses is correct, so there is nothing to train on",
            where="rft",
            todo="use easier questions or a stronger model, or set rft.enabled=false",
        )
    return list(kept.values())
