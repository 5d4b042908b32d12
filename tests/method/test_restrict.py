"""Which tokens carry the divergence, on responses of which every token is known."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdzero.method.restrict import carrying_tokens, false_starts_in, final_answer_start
from sdzero.models import load_tokenizer
from sdzero.recipe_distill import FALSE_STARTS

END = 0


class Pieces:
    """A vocabulary in which each piece of text is a token: token n + 1 is piece n, and 0 is the end token."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces
        self.ids = [*range(1, len(pieces) + 1), END]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces[number - 1] for number in ids)

    def carried(self, on: Any, ids: Sequence[int] | None = None) -> list[str]:
        """The pieces that carry, `END` for the end token."""
        ids = self.ids if ids is None else ids
        flags = carrying_tokens(ids, self.decode, END, on, FALSE_STARTS)
        assert len(flags) == len(ids)
        chosen = [number for number, flag in zip(ids, flags, strict=True) if flag]
        return ["END" if number == END else self.pieces[number - 1] for number in chosen]


TRIAL = Pieces("5:", "35+12=47", " wait ", "4:", "28+12=40", " wait ", "3:33", "\\boxed{", "3", "}")


def test_all_is_every_token() -> None:
    assert TRIAL.carried("all") == [*TRIAL.pieces, "END"]


def test_after_the_last_false_start_is_what_follows_its_marker() -> None:
    assert TRIAL.carried("after_last_false_start") == ["3:33", "\\boxed{", "3", "}", "END"]


def test_without_a_false_start_every_token_carries() -> None:
    plain = Pieces("3:33", "\\boxed{", "3", "}")
    assert plain.carried("after_last_false_start") == [*plain.pieces, "END"]


def test_the_token_that_holds_a_markers_end_does_not_carry() -> None:
    joined = Pieces("2+2=5. Wa", "it, no", ": 4")
    assert joined.carried("after_last_false_start") == [": 4", "END"]


@pytest.mark.parametrize("text", ["waiter", "Waiting", "a-wait", "HMM", "WAIT", "await"])
def test_markers_are_whole_words_as_they_are_written(text: str) -> None:
    assert false_starts_in(f"the {text} comes", FALSE_STARTS) == 0


def test_markers_are_counted_once_each_and_longer_ones_first() -> None:
    assert false_starts_in("Wait. Hmm, wait, let me start over.", FALSE_STARTS) == 4
    assert false_starts_in("no wait, no", ["wait", "no wait"]) == 1
    assert false_starts_in("答案是3等等不对", ["等等"]) == 1


def test_the_final_answer_is_the_last_box_and_the_end() -> None:
    assert TRIAL.carried("final_answer") == ["\\boxed{", "3", "}", "END"]
    twice = Pieces("\\boxed{4}", " Wait", " \\bo", "xed{5}", ".")
    assert twice.carried("final_answer") == [" \\bo", "xed{5}", ".", "END"]


def test_after_thinking_the_final_answer_is_all_that_follows() -> None:
    thought = Pieces("<think>", "\\boxed{4}?", " No.", "</think>", "\n\n", "It is ", "\\boxed{5}")
    assert thought.carried("final_answer") == ["\n\n", "It is ", "\\boxed{5}", "END"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("x</think>so 5", "so 5"),  # the prompt has opened it
        ("[THINK]x[/THINK]so 5", "so 5"),
        ("<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>so 5", "so 5"),
        ("<think>x</think>y<think>z</think>so 5", "so 5"),
        ("so \\fboxed{5}", "\\fboxed{5}"),
        ("```python\nx\n```\nno:\n```python\ny\n```\n", "```python\ny\n```\n"),
        ("```python\nx", "```python\nx"),
        ("```\nx\n```\nso \\boxed{5}", "\\boxed{5}"),
    ],
)
def test_where_an_answer_begins(text: str, answer: str) -> None:
    start = final_answer_start(text)
    assert start is not None
    assert text[start:] == answer


@pytest.mark.parametrize("text", ["", "so 5", "<think>\\boxed{5}", "<think>x</think>", "x</think> \n"])
def test_without_an_answer_only_the_end_token_carries(text: str) -> None:
    assert final_answer_start(text) is None
    assert Pieces(text).carried("final_answer") == ["END"]


def test_a_response_that_was_cut_has_no_end_token_to_carry() -> None:
    assert TRIAL.carried("final_answer", TRIAL.ids[:3]) == []
    assert TRIAL.carried("after_last_false_start", TRIAL.ids[:5]) == ["4:", "28+12=40"]
    assert carrying_tokens([], TRIAL.decode, END, "final_answer", FALSE_STARTS) == ()
    assert TRIAL.carried("final_answer", [END]) == ["END"]


@given(
    before=st.text(st.sampled_from("aé你🙂 \n1"), max_size=12),
    after=st.text(st.sampled_from("bü好🙃 \n2"), max_size=12),
)
def test_characters_of_several_tokens_stay_whole(before: str, after: str) -> None:
    """Byte by byte, as the embedded models' tokenizers have it: exactly the tokens after the marker carry."""
    tokenizer = load_tokenizer("tiny:edits")
    decode: Any = tokenizer.decode
    head = tokenizer.encode(f"{before} wait", add_special_tokens=False)
    tail = tokenizer.encode(f" {after}", add_special_tokens=False)
    flags = carrying_tokens([*head, *tail], decode, END, "after_last_false_start", ["wait"])
    assert flags == (False,) * len(head) + (True,) * len(tail)
