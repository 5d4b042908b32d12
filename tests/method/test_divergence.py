"""The chunked divergence against a dense one that autograd differentiates, and what it promises of memory."""

import math
import weakref

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from sdzero.errors import UserError
from sdzero.method import head_products
from sdzero.method.divergence import automatic_chunk, divergence_from_hidden
from sdzero.method.roles import AlignmentError

KINDS = ("reverse", "forward", "mixed", "jsd")


def dense_divergence(student_logits_TV, teacher_logits_TV, kind):
    """Per-token divergence by torch's own KL, all logits at once."""
    s_TV = student_logits_TV.log_softmax(-1)
    t_TV = teacher_logits_TV.log_softmax(-1)

    def kl(a_TV, b_TV):  # KL(A || B)
        return functional.kl_div(b_TV, a_TV, reduction="none", log_target=True).sum(-1)

    if kind == "jsd":
        m_TV = (0.5 * s_TV.exp() + 0.5 * t_TV.exp()).log()
        return 0.5 * kl(s_TV, m_TV) + 0.5 * kl(t_TV, m_TV)
    parts = {"reverse": (1.0, 0.0), "forward": (0.0, 1.0), "mixed": (0.5, 0.5)}[kind]
    return parts[0] * kl(s_TV, t_TV) + parts[1] * kl(t_TV, s_TV)


def make_inputs(tokens=11, vocabulary=17, width=5, teacher_width=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "student_hidden_TD": draw(tokens, width).requires_grad_(),
        "teacher_hidden_TD": draw(tokens, teacher_width).requires_grad_(),
        "student_head_VD": draw(vocabulary, width).requires_grad_(),
        "teacher_head_VD": draw(vocabulary, teacher_width).requires_grad_(),
        "student_bias_V": draw(vocabulary).requires_grad_(),
        "teacher_bias_V": draw(vocabulary).requires_grad_(),
        "weights_T": draw(tokens).abs(),
    }


def logits(inputs, who):
    return functional.linear(inputs[f"{who}_hidden_TD"], inputs[f"{who}_head_VD"], inputs[f"{who}_bias_V"])


STUDENT = ("student_hidden_TD", "student_head_VD", "student_bias_V")


