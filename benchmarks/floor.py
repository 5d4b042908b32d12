"""The floor of an update: the matrix products that no update can do without, and nothing else.

    student   each linear layer and the two products of attention forward, and both gradients of each;
              the head forward and both gradients, on response tokens only
    teacher   the same forward only, on the teacher's context

Nothing is read between the products, written once, or padded: every product is made on real tokens, into
memory that was set aside before, at the size at which it is made in the model (the batch's tokens together
for a linear layer, one sequence for attention). Attention is causal, so half of each of its products is
needed: they are made with half of the keys. Heads go in blocks of `HEAD_TOKENS` rows.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HEAD_TOKENS = 256


@dataclass(frozen=True)
class Product:
    """`times` products of a [rows, inner] with an [inner, columns] matrix."""

    rows: int
    inner: int
    columns: int
    times: int = 1

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.inner * self.columns * self.times


@dataclass(frozen=True)
class Sizes:
    """What products depend on, of a model. `windows`: how many keys a token sees at most, of each layer."""

    width: int
    inner: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    windows: tuple[int | None, ...]

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return len(self.windows)


def sizes_of(config: Any) -> Sizes:
    """The sizes of a model with a gated inner part (Qwen3, Llama, Olmo 3)."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return Sizes(
        width=config.hidden_size,
        inner=config.intermediate_size,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocabulary=config.vocab_size,
        windows=tuple(config.sliding_window if kind == "sliding_attention" else None for kind in kinds),
    )


@dataclass(frozen=True)
class Lengths:
    """Of one batch: tokens of each sequence that the student and the teacher read, and of each response."""

    student: tuple[int, ...]
    teacher: tuple[int, ...]
    responses: tuple[int, ...]


def lengths_of(prompts: Sequence[int], phrase: int, responses: Sequence[int]) -> Lengths:
    """The student reads x + y; the teacher x + y + P_r + y, where P_r has `phrase` tokens.

    The last token of y predicts nothing, but both contexts have it, as in the trainer.
    """
    pairs = list(zip(prompts, responses, strict=True))
    return Lengths(
        tuple(x + y for x, y in pairs), tuple(x + y + phrase + y for x, y in pairs), tuple(responses)
    )


def body_products(sizes: Sizes, sequences: Sequence[int]) -> list[Product]:
    """Forward, all layers: four projections of attention, three of the gated part, and attention itself."""
    tokens, width, layers = sum(sequences), sizes.width, sizes.layers
    queries, keys = sizes.heads * sizes.head_width, sizes.key_heads * sizes.head_width
    products = [
        Product(tokens, width, queries, layers),
        Product(tokens, width, keys, 2 * layers),
        Product(tokens, queries, width, layers),
        Product(tokens, width, sizes.inner, 2 * layers),
        Product(tokens, sizes.inner, width, layers),
    ]
    for window in sorted(set(sizes.windows), key=lambda w: w or 0):
        times = sizes.heads * sizes.windows.count(window)
        for length in sequences:
            seen = mean_keys(length, window)
            products.append(Product(length, sizes.head_width, seen, times))
            products.append(Product(length, seen, sizes.head_width, times))
    return products


def mean_keys(length: int, window: int | None) -> int:
    """How many keys a token of a sequence sees on average, itself included, rounded up."""
    if window is None or window >= length:
        return math.ceil((length + 1) / 2)
    # The first `window` tokens see 1, 2, ..., window keys, the others `window` each.
    return math.ceil((window * (window + 1) / 2 + (length - window) * window) / length)


def head_products(sizes: Sizes, targets: int) -> list[Product]:
    """Forward, the output head on the target tokens, in blocks."""
    whole, rest = divmod(targets, HEAD_TOKENS)
    products = [Product(HEAD_TOKENS, sizes.width, sizes.vocabulary, whole)] if whole else []
    return products + ([Product(rest, sizes.width, sizes.vocabulary)] if rest else [])


def backward_products(forward: Sequence[Product]) -> list[Product]:
    """Of each product both gradients: with respect to its left factor, and to its right one."""
    left = [Product(p.rows, p.columns, p.inner, p.times) for p in forward]
    return left + [Product(p.inner, p.rows, p.columns, p.times) for p in forward]


def update_products(sizes: Sizes, lengths: Lengths) -> list[Product]:
    """All products of an update."""
    targets = sum(lengths.responses)
    student = body_products(sizes, lengths.student) + head_products(sizes, targets)
    teacher = body_products(sizes, lengths.teacher) + head_products(sizes, targets)
    return student + backward_products(student) + teacher


def operations(products: Sequence[Product]) -> int:
    """Multiplications and additions of all of them."""
    return sum(product.operations for product in products)


class Floor:
    """Makes the products; the memory is set aside when it is made."""

    def __init__(self, products: Sequence[Product], dtype: torch.dtype = torch.float32) -> None:
        self._products = list(products)
        self._operands: dict[tuple[int, int, int], tuple[Tensor, Tensor, Tensor]] = {}
        for product in products:
            size = (product.rows, product.inner, product.columns)
            if size not in self._operands:
                left = torch.full((product.rows, product.inner), 0.01, dtype=dtype)
                # Weights lie as [out, in], and are read across: as in a linear layer.
                right = torch.full((product.columns, product.inner), 0.01, dtype=dtype).T
                self._operands[size] = left, right, torch.zeros(product.rows, product.columns, dtype=dtype)

    def seconds(self) -> float:
        """Make all products once, and say how long it took."""
        started = time.perf_counter()
        for product in self._products:
            left, right, out = self._operands[product.rows, product.inner, product.columns]
            for _ in range(product.times):
                torch.mm(left, right, out=out)
        return time.perf_counter() - started
