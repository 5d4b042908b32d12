"""-log p in chunks against torch's cross entropy: value, gradients, and the products that it takes."""

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from sdzero.method import head_products
from sdzero.method.chunked_nll import weighted_nll_sum


def make_inputs(dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    hidden_TD, head_VD = draw(11, 5), draw(17, 5)
    targets_T = torch.randint(17, (11,), generator=generator)
    weights_T = torch.rand(11, generator=generator, dtype=torch.float64)
    weights_T[3] = 0.0
    return hidden_TD, head_VD, draw(17) if bias else None, targets_T, weights_T


@pytest.mark.parametrize("block", [2, 64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 64])
def test_value_and_gradients_are_those_of_cross_entropy(monkeypatch, chunk_tokens, bias, block):
    monkeypatch.setitem(head_products.BLOCK_LOGITS, "cpu", block * 17)
    hidden_TD, head_VD, bias_V, targets_T, weights_T = make_inputs(bias=bias)
    leaves = [hidden_TD, head_VD] + ([bias_V] if bias else [])
    found = weighted_nll_sum(hidden_TD, head_VD, bias_V, targets_T, weights_T, chunk_tokens)
    gradients = torch.autograd.grad(3.0 * found, leaves)
    nll_T = functional.cross_entropy(
        functional.linear(hidden_TD, head_VD, bias_V), targets_T, reduction="none"
    )
    expected = (nll_T * weights_T).sum()
    torch.testing.assert_close(found, expected)
    for own, other in zip(gradients, torch.autograd.grad(3.0 * expected, leaves), strict=True):
        torch.testing.assert_close(own, other)


def test_bfloat16_is_raised_to_float32_inside():
    hidden_TD, head_VD, bias_V, targets_T, weights_T = make_inputs(torch.bfloat16)
    found = weighted_nll_sum(hidden_TD, head_VD, bias_V, targets_T, weights_T, 4)
    assert found.dtype == torch.float32
    found.backward()
    assert hidden_TD.grad.dtype == head_VD.grad.dtype == torch.bfloat16
    logits_TV = functional.linear(hidden_TD, head_VD, bias_V).double()
    expected = (functional.cross_entropy(logits_TV, targets_T, reduction="none") * weights_T).sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_chunk_takes_three_products_and_one_without_gradients():
    class Count(TorchDispatchMode):
        products = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.products += function.name().startswith(("aten::mm", "aten::addmm"))
            return function(*args, **(kwargs or {}))

    with Count() as count:
        weighted_nll_sum(*make_inputs(), 4).backward()
    assert count.products == 3 * 3
    with torch.no_grad(), Count() as count:
        weighted_nll_sum(*make_inputs(), 4)
    assert count.products == 3
