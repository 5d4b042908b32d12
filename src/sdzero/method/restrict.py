"""Which tokens of a response carry the divergence of phase 2.

The paper's loss (equation 5) is over every token of y. On responses with honest false starts that can teach
the student to skip them: the Reviser has read y and knows where it leads, the student does not. So the
divergence can be kept to a part of y, beyond the paper:

    all                      every token, the paper's
    after_last_false_start   what follows the last word that gives a try up; without one, every token
    final_answer             the final answer, and the end token; without an answer, the end token alone

The places are found in the decoded text and brought back to tokens by decoding prefixes of the very ids
that were sampled: nothing is encoded again. Imports no torch.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal

from sdzero.method.thinking import CLOSING, OPENING
from sdzero.verify.boxed import last_box_start

DivergenceOn = Literal["all", "after_last_false_start", "final_answer"]

_FENCE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})", re.MULTILINE)


def carrying_tokens(
    response_ids: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    end_token_id: int,
    on: DivergenceOn,
    markers: Sequence[str],
) -> tuple[bool, ...]:
    """For each token of y, the end token included, whether it carries the divergence.

    `decode` gives the text of ids, special tokens included. `markers` are the words that give a try up,
    as they are written (upper and lower case differ), found as whole words.
    """
    if on == "all":
        return (True,) * len(response_ids)
    ended = bool(response_ids) and response_ids[-1] == end_token_id
    body = list(response_ids[:-1] if ended else response_ids)
    text = decode(body)
    if on == "after_last_false_start":
        first = _tokens_of(text[: _end_of_last(markers, text)], body, decode)
    else:
        start = final_answer_start(text)
        # The token in which the answer's first character ends belongs to it.
        first = len(body) if start is None else max(0, _tokens_of(text[: start + 1], body, decode) - 1)
    return tuple(place >= first for place in range(len(body))) + (True,) * ended


def final_answer_start(text: str) -> int | None:
    r"""Where the final answer of a response begins; None without one.

    That is after the last mark that ends thinking. In a response without thinking it is the last
    `\boxed{`, or else the last block of code. Thinking that was begun and not ended has no answer.
    """
    closed = max((text.rfind(mark) + len(mark) for mark in CLOSING if mark in text), default=None)
    opened = max((text.rfind(mark) for mark in OPENING), default=-1)
    if closed is not None and closed > opened:
        return closed if text[closed:].strip() else None
    if opened >= 0:
        return None
    box = last_box_start(text)
    if box is not None:
        return box
    # Every second fence closes a block.
    fences = [found.start() for found in _FENCE.finditer(text)][::2]
    return fences[-1] if fences else None


def false_starts_in(text: str, markers: Sequence[str]) -> int:
    """How often one of the markers stands in a text, as a whole word."""
    return len(_pattern(markers).findall(text))


def _end_of_last(markers: Sequence[str], text: str) -> int:
    """Where the last of the markers ends; 0 without one."""
    return max((found.end() for found in _pattern(markers).finditer(text)), default=0)


def _pattern(markers: Sequence[str]) -> re.Pattern[str]:
    """Any of the markers; a longer one first, so that it counts once."""
    return re.compile("|".join(map(_whole_word, sorted(markers, key=len, reverse=True))))


def _whole_word(marker: str) -> str:
    """Matches a marker that no letter, digit or hyphen touches where it begins or ends with one itself;
    scripts that write no blanks between words have no such bounds."""
    before = "(?<![A-Za-z0-9-])" if re.match("[A-Za-z0-9]", marker) else ""
    after = "(?![A-Za-z0-9-])" if re.search("[A-Za-z0-9]$", marker) else ""
    return before + re.escape(marker) + after


def _tokens_of(start: str, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> int:
    """How many tokens it takes until the whole of `start`, the beginning of the text, is there.

    By bisection: with more tokens it is there too, since decoding keeps whole characters as they are.
    """
    few, many = 0, len(ids)
    while few < many:
        middle = (few + many) // 2
        if decode(ids[:middle]).startswith(start):
            many = middle
        else:
            few = middle + 1
    return few
