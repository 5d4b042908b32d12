"""The floor counts what a step's matrix products are, and nothing else."""

import pytest
import torch
from floor import (
    HEAD_TOKENS,
    Floor,
    Product,
    Sizes,
    backward_products,
    body_products,
    head_products,
    lengths_of,
    mean_keys,
    operations,
    sizes_of,
    update_products,
)
from shapes import SHAPES, config_of, questions_of, roles_of, sizes_at
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, Qwen3ForCausalLM

from sdzero import tiny

ONE_LAYER = Sizes(width=4, inner=8, heads=2, key_heads=1, head_width=2, vocabulary=10, windows=(None,))


def test_one_layer_worked_by_hand() -> None:
    """Three tokens: q 2*3*4*4 = 96, k and v 48 each, o 96, gate and up 192 each, down 192: 864.

    Attention: on average (1 + 2 + 3) / 3 = 2 keys; scores 2*3*2*2 for each of 2 heads = 48, values as much.
    """
    assert operations(body_products(ONE_LAYER, [3])) == 864 + 96
    assert operations(head_products(ONE_LAYER, 2)) == 2 * 2 * 4 * 10


def test_an_update_worked_by_hand() -> None:
    """x 1, y 2, P_r 1: the student reads 3 tokens and the teacher 1 + 2 + 1 + 2 = 6.

    Student 960 + 160, three times (forward, two gradients); teacher: 864 / 3 * 6 = 1728, attention with
    ceil(7 / 2) = 4 keys 2*6*2*4*2 = 192 twice, head 160.
    """
    lengths = lengths_of([1], 1, [2])
    assert (lengths.student, lengths.teacher, lengths.responses) == ((3,), (6,), (2,))
    assert operations(update_products(ONE_LAYER, lengths)) == 3 * (960 + 160) + 1728 + 2 * 192 + 160


@pytest.mark.parametrize(
    ("length", "window", "keys"), [(1, None, 1), (5, None, 3), (4, 2, 2), (4, 1, 1), (4, 9, 3), (100, 10, 10)]
)
def test_a_token_sees_the_keys_before_it_within_the_window(length, window, keys) -> None:
    assert mean_keys(length, window) == keys


def test_heads_go_in_blocks_that_add_up() -> None:
    products = head_products(ONE_LAYER, 2 * HEAD_TOKENS + 5)
    assert [(p.rows, p.times) for p in products] == [(HEAD_TOKENS, 2), (5, 1)]
    assert operations(backward_products(products)) == 2 * operations(products)


def test_linear_layers_are_counted_as_pytorch_counts_them() -> None:
    """Forward and backward, of a small model with fewer key heads than heads."""
    config = config_of(SHAPES["tiny"])
    config.num_key_value_heads, config.vocab_size = 2, 64
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(12)[None]).logits.sum().backward()
    counted = counter.get_flop_counts()["Global"]
    sizes = sizes_of(config)
    attention = 2 * 2 * 12 * mean_keys(12, None) * sizes.head_width * sizes.heads * sizes.layers
    forward = operations(body_products(sizes, [12])) - attention + operations(head_products(sizes, 12))
    assert counted[torch.ops.aten.mm] == 3 * forward


def test_the_shapes_are_what_they_are_called() -> None:
    for name, millions in (("24m", 24), ("70m", 70), ("100m", 100)):
        with torch.device("meta"):
            model = Qwen3ForCausalLM(config_of(SHAPES[name]))
        assert round(sum(p.numel() for p in model.parameters()) / 1e6) == pytest.approx(millions, abs=1)
    assert sizes_at(SHAPES["tiny"]).vocabulary == SHAPES["tiny"].vocabulary


def test_prompts_are_spread_over_32_to_64_tokens() -> None:
    roles = roles_of(AutoTokenizer.from_pretrained(tiny.model_folder()))
    lengths = [len(roles.generator_prompt(q)) for q in questions_of(SHAPES["tiny"], roles)]
    assert lengths == sorted(lengths)
    assert 32 <= lengths[0] <= 34
    assert 64 <= lengths[-1] <= 66


def test_the_floor_makes_every_product(monkeypatch) -> None:
    made = []
    real = torch.mm
    monkeypatch.setattr(
        torch, "mm", lambda a, b, out: made.append((*a.shape, b.shape[1])) or real(a, b, out=out)
    )
    floor = Floor([Product(2, 3, 4, 2), Product(5, 3, 1)])
    assert floor.seconds() > 0
    assert made == [(2, 3, 4), (2, 3, 4), (5, 3, 1)]
