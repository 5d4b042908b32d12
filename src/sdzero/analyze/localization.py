"""Self-localization: where in a response the student and the Reviser disagree.

The paper's claim (arXiv 2604.12002): for wrong responses the divergence sits on few tokens,
where the reasoning goes wrong; for right ones it is flat. Measured here are the share of the divergence
that the largest fifth of a response's tokens holds, how that share grows with the share of tokens, and,
where the first wrong token is known, how often the largest divergence lies on it or next to it.

Beside them stands what would flatter less: the share on the first token and on the end token, where a
Reviser differs for reasons that have nothing to do with an error. The shares depend on the length of a
response as well (of 5 tokens the largest one is the largest fifth), so lengths are given too.

A response's row of divergences has one number for each of its tokens, end token included, in nats.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from sdzero.evaluate.stats import interval_over_seeds
from sdzero.method.divergence import DivergenceKind, divergence_from_hidden
from sdzero.method.hidden import check_output_head, evaluating, hidden_states, output_head
from sdzero.method.micro_batches import make_micro_batch
from sdzero.method.roles import AlignmentError, DistillationPair

TOP_SHARE = 0.2
"""The share of a response's tokens whose part of the divergence is reported."""
CURVE_POINTS = tuple(tenth / 10 for tenth in range(1, 11))
"""Shares of tokens at which the concentration curve is read."""
NEAR = 1
"""How many tokens off the peak may be and still count as next to the first wrong token."""


# ---- measuring ----


def token_divergences(
    model: PreTrainedModel,
    teacher_model: PreTrainedModel,
    pairs: Sequence[DistillationPair],
    kind: DivergenceKind,
    chunk_tokens: int | Literal["auto"],
    batch: int,
) -> list[list[float]]:
    """The divergence of every target token of every pair, in nats, in the order of `pairs`.

    `batch` pairs go through the models at one time. Both models are in eval mode meanwhile, without
    gradients. Raises ValueError for a batch below 1, UserError for a model without a plain output head.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, not {batch}")
    check_output_head(model)
    check_output_head(teacher_model)
    # Like lengths side by side waste less on padding.
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index].teacher_ids))
    rows: dict[int, list[float]] = {}
    with evaluating(model, teacher_model):
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            values_T = _batch_divergences(
                model, teacher_model, [pairs[index] for index in chosen], kind, chunk_tokens
            )
            lengths = [len(pairs[index].targets) for index in chosen]
            for index, own_T in zip(chosen, torch.split(values_T, lengths), strict=True):
                rows[index] = own_T.tolist()
    return [rows[index] for index in range(len(pairs))]


def _batch_divergences(
    model: PreTrainedModel,
    teacher_model: PreTrainedModel,
    pairs: Sequence[DistillationPair],
    kind: DivergenceKind,
    chunk_tokens: int | Literal["auto"],
) -> torch.Tensor:
    # Rows are padded behind their end and attention is causal: any id may pad.
    batch = make_micro_batch([(pair, 0) for pair in pairs], [], pad=0)
    student_head, teacher_head = output_head(model), output_head(teacher_model)
    return divergence_from_hidden(
        hidden_states(model, batch["input_ids"].to(model.device), batch["student_positions"]),
        hidden_states(
            teacher_model, batch["teacher_ids"].to(teacher_model.device), batch["teacher_positions"]
        ),
        student_head.weight,
        teacher_head.weight,
        kind=kind,
        chunk_tokens=chunk_tokens,
        student_bias_V=student_head.bias,
        teacher_bias_V=teacher_head.bias,
    ).per_token_T


# ---- one response ----


def top_share(divergences: Sequence[float], share: float = TOP_SHARE) -> float | None:
    """The part of a response's divergence that its largest ceil(share n) tokens hold; None if there is none.

    A flat response of n tokens has ceil(share n) / n. Raises ValueError for a share not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"a share is above 0 and at most 1, not {share}")
    total = math.fsum(divergences)
    if total <= 0:
        return None
    # 0.2 * 15 is a little above 3 in floating point.
    count = math.ceil(round(share * len(divergences), 9))
    return math.fsum(sorted(divergences, reverse=True)[:count]) / total


def share_at(divergences: Sequence[float], place: int) -> float | None:
    """The part of a response's divergence at one token (-1 is the last); None if there is no divergence."""
    total = math.fsum(divergences)
    return divergences[place] / total if total > 0 else None


def first_wrong_token(response_ids: Sequence[int], reference_ids: Sequence[int]) -> int | None:
    """The first position at which a response leaves the reference solution; None if it never does.

    Both are without their end tokens. A response that is the beginning of the reference and stops there
    leaves it at its end token, so the position is its length; so does a reference that the response goes
    on beyond (the position is the reference's length). The rule is sensible only for questions that have
    one right procedure, always written alike: elsewhere the first difference need not be an error.
    """
    for place, (own, reference) in enumerate(zip(response_ids, reference_ids, strict=False)):
        if own != reference:
            return place
    if len(response_ids) == len(reference_ids):
        return None
    return min(len(response_ids), len(reference_ids))


def peak(divergences: Sequence[float]) -> int:
    """The position of the largest divergence, the first of equals. Raises ValueError for no tokens."""
    if not divergences:
        raise ValueError("a response without tokens has no peak")
    return max(range(len(divergences)), key=lambda place: divergences[place])


