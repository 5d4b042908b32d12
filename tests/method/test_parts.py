"""Micro-batches cut by tokens, and padded or packed rows; whole steps of phase 2 are the same however cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from distill_bench import QUESTIONS, Bench, perturbed
from sdzero import tiny
from sdzero.method.parts import cut_by_tokens
from sdzero.method.rows import Rows, weighted_rows


def test_padded_and_packed_parts_by_hand():
    rows = ["a", "bb", "bbb", "cccc", "cccc"]
    assert cut_by_tokens(rows, len, 8, packed=False) == [["a", "bb"], ["bbb", "cccc"], ["cccc"]]
    assert cut_by_tokens(rows, len, 8, packed=True) == [["a", "bb", "bbb"], ["cccc", "cccc"]]
    assert cut_by_tokens(rows, len, None, packed=False) == [rows]
    assert cut_by_tokens([], len, 8, packed=False) == [[]]
    assert cut_by_tokens(["ccccccccc", "a"], len, 8, packed=True) == [["ccccccccc"], ["a"]]


@given(st.lists(st.integers(1, 30)), st.integers(1, 60), st.booleans())
def test_parts_keep_every_row_once_in_order_and_the_limit(lengths: list[int], limit: int, packed: bool):
    parts = cut_by_tokens(lengths, lambda row: row, limit, packed)
    assert [row for part in parts for row in part] == lengths
    assert all(parts) or not lengths
    for part in parts:
        size = sum(part) if packed else max(part, default=0) * len(part)
        assert size <= limit or len(part) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_positions_lead_to_the_same_tokens(packed: bool):
    sequences = [(5, 6, 7), (8,), (9, 10)]
    rows = Rows.of(sequences, 0, packed)
    positions = [(0, 2), (0,), (1,)]
    assert rows.ids_BT.reshape(-1)[rows.flat(positions)].tolist() == [5, 7, 8, 10]
    assert rows.ids_BT.shape == ((1, 6) if packed else (3, 3))
    assert rows.lengths == ((3, 1, 2) if packed else None)


@pytest.mark.parametrize("packed", [False, True])
def test_the_first_token_of_a_sequence_has_no_weight(packed: bool):
    rows = weighted_rows([(5, 6, 7), (8,), (9, 10)], [(1, 2, 3), (4,), (5, 6)], 0, packed)
    expected = [[0, 2, 3, 0, 0, 6]] if packed else [[0, 2, 3], [0, 0, 0], [0, 6, 0]]
    assert rows["weights"].tolist() == expected


SETTINGS: list[dict[str, Any]] = [
    {"micro_batch_tokens": 150},
    {"packed": True},
    {"packed": True, "micro_batch_tokens": 150, "micro_batch_size": 2},
]


@pytest.mark.parametrize(
    "more",
    [
        {"rehearsal_weight": 0.3, "rehearsal_batch_size": 5, "policy_gradient_weight": 0.5},
        {"contrast": 0.7, "normalize": "sequences", "divergence_on": "final_answer"},
    ],
    ids=["rehearsal", "contrast"],
)
def test_a_step_is_the_same_padded_packed_whole_and_in_parts(tmp_path: Path, more: dict[str, Any]) -> None:
    """Loss, gradients and logged sums, in float64, through the trainer."""

    def step(name: str, packed: bool = False, **settings: Any) -> tuple[dict[str, Any], dict[str, Any], list]:
        base = AutoModelForCausalLM.from_pretrained(tiny.model_folder(), dtype=torch.float64)
        bench = Bench(
            tmp_path / name,
            QUESTIONS[:8],
            teacher=perturbed(base),
            dtype=torch.float64,
            rehearsal="rehearsal_weight" in more,
            packed=packed,
            **{**more, **settings},
        )
        gradients: dict[str, torch.Tensor] = {}
        clip, shapes = bench.trainer._clip_grad_norm, []

        def keep(model: Any) -> Any:
            gradients.update({n: p.grad.clone() for n, p in bench.model.named_parameters()})
            return clip(model)

        bench.trainer._clip_grad_norm = keep
        bench.teacher.model.model.register_forward_pre_hook(
            lambda module, _, keywords: shapes.append(keywords["input_ids"].shape), with_kwargs=True
        )
        return bench.train()[0], gradients, shapes

    whole, expected, whole_shapes = step("whole")
    assert whole_shapes[0][0] == 8
    for number, settings in enumerate(SETTINGS):
        logged, gradients, shapes = step(f"{number}", **settings)
        if limit := settings.get("micro_batch_tokens"):
            assert len(shapes) > len(whole_shapes)
            assert all(shape.numel() <= limit for shape in shapes)
        if settings.get("packed"):
            assert all(shape[0] == 1 for shape in shapes)
            assert sum(shape.numel() for shape in shapes) < sum(shape.numel() for shape in whole_shapes)
        for name in ("loss", "divergence_r0", "divergence_r1", "entropy", "reward"):
            assert logged[name] == pytest.approx(whole[name], rel=1e-9)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-7, atol=1e-12)
