"""Hedges, revisions and attempts, counted by hand."""

import pytest

from sdzero.analyze.style import HEDGES, REVISIONS, attempts_in, hedges, revisions, style
from sdzero.recipe import PhraseSettings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Wait, that might be off. WAIT!", {"wait": 2, "might": 1}),
        ("waiter, mighty, unlikely, checked, checkers", {}),  # whole words only
        ("Let me double-check", {}),  # a revision, and no hedge
        ("Let me check:hmm...maybe", {"check": 1, "hmm": 1, "maybe": 1}),
        ("4*5=20;3+20=23\\boxed{23}", {}),
        ("", {}),
    ],
)
def test_hedges(text: str, expected: dict[str, int]) -> None:
    assert hedges(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "However, that is INCORRECT; let me redo it.",
            {"however": 1, "incorrect": 1, "let me": 1, "redo": 1},
        ),
        ("Let me double-check, then recheck.", {"let me": 1, "double-check": 1, "recheck": 1}),
        ("redone, mistaken, wrongly, outlet me", {}),
        ("not correct", {"not correct": 1}),
    ],
)
def test_revisions(text: str, expected: dict[str, int]) -> None:
    assert revisions(text) == expected


def test_the_control_phrases_count_as_revisions() -> None:
    phrases = PhraseSettings()
    assert revisions(phrases.correct) == {"let me": 1, "rephrase": 1}
    assert revisions(phrases.wrong) == {"not correct": 1, "let me": 1, "start over": 1}
    assert hedges(phrases.wrong) == {"wait": 1}


@pytest.mark.parametrize("word", [*HEDGES, *REVISIONS])
def test_each_phrase_is_found_alone(word: str) -> None:
    both = hedges(word) + revisions(word)
    assert both == {word: 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("\\boxed{3}", 1), ("\\boxed{3} no: \\fboxed {4} or \\boxed{", 3), ("boxed{3}", 0), ("", 0)],
)
def test_attempts(text: str, expected: int) -> None:
    assert attempts_in(text) == expected


def test_style_by_hand() -> None:
    found = style(
        ["Wait, maybe not. \\boxed{1}", "\\boxed{1} However: \\boxed{2}", "wait", "no answer"],
        [100, 60, 30, 10],
    )
    assert found == {
        "responses": 4,
        "mean_tokens": 50,
        "attempts": 0.75,
        "several_attempts": 0.25,
        "hedges": {"per_1000_tokens": 15.0, "share": 0.5, "words": {"wait": 2, "maybe": 1}},
        "revisions": {"per_1000_tokens": 5.0, "share": 0.25, "words": {"however": 1}},
    }
    assert list(found["hedges"]["words"]) == ["wait", "maybe"]


def test_responses_without_tokens_have_a_rate_of_0() -> None:
    assert style(["", ""], [0, 0])["hedges"] == {"per_1000_tokens": 0.0, "share": 0.0, "words": {}}


@pytest.mark.parametrize(("texts", "tokens"), [([], []), (["a"], [1, 2]), (["a"], [-1])])
def test_what_cannot_be_is_refused(texts: list[str], tokens: list[int]) -> None:
    with pytest.raises(ValueError, match=r"responses|texts|negative"):
        style(texts, tokens)
