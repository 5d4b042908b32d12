"""Comparing outputs token by token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdzero.verify.outputs import difference

_words = st.lists(st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=6), max_size=8)
_space = st.text(alphabet=" \t\n\r", min_size=1, max_size=3)


@pytest.mark.parametrize(
    ("expected", "given_", "tolerance", "same"),
    [
        ("", "", None, True),
        ("", " \n", None, True),
        ("1 2\n3\n", "1\n2 3", None, True),
        ("1\r\n2\r\n", "1\n2", None, True),
        ("YES", "yes", None, False),
        ("1 2", "1", None, False),
        ("1", "1 2", None, False),
        ("", "1", None, False),
        ("12", "1 2", None, False),
        ("1 2", "2 1", None, False),
        # Numbers are text unless there is a tolerance.
        ("1.0", "1", None, False),
        ("0", "-0", None, False),
        ("1.0", "1", 0.0, True),
        ("0", "-0", 0.0, True),
        # Up to 1 the tolerance is absolute, above it relative to the expected number.
        ("0.5", "0.50009", 1e-4, True),
        ("0.5", "0.50011", 1e-4, False),
        ("0", "0.00009", 1e-4, True),
        ("1000", "1000.09", 1e-4, True),
        ("1000", "1000.11", 1e-4, False),
        ("-1000", "-1000.09", 1e-4, True),
        ("-1000", "1000", 1e-4, False),
        ("1e3", "1000", 1e-4, True),
        ("1000", "1001", 1e-3, True),
        ("1001", "1000", 1e-3, True),
        ("100", "100.2", 1e-3, False),
        ("100", "110.5", 0.1, False),
        ("110.5", "100", 0.1, True),
        # Words stay words with one, and a number is no word.
        ("YES 1", "YES 1.00001", 1e-4, True),
        ("YES 1", "NO 1", 1e-4, False),
        ("one", "1", 1e-4, False),
        ("1", "one", 1e-4, False),
        ("1 2", "1.00001", 1e-4, False),
        # No number is close to what is none, nor to infinity.
        ("nan", "nan", 1e-4, True),
        ("1", "nan", 1e-4, False),
        ("nan", "1", 1e-4, False),
        ("1", "inf", 1e-4, False),
        ("inf", "1", 1e-4, False),
        ("inf", "-inf", 1e-4, False),
        ("inf", "inf", 1e-4, True),
        # Numbers that no float can hold are not all the same.
        ("1" + "0" * 400, "2" + "0" * 400, 1e-4, False),
        ("1" + "0" * 400, "inf", 1e-4, False),
        ("inf", "1" + "0" * 400, 1e-4, False),
        # What only Python reads as a number is none.
        ("1000", "1_000", 1e-4, False),
        ("1", "\u0661", 1e-4, False),
    ],
)
def test_examples(expected: str, given_: str, tolerance: float | None, same: bool) -> None:
    assert (difference(expected, given_, tolerance) is None) == same


@given(_words, st.lists(_space, min_size=9, max_size=9), st.none() | st.just(1e-6))
def test_white_space_does_not_matter(words: list[str], spaces: list[str], tolerance: float | None) -> None:
    given_ = spaces[-1] + "".join(word + space for word, space in zip(words, spaces, strict=False))
    assert difference(" ".join(words), given_, tolerance) is None


@given(_words, st.data())
def test_another_token_is_told_with_its_place(words: list[str], data: st.DataObject) -> None:
    words = ["first", *words]
    place = data.draw(st.integers(0, len(words) - 1))
    other = [*words[:place], words[place] + "x", *words[place + 1 :]]
    told = difference(" ".join(words), " ".join(other))
    assert told is not None
    assert f"token {place + 1} is" in told


def test_what_is_told_is_short_and_names_both() -> None:
    assert difference("5\n", "6\n") == "token 1 is '6', not '5'"
    assert difference("1 2 3", "1 2") == "2 tokens, not 3"
    told = difference("a" * 10_000, "b" * 10_000)
    assert told is not None
    assert len(told) < 200


_finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)


@given(_finite, st.floats(-2, 2), st.sampled_from([1e-9, 1e-6, 1e-3]))
def test_the_tolerance_is_kept_on_both_sides(wanted: float, share: float, tolerance: float) -> None:
    """Half of what is allowed and a bit less than twice as much, away from where rounding decides."""
    allowed = tolerance * max(1.0, abs(wanted))
    got = wanted + share * allowed
    if abs(share) < 0.9:
        assert difference(repr(wanted), repr(got), tolerance) is None
    elif abs(share) > 1.1:
        assert difference(repr(wanted), repr(got), tolerance) is not None
