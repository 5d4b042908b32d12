"""Compare what a program wrote with what it should have written, token by token."""

import math
import re

# Narrower than what `float` reads (1_000, other scripts' digits).
_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|infinity)", re.ASCII | re.IGNORECASE)


def difference(expected: str, given: str, tolerance: float | None = None) -> str | None:
    """None if the outputs are the same; else where they first differ, in words.

    Tokens are what white space separates. With a tolerance, tokens that are both numbers may differ by that
    much, absolutely or relative to the expected one.
    """
    wanted, got = expected.split(), given.split()
    for number, (right, own) in enumerate(zip(wanted, got, strict=False), start=1):
        if right != own and not _close(right, own, tolerance):
            return f"token {number} is {own[:60]!r}, not {right[:60]!r}"
    if len(wanted) != len(got):
        return f"{len(got)} tokens, not {len(wanted)}"
    return None


def _close(right: str, own: str, tolerance: float | None) -> bool:
    if tolerance is None or not (_NUMBER.fullmatch(right) and _NUMBER.fullmatch(own)):
        return False
    wanted, got = float(right), float(own)
    if not (math.isfinite(wanted) and math.isfinite(got)):
        # A number too large for a float is not infinite, and not close to another such number.
        return wanted == got and all("inf" in token.lower() for token in (right, own))
    return abs(wanted - got) <= tolerance * max(1.0, abs(wanted))