@pytest.mark.parametrize("chunk_tokens", [1, 4, 11, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_equal_the_dense_ones(kind, chunk_tokens):
    inputs = make_inputs()
    result = divergence_from_hidden(**inputs, kind=kind, chunk_tokens=chunk_tokens)
    gradients = torch.autograd.grad(3.0 * result.total, [inputs[name] for name in STUDENT])

    student_TV, teacher_TV = logits(inputs, "student"), logits(inputs, "teacher").detach()
    dense_T = dense_divergence(student_TV, teacher_TV, kind)
    total = (dense_T * inputs["weights_T"]).sum()
    expected = torch.autograd.grad(3.0 * total, [inputs[name] for name in STUDENT])

    torch.testing.assert_close(result.total, total)
    torch.testing.assert_close(result.per_token_T, dense_T.detach())
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)
    entropy_T = torch.distributions.Categorical(logits=student_TV.detach()).entropy()
    torch.testing.assert_close(result.student_entropy_T, entropy_T)


@pytest.mark.parametrize("kind", ["reverse", "forward", "jsd"])
def test_the_kernel_of_trl_computes_the_same(kind):
    """Value, statistics and gradients, with weights and factors; it works in float32."""
    ours, theirs = make_inputs(dtype=torch.float32), make_inputs(dtype=torch.float32)

    def factors_of(divergence_T, entropy_T):
        return 1 / (1 + divergence_T + entropy_T)

    expected = divergence_from_hidden(**ours, kind=kind, chunk_tokens=4, factors_of=factors_of)
    result = divergence_from_hidden(**theirs, kind=kind, chunk_tokens=4, factors_of=factors_of, backend="trl")
    torch.testing.assert_close(result.total, expected.total)
    torch.testing.assert_close(result.per_token_T, expected.per_token_T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.student_entropy_T, expected.student_entropy_T)
    expected.total.backward()
    result.total.backward()
    for name in STUDENT:
        torch.testing.assert_close(theirs[name].grad, ours[name].grad, rtol=1e-4, atol=1e-5)
    assert theirs["teacher_hidden_TD"].grad is None


def test_a_divergence_that_a_backend_does_not_have_is_refused():
    with pytest.raises(UserError, match="no `mixed` divergence"):
        divergence_from_hidden(**make_inputs(), kind="mixed", chunk_tokens=4, backend="trl")


def test_automatic_chunks_are_shorter_for_larger_vocabularies():
    assert automatic_chunk("cpu", 352) == 1024
    assert automatic_chunk("cpu", 151_936) == 220
    assert automatic_chunk("cuda", 151_936) == 1024
    assert automatic_chunk("cpu", 1 << 24) == 32
    inputs = make_inputs()
    automatic = divergence_from_hidden(**inputs, kind="reverse", chunk_tokens="auto")
    assert torch.equal(
        automatic.per_token_T,
        divergence_from_hidden(**inputs, kind="reverse", chunk_tokens=1024).per_token_T,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_worked_on_in_blocks_gives_the_same(kind, monkeypatch):
    whole, parts = make_inputs(), make_inputs()
    expected = divergence_from_hidden(**whole, kind=kind, chunk_tokens=8)
    monkeypatch.setitem(head_products.BLOCK_LOGITS, "cpu", 3 * 17)  # three rows of the vocabulary
    result = divergence_from_hidden(**parts, kind=kind, chunk_tokens=8)
    expected.total.backward()
    result.total.backward()
    torch.testing.assert_close(result.per_token_T, expected.per_token_T)
    torch.testing.assert_close(result.student_entropy_T, expected.student_entropy_T)
    for name in STUDENT:
        torch.testing.assert_close(parts[name].grad, whole[name].grad)


class ProductCount(TorchDispatchMode):
    """Counts the products of a chunk's size with a head."""

    def __init__(self):
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        self.products += any(name.startswith(f"aten::{product}") for product in ("mm", "addmm"))
        return function(*args, **(kwargs or {}))


def test_one_pass_takes_four_products_a_chunk_and_two_passes_six():
    """Of 11 tokens in chunks of 4: logits of both models, gradients of hidden states and head."""

    def products(**options):
        with ProductCount() as count:
            divergence_from_hidden(
                **make_inputs(), kind="reverse", chunk_tokens=4, **options
            ).total.backward()
        return count.products

    def factors_of(divergence_T, entropy_T):
        return 1 / (1 + divergence_T)

    assert products() == 3 * 4
    assert products(factors_of=factors_of, factors_are_local=True) == 3 * 4
    assert products(factors_of=factors_of) == 3 * 6


@pytest.mark.parametrize("chunk_tokens", [3, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_local_factors_made_chunk_by_chunk_give_the_same(kind, chunk_tokens):
    sorted_T = divergence_from_hidden(**make_inputs(), kind=kind, chunk_tokens=64).per_token_T.sort().values
    clip = sorted_T[5:7].mean()  # between two values: rounding moves none across

    def factors_of(divergence_T, entropy_T):
        return torch.where(divergence_T > clip, 0.0, 1 / (1 + entropy_T))

    found = []
    for local in (False, True):
        inputs = make_inputs()
        inputs["weights_T"][2] = 0.0
        result = divergence_from_hidden(
            **inputs, kind=kind, chunk_tokens=chunk_tokens, factors_of=factors_of, factors_are_local=local
        )
        (2.0 * result.total).backward()
        found.append([result.total, result.per_token_T, *(inputs[name].grad for name in STUDENT)])
    assert found[0][2].abs().sum() > 0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_without_gradients_no_products_are_made_for_them():
    with torch.no_grad(), ProductCount() as count:
        result = divergence_from_hidden(**make_inputs(), kind="reverse", chunk_tokens=4)
    assert count.products == 3 * 2
    assert not result.total.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_gradcheck(kind):
    inputs = make_inputs(tokens=3, vocabulary=5, width=2)

    def total(*student):
        values = {**inputs, **dict(zip(STUDENT, student, strict=True))}
        return divergence_from_hidden(**values, kind=kind, chunk_tokens=2).total

    assert torch.autograd.gradcheck(total, [inputs[name] for name in STUDENT])


@pytest.mark.parametrize(
    ("kind", "by_hand"),
    [
        ("reverse", 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)),
        ("forward", 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)),
    ],
)
def test_direction_by_hand(kind, by_hand):
    """Student (1/2, 1/2), teacher (1/4, 3/4): `reverse` is KL(student || teacher)."""
    one = torch.ones(1, 1, dtype=torch.float64)
    result = divergence_from_hidden(
        one,
        one,
        torch.tensor([[0.5], [0.5]], dtype=torch.float64).log(),
        torch.tensor([[0.25], [0.75]], dtype=torch.float64).log(),
        kind,
        8,
    )
    assert result.total.item() == pytest.approx(by_hand, rel=1e-12)
    assert result.student_entropy_T.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_models_have_no_divergence_and_no_gradient(kind, dtype):
    inputs = make_inputs(dtype=dtype, width=4)
    for name in ("hidden_TD", "head_VD", "bias_V"):
        inputs[f"teacher_{name}"] = inputs[f"student_{name}"].detach().clone()
    result = divergence_from_hidden(**inputs, kind=kind, chunk_tokens=4)
    gradients = torch.autograd.grad(result.total, [inputs[name] for name in STUDENT])
    assert result.per_token_T.abs().max() < 1e-6
    assert max(gradient.abs().max().item() for gradient in gradients) < 1e-5


def test_the_teacher_gets_no_gradient():
    inputs = make_inputs()
    divergence_from_hidden(**inputs, kind="mixed", chunk_tokens=4).total.backward()
    for name in ("teacher_hidden_TD", "teacher_head_VD", "teacher_bias_V"):
        assert inputs[name].grad is None
    assert inputs["student_hidden_TD"].grad is not None


def test_statistics_carry_no_gradient():
    result = divergence_from_hidden(**make_inputs(), kind="reverse", chunk_tokens=4)
    assert result.total.requires_grad
    assert not result.per_token_T.requires_grad
    assert not result.student_entropy_T.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_head_still_lets_gradient_through_to_the_hidden_states(kind):
    """As with LoRA, where the head is no parameter and has no bias."""
    inputs = make_inputs()
    inputs |= {"student_bias_V": None, "teacher_bias_V": None}
    inputs["student_head_VD"].requires_grad_(False)
    divergence_from_hidden(**inputs, kind=kind, chunk_tokens=4).total.backward()
    gradient = inputs["student_hidden_TD"].grad.clone()
    assert inputs["student_head_VD"].grad is None

    hidden_TD = inputs["student_hidden_TD"]
    hidden_TD.grad = None
    dense_T = dense_divergence(
        hidden_TD @ inputs["student_head_VD"].T,
        inputs["teacher_hidden_TD"].detach() @ inputs["teacher_head_VD"].detach().T,
        kind,
    )
    (dense_T * inputs["weights_T"]).sum().backward()
    torch.testing.assert_close(gradient, hidden_TD.grad)


def test_a_tied_head_gathers_gradient_from_both_uses():
    embedding_VD = torch.randn(17, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    embedding_VD.requires_grad_()
    inputs = make_inputs(width=5)
    ids_T = torch.arange(11)

    def student_hidden():
        return functional.embedding(ids_T, embedding_VD).tanh()

    total = divergence_from_hidden(
        student_hidden(),
        inputs["teacher_hidden_TD"],
        embedding_VD,
        inputs["teacher_head_VD"],
        "reverse",
        4,
    ).total
    (gradient,) = torch.autograd.grad(total, embedding_VD)
    teacher_TV = (inputs["teacher_hidden_TD"] @ inputs["teacher_head_VD"].T).detach()
    dense = dense_divergence(student_hidden() @ embedding_VD.T, teacher_TV, "reverse").sum()
    (expected,) = torch.autograd.grad(dense, embedding_VD)
    torch.testing.assert_close(gradient, expected)


def test_no_tokens_give_zero_and_zero_gradients():
    inputs = make_inputs(tokens=0)
    result = divergence_from_hidden(**inputs, kind="reverse", chunk_tokens=4)
    result.total.backward()
    assert result.total.item() == 0.0
    assert result.per_token_T.shape == (0,)
    assert inputs["student_head_VD"].grad.abs().sum() == 0


def test_bfloat16_inputs_are_raised_to_float32_inside():
    low = make_inputs(dtype=torch.bfloat16, vocabulary=64)
    result = divergence_from_hidden(**low, kind="reverse", chunk_tokens=4)
    result.total.backward()
    assert result.total.dtype == result.per_token_T.dtype == torch.float32
    assert low["student_hidden_TD"].grad.dtype == low["student_head_VD"].grad.dtype == torch.bfloat16

    # Only the logits themselves are rounded to bfloat16; from there on the dense float64 result holds.
    student_TV = logits(low, "student").double().detach()
    dense_T = dense_divergence(student_TV, logits(low, "teacher").double().detach(), "reverse")
    torch.testing.assert_close(result.per_token_T.double(), dense_T, rtol=1e-4, atol=1e-5)

    student_TV.requires_grad_()
    dense_T = dense_divergence(student_TV, logits(low, "teacher").double().detach(), "reverse")
    (dense_T * low["weights_T"].double()).sum().backward()
    wanted_TD = student_TV.grad @ low["student_head_VD"].double()
    torch.testing.assert_close(low["student_hidden_TD"].grad.double(), wanted_TD, rtol=0.03, atol=0.03)


def test_autocast_takes_the_products_in_its_dtype_in_both_passes():
    plain, cast = make_inputs(dtype=torch.float32), make_inputs(dtype=torch.float32)
    expected = divergence_from_hidden(**plain, kind="reverse", chunk_tokens=4)
    expected.total.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = divergence_from_hidden(**cast, kind="reverse", chunk_tokens=4)
    result.total.backward()
    assert result.total.dtype == torch.float32
    assert not torch.equal(result.per_token_T, expected.per_token_T)
    torch.testing.assert_close(result.per_token_T, expected.per_token_T, rtol=0.1, atol=0.1)
    for name in STUDENT:
        assert cast[name].grad.dtype == torch.float32
        torch.testing.assert_close(cast[name].grad, plain[name].grad, rtol=0.1, atol=0.3)


@pytest.mark.parametrize("chunk_tokens", [3, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_factors_weigh_tokens_and_carry_no_gradient(kind, chunk_tokens):
    inputs = make_inputs()
    dense_T = dense_divergence(logits(inputs, "student"), logits(inputs, "teacher"), kind)
    # Depends on both, leaves tokens out, and is a function that has a derivative of its own.
    factors_T = torch.where(dense_T > dense_T.median(), 0.0, 1 / (1 + dense_T)).detach()
    expected = (dense_T * inputs["weights_T"] * factors_T).sum()
    wanted = torch.autograd.grad(expected, [inputs[name] for name in STUDENT])
    seen = {}

    def factors_of(divergence_T, entropy_T):
        seen.update(divergence=divergence_T.clone(), entropy=entropy_T.clone())
        return torch.where(divergence_T > divergence_T.median(), 0.0, 1 / (1 + divergence_T))

    result = divergence_from_hidden(**inputs, kind=kind, chunk_tokens=chunk_tokens, factors_of=factors_of)
    torch.testing.assert_close(seen["divergence"], dense_T)
    torch.testing.assert_close(seen["entropy"], result.student_entropy_T)
    torch.testing.assert_close(result.total, expected)
    torch.testing.assert_close(result.per_token_T, dense_T.detach())  # what is logged has no factor
    found = torch.autograd.grad(result.total, [inputs[name] for name in STUDENT])
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, other)


def test_far_apart_distributions_stay_finite():
    hidden_TD = torch.ones(2, 1, requires_grad=True)
    head_VD = torch.tensor([[200.0], [-200.0], [0.0]])
    result = divergence_from_hidden(hidden_TD, torch.ones(2, 1), head_VD, -head_VD, "mixed", 1)
    result.total.backward()
    assert result.per_token_T.tolist() == pytest.approx([400.0, 400.0])
    assert torch.isfinite(hidden_TD.grad).all()


def test_ill_fitting_inputs_raise():
    inputs = make_inputs()
    short = {**inputs, "teacher_hidden_TD": inputs["teacher_hidden_TD"][:-1]}
    with pytest.raises(AlignmentError, match="11 student rows but 10 teacher rows"):
        divergence_from_hidden(**short, kind="reverse", chunk_tokens=4)
    other = {**inputs, "teacher_head_VD": inputs["teacher_head_VD"][:-1]}
    with pytest.raises(ValueError, match="vocabulary"):
        divergence_from_hidden(**other, kind="reverse", chunk_tokens=4)
    with pytest.raises(ValueError, match="weights"):
        divergence_from_hidden(**{**inputs, "weights_T": torch.ones(11, 1)}, kind="reverse", chunk_tokens=4)
    with pytest.raises(ValueError, match="chunk_tokens"):
        divergence_from_hidden(**inputs, kind="reverse", chunk_tokens=0)
    with pytest.raises(ValueError, match="unknown divergence"):
        divergence_from_hidden(**inputs, kind="kl", chunk_tokens=4)


class MemoryWatch(TorchDispatchMode):
    """Counts the elements of every storage made while it is on, alive ones and the most at once."""

    def __init__(self):
        super().__init__()
        self.largest = self.alive = self.peak = 0
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)
        return out

    def _count(self, tensor):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.seen:
            return
        size = storage.nbytes() // tensor.element_size()
        self.seen.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        self.largest = max(self.largest, size)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key, size):
        self.seen.discard(key)
        self.alive -= size


def watch(tokens, kind, chunk_tokens=8):
    inputs = make_inputs(tokens=tokens, vocabulary=1000, width=2, teacher_width=2, dtype=torch.float32)
    with MemoryWatch() as memory:
        divergence_from_hidden(**inputs, kind=kind, chunk_tokens=chunk_tokens).total.backward()
    return memory


@pytest.mark.parametrize("kind", KINDS)
def test_no_tensor_is_larger_than_one_chunk_of_logits(kind):
    assert watch(96, kind).largest == 8 * 1000


@pytest.mark.parametrize("kind", KINDS)
def test_peak_memory_does_not_grow_with_the_number_of_tokens(kind):
    """Beyond the hidden states and their like, which are a few numbers a token."""
    few, many = watch(16, kind).peak, watch(160, kind).peak
    assert few < 6 * 8 * 1000
    assert many - few < 16 * (160 - 16)
