"""Text of models made harmless for a terminal: nothing in it moves the cursor, colours, or turns round."""

import unicodedata

NAMED = {"\n": "\u23ce", "\t": "\u21e5"}
"""Shown by a sign of their own."""
HIDDEN = {"Cc", "Cf", "Zl", "Zp"}
"""Control characters, format characters (among them those that change the direction of writing), line and
paragraph separators."""


def harmless(text: str) -> str:
    """The text with line ends and tabs as signs, and other characters that are no glyphs as `<U+001B>`."""
    return "".join(
        NAMED.get(one) or (_named(one) if unicodedata.category(one) in HIDDEN else one) for one in text
    )


def _named(character: str) -> str:
    return f"<U+{ord(character):04X}>"
