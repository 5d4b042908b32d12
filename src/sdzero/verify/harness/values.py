"""Plain Python values as JSON, for between the judge and the program, with their kinds.

No pickle, since one of the two sides is not to be trusted. A value of any other type crosses as its type's
name alone, and equals nothing.
"""

import collections
import collections.abc
import decimal
import fractions
from typing import Any

TAG = "~"
MOST_ITEMS = 1_000_000


class Opaque:
    """Stands for a value that could not cross; equal to nothing, itself included."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.kind}>"


class Items:
    """Stands for an iterator that crossed: it can be iterated once, and sent back."""

    def __init__(self, items: list[Any]) -> None:
        self._rest = collections.deque(items)

    def __iter__(self) -> "Items":
        return self

    def __next__(self) -> Any:
        if not self._rest:
            raise StopIteration
        return self._rest.popleft()


class UnsendableError(TypeError):
    """A value that came from the program as its type's name alone cannot be sent back to it."""


COLLECTIONS: dict[str, tuple[Any, Any]] = {
    "tuple": (tuple, tuple),
    "set": (set, set),
    "frozenset": (frozenset, frozenset),
    "deque": (collections.deque, collections.deque),
    "keys": (type({}.keys()), lambda items: dict.fromkeys(items).keys()),
    "values": (type({}.values()), lambda items: dict(enumerate(items)).values()),
    "items": (type({}.items()), lambda items: dict(items).items()),
}
"""What holds other values, beside lists: its type, and how one is made of a list of them."""


def encode(value: Any, strict: bool = False) -> Any:
    """JSON-like data for a value. `strict` raises TypeError for one that cannot cross as it is."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)  # `str(value)` of an enumeration's member is its name
    if isinstance(value, list):
        return [encode(item, strict) for item in value]
    for kind, (types, _) in COLLECTIONS.items():
        if isinstance(value, types):
            return _tagged(kind, [encode(item, strict) for item in value])
    if isinstance(value, dict):
        return _tagged("dict", [[encode(key, strict), encode(item, strict)] for key, item in value.items()])
    if isinstance(value, bytes | bytearray):
        return _tagged("bytes", bytes(value).hex())
    if isinstance(value, complex):
        return _tagged("complex", [value.real, value.imag])
    if isinstance(value, decimal.Decimal):
        return _tagged("decimal", str(value))
    if isinstance(value, fractions.Fraction):
        return _tagged("fraction", str(value))
    if isinstance(value, range):
        return _tagged("range", [value.start, value.stop, value.step])
    if isinstance(value, collections.abc.Iterator) and (not strict or isinstance(value, Items)):
        items = [encode(item) for item, _ in zip(value, range(MOST_ITEMS), strict=False)]
        return _tagged("iterator", items)
    if strict and isinstance(value, Opaque):
        raise UnsendableError(f"a value of type {value.kind:.40} was returned")
    if strict:
        raise TypeError(f"a value of type {type(value).__name__} cannot be sent to the program")
    return _tagged("opaque", type(value).__name__)


def _tagged(kind: str, content: Any) -> dict[str, Any]:
    return {TAG: kind, "of": content}


def decode(data: Any) -> Any:
    """The value that `encode` was given. Raises ValueError for data that it never makes."""
    try:
        return _decoded(data)
    except (TypeError, ArithmeticError) as fault:
        raise ValueError(f"faulty data: {type(fault).__name__}: {fault}") from None


def _decoded(data: Any) -> Any:
    if isinstance(data, list):
        return [_decoded(item) for item in data]
    if not isinstance(data, dict):
        return data
    kind, content = data.get(TAG), data.get("of")
    if kind == "dict" and isinstance(content, list):
        return {_decoded(key): _decoded(item) for key, item in content}
    if kind in COLLECTIONS and isinstance(content, list):
        return COLLECTIONS[kind][1]([_decoded(item) for item in content])
    if kind == "iterator" and isinstance(content, list):
        return Items([_decoded(item) for item in content])
    if kind == "range" and isinstance(content, list):
        return range(*content)
    if kind == "complex" and isinstance(content, list):
        return complex(*content)
    if isinstance(content, str):
        if kind == "bytes":
            return bytes.fromhex(content)
        if kind == "decimal":
            return decimal.Decimal(content)
        if kind == "fraction":
            return fractions.Fraction(content)
        if kind == "opaque":
            return Opaque(content)
    raise ValueError(f"unknown data of kind {kind!r:.40}")
