"""The values that cross between the judge and the program, and when one is the expected one."""

import itertools
import json
import math
from collections import Counter, OrderedDict, deque, namedtuple
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdzero.verify.harness.judge import matches
from sdzero.verify.harness.values import MOST_ITEMS, Opaque, decode, encode


class Whole(int):
    pass


class Listed(list[Any]):
    pass


_hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(), max_size=5)
    | st.binary(max_size=5)
    | st.complex_numbers(allow_nan=False)
    | st.decimals(allow_nan=False)
    | st.fractions(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=6,
)
_values = st.recursive(
    _hashable,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.sets(_hashable, max_size=3)
        | st.dictionaries(_hashable, inner, max_size=3)
    ),
    max_leaves=10,
)


def _crossed(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value))))


def _with_kinds(value: Any) -> Any:
    """A value beside the types of all its parts: 1, 1.0 and True are equal, and so are -0.0 and 0.0."""
    if isinstance(value, list | tuple):
        return type(value).__name__, [_with_kinds(item) for item in value]
    if isinstance(value, set | frozenset):
        return type(value).__name__, sorted(repr(_with_kinds(item)) for item in value)
    if isinstance(value, dict):
        pairs = [(_with_kinds(key), _with_kinds(item)) for key, item in value.items()]
        return "dict", pairs
    return type(value).__name__, repr(value)


@given(_values)
def test_a_value_crosses_with_its_kinds(value: Any) -> None:
    assert _with_kinds(_crossed(value)) == _with_kinds(value)


@given(_values)
def test_strict_and_lenient_agree_on_values_that_can_cross(value: Any) -> None:
    assert encode(value, strict=True) == encode(value)


@pytest.mark.parametrize(
    "value",
    [
        math.inf,
        -math.inf,
        10**4000,
        -(10**4000),
        {1: "a", "1": "b", (1, 2): "c", None: "d", False: "e"},
        {"~": "tuple", "of": [1]},
        [{"~": "opaque"}, ("~",)],
        {frozenset([frozenset([1]), 2]), 3},
        {(frozenset([1]), 2): [frozenset()]},
        [True, 1, 1.0, "1"],
        Decimal("1.10"),
        Decimal("Infinity"),
        Fraction(-3, 7),
        complex(0.0, -2.5),
        b"\x00\xff",
        range(10, 0, -3),
        "\ud800 \x00 \u2028",
        (),
        set(),
        {},
    ],
)
def test_particular_values_cross(value: Any) -> None:
    assert _with_kinds(_crossed(value)) == _with_kinds(value)


@pytest.mark.parametrize(
    "value", [deque([1, (2,)]), {"a": 1, "b": 2}.keys(), {"a": [1]}.values(), {"a": 1}.items()]
)
def test_other_collections_cross(value: Any) -> None:
    given_ = _crossed(value)
    assert type(given_) is type(value)
    assert list(given_) == list(value)
    assert len(given_) == len(value)


def test_not_a_number_crosses() -> None:
    assert math.isnan(_crossed(math.nan))
    assert _crossed(Decimal("NaN")).is_nan()


def test_subclasses_cross_as_what_they_are_made_of() -> None:
    class Colour(str, Enum):  # noqa: UP042
        RED = "red"

    class Size(IntEnum):
        LARGE = 3

    pair = namedtuple("pair", "a b")
    for value, plain in (
        (Whole(5), 5),
        (Listed([1, Whole(2)]), [1, 2]),
        (pair(1, 2), (1, 2)),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (bytearray(b"x"), b"x"),
        (Size.LARGE, 3),
        (Colour.RED, "red"),
    ):
        assert _with_kinds(_crossed(value)) == _with_kinds(plain)


def test_iterators_cross_as_iterators_and_not_without_end() -> None:
    given_ = _crossed(x * x for x in (1, 2, 3))
    assert iter(given_) is given_
    assert list(given_) == [1, 4, 9]
    assert list(_crossed([map(str, [1]), zip("a", "b", strict=True)])[1]) == [("a", "b")]

    def forever() -> Any:
        while True:
            yield None

    assert len(encode(forever())["of"]) == MOST_ITEMS


