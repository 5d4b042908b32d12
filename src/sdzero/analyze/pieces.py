"""A response's tokens as pieces of text that, put side by side, are its text."""

from collections.abc import Callable, Sequence

CONTEXT = 6
"""Tokens before a token that it is decoded with: some tokenizers drop a space at the beginning of a text."""
UNFINISHED = "\ufffd"
"""What a decoder gives for a character of which only some bytes are there."""


def pieces(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """The text that each token adds. A token within a character adds nothing, the last one of it all of it.

    Bytes that never become a character stand as U+FFFD with the token where that is certain.
    """
    texts: list[str] = []
    waiting = 0
    for place in range(len(ids)):
        start = max(0, place - waiting - CONTEXT)
        before = decode(list(ids[start : place - waiting]))
        after = decode(list(ids[start : place + 1]))
        added = (
            after[len(before) :]
            if after.startswith(before)
            else decode(list(ids[place - waiting : place + 1]))
        )
        is_last = place == len(ids) - 1
        # No character has more than four bytes.
        if added.endswith(UNFINISHED) and waiting < 3 and not is_last:
            texts.append("")
            waiting += 1
        else:
            texts.append(added)
            waiting = 0
    return texts
