"""Where the divergence lies: against the dense formula, and on numbers worked by hand."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from sdzero import tiny
from sdzero.analyze.localization import (
    Localized,
    chance_of_near,
    first_wrong_token,
    localization,
    peak,
    share_at,
    token_divergences,
    top_share,
)
from sdzero.method.divergence import DivergenceKind
from sdzero.method.roles import AlignmentError, DistillationPair, Roles
from sdzero.models import load_tokenizer
from sdzero.questions.question import Question
from sdzero.recipe import ChatSettings, PhraseSettings

END = 99

# ---- measuring ----


@pytest.fixture(scope="module")
def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    student = AutoModelForCausalLM.from_pretrained(tiny.model_folder(), dtype=torch.float64)
    teacher = copy.deepcopy(student)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return student, teacher


@pytest.fixture(scope="module")
def pairs() -> list[DistillationPair]:
    tokenizer = load_tokenizer("tiny")
    roles = Roles(tokenizer, PhraseSettings(), ChatSettings())
    made = []
    for text, response, reward in (
        ("3+4*5-2", "3+4=7;7*5=35;35-2=33\\boxed{33}", 0),
        ("1+2", "\\boxed{3}", 1),
        ("30-(9-8)+6", "9-8=1;30-1=29;29+6=35\\boxed{35}", 1),
    ):
        ids = [*tokenizer.encode(response, add_special_tokens=False), roles.end_token_id]
        made.append(roles.distillation_pair(roles.generator_prompt(Question(text, text, "")), ids, reward))
    return made


def dense(
    student: PreTrainedModel, teacher: PreTrainedModel, pair: DistillationPair, kind: DivergenceKind
) -> list[float]:
    """One pair alone, from whole distributions."""
    with torch.no_grad():
        s = student(torch.tensor([pair.student_ids])).logits[0].log_softmax(-1)
        t = teacher(torch.tensor([pair.teacher_ids])).logits[0].log_softmax(-1)
    s, t = s[list(pair.student_logit_positions)], t[list(pair.teacher_logit_positions)]
    reverse, forward = (s.exp() * (s - t)).sum(-1), (t.exp() * (t - s)).sum(-1)
    chosen = reverse if kind == "reverse" else (reverse + forward) / 2
    return [float(value) for value in chosen]


@pytest.mark.parametrize("kind", ["reverse", "mixed"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_divergences_are_the_formulas_in_the_order_given(
    models: tuple[PreTrainedModel, PreTrainedModel],
    pairs: list[DistillationPair],
    kind: DivergenceKind,
    batch: int,
) -> None:
    rows = token_divergences(*models, pairs, kind, chunk_tokens=7, batch=batch)
    assert len(rows) == len(pairs)
    for row, pair in zip(rows, pairs, strict=True):
        assert row == pytest.approx(dense(*models, pair, kind), rel=1e-6, abs=1e-10)


def test_measuring_leaves_no_trace_in_the_models(
    models: tuple[PreTrainedModel, PreTrainedModel], pairs: list[DistillationPair]
) -> None:
    student, teacher = models
    student.train(True)
    token_divergences(student, teacher, pairs, "reverse", chunk_tokens=64, batch=2)
    assert student.training
    assert not teacher.training
    assert all(parameter.grad is None for parameter in student.parameters())
    student.train(False)


def test_a_batch_of_none_is_refused(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match="batch"):
        token_divergences(*models, [], "reverse", chunk_tokens=64, batch=0)


# ---- one response ----


@pytest.mark.parametrize(
    ("divergences", "share", "expected"),
    [
        ([1, 2, 3, 4, 10], 0.2, 0.5),  # one token of five
        ([1, 2, 3, 4, 10, 0], 0.2, 0.7),  # two of six: 14 of 20
        ([1] * 15, 0.2, 0.2),  # three of fifteen, and not four
        ([5], 0.2, 1.0),
        ([1, 2, 3, 4, 10], 1.0, 1.0),
        ([0, 0], 0.2, None),
        ([], 0.2, None),
    ],
)
def test_top_share(divergences: list[float], share: float, expected: float | None) -> None:
    assert top_share(divergences, share) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("share", [0.0, 1.1, -0.2])
def test_top_share_refuses_what_is_no_share(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        top_share([1.0], share)


def test_the_share_of_the_first_and_the_last_token() -> None:
    assert share_at([1, 2, 5], 0) == 0.125
    assert share_at([1, 2, 5], -1) == 0.625
    assert share_at([0, 0], 0) is None


@pytest.mark.parametrize(
    ("response", "reference", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], None),
        ([1, 2, 4], [1, 2, 3], 2),
        ([9], [1, 2, 3], 0),
        ([1, 2], [1, 2, 3], 2),  # stops too early: its end token is wrong
        ([], [1], 0),
        ([1, 2, 3, 4], [1, 2, 3], 3),  # goes on beyond it
        ([1, 5, 3, 6], [1, 2, 3, 4], 1),  # the first one, not the last
    ],
)
def test_first_wrong_token(response: list[int], reference: list[int], expected: int | None) -> None:
    assert first_wrong_token(response, reference) == expected


def test_the_peak_is_the_first_of_equals() -> None:
    assert peak([0.0, 3.0, 1.0, 3.0]) == 1
    with pytest.raises(ValueError, match="peak"):
        peak([])


@pytest.mark.parametrize(
    ("length", "place", "expected"), [(10, 5, 0.3), (10, 0, 0.2), (10, 9, 0.2), (2, 0, 1.0), (1, 0, 1.0)]
)
def test_chance_counts_the_positions_nearby(length: int, place: int, expected: float) -> None:
    assert chance_of_near(length, place) == pytest.approx(expected)
    counted = sum(abs(other - place) <= 1 for other in range(length)) / length
    assert chance_of_near(length, place) == pytest.approx(counted)


@pytest.mark.parametrize("place", [-1, 3])
def test_chance_refuses_a_place_outside(place: int) -> None:
    with pytest.raises(ValueError, match="position"):
        chance_of_near(3, place)


# ---- a response put together ----


@pytest.mark.parametrize(
    ("response", "reward", "has_end", "first_wrong"),
    [
        ([1, 2, 4, END], 0, True, 2),
        ([1, 2, END], 0, True, 2),  # the end token comes too early
        ([1, 2], 0, False, None),  # cut, and right so far
        ([1, 4], 0, False, 1),
        ([4, 2, 3, END], 1, True, None),  # right in a way of its own
        ([1, 2, 3, END], 0, True, None),  # graded wrong, and yet the reference
    ],
)
def test_the_first_wrong_token_of_a_sampled_response(
    response: list[int], reward: int, has_end: bool, first_wrong: int | None
) -> None:
    one = Localized.of("q", reward, [0.5] * len(response), response, END, [1, 2, 3])
    assert (one.has_end, one.first_wrong) == (has_end, first_wrong)


def test_without_a_reference_no_token_is_known_to_be_wrong() -> None:
    assert Localized.of("q", 0, [0.5, 0.5], [1, END], END).first_wrong is None


def test_divergences_must_fit_the_tokens() -> None:
    with pytest.raises(AlignmentError, match="2 divergences for 3 tokens"):
        Localized.of("q", 0, [0.5, 0.5], [1, 2, END], END)


# ---- many responses ----


def test_localization_by_hand() -> None:
    found = localization(
        [
            # Question a twice, b once: a's two responses count as one question.
            Localized("a", 0, (0.0, 8.0, 1.0, 1.0, 0.0), True, 1),
            Localized("a", 0, (4.0, 0.0, 0.0, 4.0, 2.0), True, 3),
            Localized("b", 0, (1.0, 1.0, 1.0, 1.0, 1.0, 5.0), False, 4),
            Localized("a", 1, (1.0, 1.0, 1.0, 1.0, 1.0), True),
        ]
    )
    wrong, right = found["r0"], found["r1"]
    assert wrong["responses"] == 3
    # Largest fifth: 0.8 and 0.4, so 0.6 for a; two of six tokens for b: 6 of 10.
    assert wrong["top_share"]["mean"] == pytest.approx(0.6)
    assert (wrong["top_share"]["questions"], wrong["top_share"]["responses"]) == (2, 3)
    assert wrong["flat_share"]["mean"] == pytest.approx((1 / 5 + 2 / 6) / 2)
    # 2 and 2 nats per token for a, 10 / 6 for b.
    assert wrong["divergence"]["mean"] == pytest.approx((2 + 10 / 6) / 2)
    assert wrong["tokens"]["mean"] == pytest.approx(5.5)
    # First token: 0 and 0.4 for a, 0.1 for b. End token: 0 and 0.2 for a; b was cut.
    assert wrong["first_token"]["mean"] == pytest.approx(0.15)
    assert wrong["end_token"]["mean"] == pytest.approx(0.1)
    assert wrong["end_token"]["questions"] == 1
    assert wrong["end_token"]["interval"] is None
    # Peaks at 1, 0, 5 for first wrong tokens at 1, 3, 4.
    assert wrong["first_wrong"]["near"]["mean"] == pytest.approx((0.5 + 1) / 2)
    assert wrong["first_wrong"]["exact"]["mean"] == pytest.approx((0.5 + 0) / 2)
    assert wrong["first_wrong"]["near_by_chance"]["mean"] == pytest.approx((3 / 5 + 3 / 6) / 2)
    assert wrong["first_wrong"]["near_by_first_token"]["mean"] == pytest.approx((0.5 + 0) / 2)
    assert wrong["first_wrong"]["lift"]["mean"] == pytest.approx((-0.1 + 0.5) / 2)
    assert right["top_share"]["mean"] == pytest.approx(0.2)
    assert "first_wrong" not in right


def test_the_curve_of_a_flat_response_is_the_diagonal() -> None:
    found = localization([Localized("a", 1, (0.3,) * 10, True)])["r1"]
    assert [row["tokens"] for row in found["curve"]] == pytest.approx([k / 10 for k in range(1, 11)])
    assert [row["divergence"]["mean"] for row in found["curve"]] == pytest.approx(
        [k / 10 for k in range(1, 11)]
    )
    assert [row["flat"]["mean"] for row in found["curve"]] == pytest.approx([k / 10 for k in range(1, 11)])


def test_intervals_are_over_questions_not_over_responses() -> None:
    """Means 0.5 and 0.7 of two questions: t with one degree of freedom is 12.706, the error 0.1."""
    rows = {"a": ((5.0, 1, 1, 1, 2),) * 9, "b": ((7.0, 1, 1, 1, 0),)}
    found = localization(
        [Localized(name, 0, tuple(map(float, row)), True) for name, own in rows.items() for row in own]
    )
    low, high = found["r0"]["top_share"]["interval"]
    assert (low, high) == pytest.approx((0.6 - 1.2706, 0.6 + 1.2706), abs=1e-4)


def test_a_reward_without_responses_has_no_numbers() -> None:
    found = localization([Localized("a", 1, (1.0, 2.0), True)])
    assert found["r0"]["responses"] == 0
    assert found["r0"]["top_share"] is None


def test_a_response_without_any_divergence_has_no_shares() -> None:
    found = localization([Localized("a", 1, (0.0, 0.0), True), Localized("b", 1, (1.0, 0.0), True)])["r1"]
    assert found["top_share"]["questions"] == found["flat_share"]["questions"] == 1
    assert found["divergence"]["questions"] == 2
