"""Finding the last box."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdzero.verify.boxed import has_box, last_box_start, last_boxed

_plain = st.text(st.characters(exclude_characters="{}\\", exclude_categories=["Cs"]), max_size=8)
_escaped = st.sampled_from(["\\{", "\\}", "\\\\", "\\frac"])
_balanced = st.recursive(
    _plain | _escaped,
    lambda inner: st.lists(inner, max_size=3).map("".join) | inner.map(lambda text: "{" + text + "}"),
    max_leaves=8,
)


@given(before=st.text(max_size=30), content=_balanced, after=_plain)
def test_balanced_content_comes_back_whole(before: str, content: str, after: str) -> None:
    text = f"{before} \\boxed{{{content}}}{after}"
    assert last_boxed(text) == content.strip()


@given(st.text(alphabet="\\boxed{} 1\n", max_size=60))
def test_any_text_is_read_without_failing(text: str) -> None:
    content = last_boxed(text)
    assert content is None or content in text
    assert has_box(text) or content is None


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("no box", None),
        ("\\boxed{1} no, \\boxed{2}.", "2"),
        ("\\boxed{1} no, \\boxed{2", None),
        ("\\boxed{\\boxed{3}}", "3"),
        ("\\boxed {4}", "4"),
        ("\\fbox{5}", None),
        ("\\fboxed{5}", "5"),
        ("\\boxed{}", ""),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("\\boxed{\\left\\{x\\right.}", "\\left\\{x\\right."),
        ("\\boxed{\n\\frac{1}{2}\n}", "\\frac{1}{2}"),
    ],
)
def test_examples(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "start"), [("", None), ("no box", None), ("a\\boxed{1} \\fboxed {2", 11), ("\\boxed{1}", 0)]
)
def test_where_the_last_box_begins(text: str, start: int | None) -> None:
    assert last_box_start(text) == start