@pytest.mark.parametrize("value", [object(), int, len, ..., NotImplemented, memoryview(b"x")])
def test_any_other_value_crosses_as_its_types_name(value: Any) -> None:
    given_ = _crossed([value])[0]
    assert isinstance(given_, Opaque)
    assert type(value).__name__ in repr(given_)
    with pytest.raises(TypeError, match=f"type {type(value).__name__} cannot be sent"):
        encode([value], strict=True)


def test_an_opaque_value_equals_nothing() -> None:
    opaque = _crossed(object())
    assert (opaque == opaque) is False
    assert opaque != opaque
    assert opaque not in (None, 0, "", Opaque("object"))
    with pytest.raises(TypeError):
        hash(opaque)


KINDS = ["dict", "tuple", "set", "frozenset", "iterator", "range", "complex", "bytes", "decimal"]
KINDS += ["fraction", "opaque", "pickle"]

_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("1/0"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
        | st.fixed_dictionaries(
            {
                "~": st.sampled_from(KINDS),
                "of": inner,
            }
        )
    ),
    max_leaves=12,
)


@given(_data)
def test_data_from_elsewhere_is_a_value_or_a_value_error(data: Any) -> None:
    try:
        decode(data)
    except ValueError as fault:
        assert str(fault) != ""  # noqa: PT017


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"~": "tuple"},
        {"of": [1]},
        {"~": ["tuple"], "of": [1]},
        {"~": "tuple", "of": "ab"},
        {"~": "dict", "of": [1]},
        {"~": "dict", "of": [[1, 2, 3]]},
        {"~": "dict", "of": [[[1], 2]]},
        {"~": "set", "of": [[1]]},
        {"~": "range", "of": ["a"]},
        {"~": "range", "of": [0, 1, 0]},
        {"~": "complex", "of": ["a", 1]},
        {"~": "bytes", "of": "0"},
        {"~": "decimal", "of": "one"},
        {"~": "fraction", "of": "1/0"},
        {"~": "pickle", "of": "gASVAA"},
    ],
)
def test_faulty_data_are_value_errors(data: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode(data)


# ---- matches ----

BEYOND_FLOATS = 10**400


@pytest.mark.parametrize(
    ("expected", "value", "tolerance", "same"),
    [
        ([1, 2], [1, 2], None, True),
        ([1, 2], (1, 2), None, True),
        ([[1], [2]], [(1,), (2,)], None, True),
        ({"a": [1]}, {"a": (1,)}, None, True),
        ([1, 2], [1], None, False),
        ([1], [1, 2], None, False),
        ([1, 2], [2, 1], None, False),
        ([], None, None, False),
        ([1], 1, None, False),
        ("ab", ["a", "b"], None, False),
        ({"a": 1}, {"a": 1, "b": 2}, None, False),
        ({"a": 1, "b": 2}, {"a": 1}, None, False),
        ({"1": 2}, {1: 2}, None, False),
        (1, True, None, True),
        (1, 1.0, None, True),
        ("1", 1, None, False),
        (0.5, Fraction(1, 2), None, True),
        (1, Opaque("x"), None, False),
        ([1], [Opaque("x")], 0.1, False),
        ([1, 2], range(1, 3), None, False),
        (1.0, 1.0000001, None, False),
        (0.5, 0.59, 0.1, True),
        (0.5, 0.61, 0.1, False),
        (100, 109, 0.1, True),
        (100, 111, 0.1, False),
        ([1.0, {"a": (2.0,)}], [1.05, {"a": [2.1]}], 0.1, True),
        ([1.0, {"a": (2.0,)}], [1.05, {"a": [2.3]}], 0.1, False),
        ("1", "1.05", 0.1, False),
        (1.0, math.nan, 0.1, False),
        (math.nan, 1.0, 0.1, False),
        (1.0, math.inf, 0.1, False),
        (math.inf, 1.0, 0.1, False),
        (math.inf, -math.inf, 0.1, False),
        (math.inf, math.inf, 0.1, True),
        (BEYOND_FLOATS, BEYOND_FLOATS + 1, 0.1, True),
        (BEYOND_FLOATS, 2 * BEYOND_FLOATS, 0.1, False),
        (0.5, BEYOND_FLOATS, 0.1, False),
        (BEYOND_FLOATS, 0.5, 0.1, False),
    ],
    ids=itertools.count(),
)
def test_what_matches(expected: Any, value: Any, tolerance: float | None, same: bool) -> None:
    assert matches(expected, value, tolerance) is same
