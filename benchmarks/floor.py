"""The floor of an update: the matrix products that no update can do without, and nothing else.

    student   each linear layer and the two products of attention forward, and both gradients of each;
              the head forward and both gradients, on response tokens only
    teacher   the same forward only, on the teacher's context

Nothing is read between the products, written once, or padded: every product is made on real tokens, into
memory that was set aside before, at the size at which it is made in the model (the batch's tokens together
for a linear layer, one sequence for attention). Attention is causal, so half of each of its products is
needed: they are made with half of the keys. Heads go in blocks of `HEAD_TOKENS` rows.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from shapes import Shape
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


def body_products(shape: Shape, sequences: Sequence[int]) -> list[Product]:
    """Forward, all layers: four projections of attention, three of the gated part, and attention itself."""
    tokens, width, inner, heads = sum(sequences), shape.width, shape.inner, shape.heads
    products = [
        Product(tokens, width, width, 4 * shape.layers),
        Product(tokens, width, inner, 2 * shape.layers),
        Product(tokens, inner, width, shape.layers),
    ]
    for length in sequences:
        half = (length + 1) // 2
        products.append(Product(length, width // heads, half, heads * shape.layers))
        products.append(Product(length, half, width // heads, heads * shape.layers))
    return products


def head_products(shape: Shape, targets: int) -> list[Product]:
    """Forward, the output head on the target tokens, in blocks."""
    whole, rest = divmod(targets, HEAD_TOKENS)
    products = [Product(HEAD_TOKENS, shape.width, shape.vocabulary, whole)] if whole else []
    return products + ([Product(rest, shape.width, shape.vocabulary)] if rest else [])


def backward_products(forward: Sequence[Product]) -> list[Product]:
    """Of each product both gradients: with respect to its left factor, and to its right one."""
    left = [Product(p.rows, p.columns, p.inner, p.times) for p in forward]
    return left + [Product(p.inner, p.rows, p.columns, p.times) for p in forward]


def update_products(shape: Shape, lengths: Lengths) -> list[Product]:
    """All products of an update."""
    targets = sum(lengths.responses)
    student = body_products(shape, lengths.student) + head_products(shape, targets)
    teacher = body_products(shape, lengths.teacher) + head_products(shape, targets)
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