def chance_of_near(length: int, place: int, near: int = NEAR) -> float:
    """The probability that a uniformly random one of `length` positions is within `near` of `place`.

    Raises ValueError if the place is not one of the positions.
    """
    if not 0 <= place < length:
        raise ValueError(f"position {place} is not in a response of {length} tokens")
    return (min(place + near, length - 1) - max(place - near, 0) + 1) / length


# ---- many responses ----


@dataclass(frozen=True)
class Localized:
    """A graded response with its divergences.

    `has_end`: whether its last token is the end token. `first_wrong` is the position of a wrong response's
    first wrong token, where that is known.
    """

    question: str
    reward: int
    divergences: tuple[float, ...]
    has_end: bool
    first_wrong: int | None = None

    @classmethod
    def of(
        cls,
        question: str,
        reward: int,
        divergences: Sequence[float],
        response_ids: Sequence[int],
        end_token_id: int,
        reference_ids: Sequence[int] | None = None,
    ) -> "Localized":
        """Put one together from the response as sampled and the ids of the reference solution, without end
        token, if there is one. A cut response that does not leave the reference has no wrong token.

        Raises AlignmentError unless there is one divergence for each token.
        """
        if len(divergences) != len(response_ids):
            raise AlignmentError(f"{len(divergences)} divergences for {len(response_ids)} tokens")
        has_end = bool(response_ids) and response_ids[-1] == end_token_id
        body = response_ids[:-1] if has_end else response_ids
        first_wrong = None
        if reward == 0 and reference_ids is not None:
            first_wrong = first_wrong_token(body, reference_ids)
        if first_wrong is not None and first_wrong >= len(response_ids):
            first_wrong = None
        return cls(question, reward, tuple(divergences), has_end, first_wrong)


def mean_over_questions(values: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """Mean over questions of each question's mean, with a 95% t interval (None for one question)."""
    means = [statistics.fmean(own) for own in values.values() if own]
    if not means:
        return None
    interval = interval_over_seeds(means)
    return {
        "mean": statistics.fmean(means),
        "interval": list(interval) if interval is not None else None,
        "questions": len(means),
        "responses": sum(map(len, values.values())),
    }


def localization(responses: Sequence[Localized]) -> dict[str, Any]:
    """What the divergence of these responses looks like, by reward; JSON-like.

    For `r0` and `r1`: `divergence` (nats per token), `tokens` (length), `top_share` (of the largest fifth
    of tokens) with `flat_share` (what a flat response of the same length would have), `curve` (both
    at ten shares of tokens), `first_token` and `end_token` (their shares; a response that was cut has
    no end token). For `r0` also `first_wrong`: how often the peak lies within one token of the first
    wrong one (`near`) and on it (`exact`), how often a random position would lie as near
    (`near_by_chance`), how often the first token does (`near_by_first_token`: where errors begin at once,
    that is the better guess), and `lift`, `near` less chance, paired by response. Means are over questions.
    """
    return {f"r{reward}": _group([one for one in responses if one.reward == reward]) for reward in (0, 1)}


def _group(responses: Sequence[Localized]) -> dict[str, Any]:
    def over(measure: Callable[[Localized], float | None]) -> dict[str, Any] | None:
        values: dict[str, list[float]] = {}
        for one in responses:
            value = measure(one)
            if value is not None:
                values.setdefault(one.question, []).append(value)
        return mean_over_questions(values)

    def top(point: float, flat: bool = False) -> dict[str, Any] | None:
        def share(one: Localized) -> float | None:
            found = top_share(one.divergences, point)
            return top_share([1.0] * len(one.divergences), point) if flat and found is not None else found

        return over(share)

    located = [one for one in responses if one.first_wrong is not None and one.divergences]
    found: dict[str, Any] = {
        "responses": len(responses),
        "divergence": over(lambda one: statistics.fmean(one.divergences) if one.divergences else None),
        "tokens": over(lambda one: float(len(one.divergences))),
        "top_share": top(TOP_SHARE),
        "flat_share": top(TOP_SHARE, flat=True),
        "curve": [
            {"tokens": point, "divergence": top(point), "flat": top(point, flat=True)}
            for point in CURVE_POINTS
        ],
        "first_token": over(lambda one: share_at(one.divergences, 0)),
        "end_token": over(lambda one: share_at(one.divergences, -1) if one.has_end else None),
    }
    if located:
        found["first_wrong"] = _at_first_wrong(located)
    return found


def _at_first_wrong(responses: Sequence[Localized]) -> dict[str, Any]:
    names = ("near", "exact", "near_by_chance", "near_by_first_token", "lift")
    values: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for one in responses:
        assert one.first_wrong is not None
        distance = abs(peak(one.divergences) - one.first_wrong)
        near, chance = float(distance <= NEAR), chance_of_near(len(one.divergences), one.first_wrong)
        first = float(one.first_wrong <= NEAR)
        measured = (near, float(distance == 0), chance, first, near - chance)
        for name, value in zip(names, measured, strict=True):
            values[name].setdefault(one.question, []).append(value)
    return {name: mean_over_questions(own) for name, own in values.items()}
