"""Find the program in a response: the last fenced block of the right language.

Fences are those of CommonMark (https://spec.commonmark.org, fenced code blocks), also behind a list's marker.
"""

import re

# Each part takes all that it can, so that no line is tried in more than one way.
_FENCE = re.compile(
    r"(?P<indent>[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*)(?P<fence>`+|~+)(?P<info>.*)", re.DOTALL
)
_LANGUAGE = re.compile(r"[ \t]*\{?[ \t]*\.?(?P<name>[^\s{},:=]*)")
"""`python`, `python title="x"`, `{python}`, `{.python}`, `python:main.py`."""

SHORTEST_FENCE = 3
DEEPEST_CLOSING = 3
"""By how many spaces a closing fence may be indented further than the opening one."""

LANGUAGE_NAMES = {
    "python": frozenset({"python", "python3", "py", "py3", "pypy", "pypy3"}),
    "cpp": frozenset({"cpp", "c++", "cxx", "cc", "c++11", "c++14", "c++17", "c++20", "cpp17", "cpp20"}),
}
"""What stands behind the opening fence, in lower case."""


def last_program(response: str, language: str) -> str | None:
    """The content of the last closed block of a language (`python` or `cpp`); None if there is none.

    A block without a language counts if no block names the right one. If the last fence of the response is
    never closed, the result is None: the program was cut, or given up.
    """
    named, unnamed = None, None
    opened: re.Match[str] | None = None
    lines: list[str] = []
    for line in response.split("\n"):
        fence = _fence(line)
        if opened is None:
            if fence is not None:
                opened, lines = fence, []
            continue
        if fence is not None and _closes(fence, opened):
            content = "\n".join(lines) + "\n"
            if _language(opened) in LANGUAGE_NAMES[language]:
                named = content
            elif not opened["info"]:
                unnamed = content
            opened = None
            continue
        indent = len(opened["indent"])
        lines.append(line[indent:] if not line[:indent].strip() else line)
    if opened is not None:
        return None
    return unnamed if named is None else named


def _fence(line: str) -> re.Match[str] | None:
    found = _FENCE.fullmatch(line.rstrip())
    if found is None or len(found["fence"]) < SHORTEST_FENCE:
        return None
    inline = found["fence"].startswith("`") and "`" in found["info"]
    return None if inline else found


def _language(opened: re.Match[str]) -> str:
    found = _LANGUAGE.match(opened["info"])
    return found["name"].lower() if found else ""


def _closes(fence: re.Match[str], opened: re.Match[str]) -> bool:
    indent = fence["indent"]
    return (
        not fence["info"]
        and not indent.strip()
        and len(indent.expandtabs(4)) <= len(opened["indent"].expandtabs(4)) + DEEPEST_CLOSING
        and fence["fence"].startswith(opened["fence"])
    )
