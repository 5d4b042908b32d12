"""Find the content of a `\\boxed{...}` in a response."""

import re

_BOX = re.compile(r"\\f?boxed\s*\{")
_BRACE_OR_ESCAPE = re.compile(r"\\.|[{}]", re.DOTALL)


def has_box(text: str) -> bool:
    """Whether the text opens a `\\boxed{` (or `\\fboxed{`) anywhere, closed or not."""
    return _BOX.search(text) is not None


def last_box_start(text: str) -> int | None:
    """Where the last `\\boxed{` (or `\\fboxed{`) of a text begins, closed or not; None if there is none."""
    starts = [box.start() for box in _BOX.finditer(text)]
    return starts[-1] if starts else None


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}`, without outer spaces; None if there is none.

    Braces are balanced; escaped ones (`\\{`, `\\}`) do not count. If the last box is never closed, the
    result is None: an earlier box was perhaps given up. In nested boxes the innermost last one counts.
    """
    box = None
    for box in _BOX.finditer(text):  # noqa: B007
        pass
    if box is None:
        return None
    depth = 1
    for token in _BRACE_OR_ESCAPE.finditer(text, box.end()):
        if token.group() == "{":
            depth += 1
        elif token.group() == "}":
            depth -= 1
            if depth == 0:
                return text[box.end() : token.start()].strip()
    return None
