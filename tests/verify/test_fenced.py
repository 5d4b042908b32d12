"""Finding the last program in a response."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdzero.verify.fenced import LANGUAGE_NAMES, last_program

FENCED_DOCSTRING = '''\
def double(x):
    """Twice a number.

    ```
    double(2)
    ```
    """
    return 2 * x
'''


def in_fence(content: str, opening: str = "```python", closing: str = "```") -> str:
    return f"Here it is:\n\n{opening}\n{content}{closing}\nDone."


@pytest.mark.parametrize(
    ("response", "program"),
    [
        # Which block.
        ("print(1)", None),
        ("```python\nprint(1)\n```", "print(1)\n"),
        ("```python\na\n```\nBetter:\n```python\nb\n```\n", "b\n"),
        ("```python\na\n```\nIt prints:\n```\n1\n```", "a\n"),
        ("```\na\n```\n```cpp\nb\n```", "a\n"),
        ("```\na\n```\n```\nb\n```", "b\n"),
        ("```cpp\na\n```", None),
        ("```text\na\n```", None),
        ("```pythonista\na\n```", None),
        ("```python\n```", "\n"),
        # Blocks that are never closed.
        ("```python", None),
        ("```python\n", None),
        ("```python\na\n", None),
        ("```python\na\n```\nBetter:\n```python\nb\n", None),
        ("```python\na\n```\nIt prints:\n```\n1\n", None),
        # The end of the text closes a fence's line, and spaces behind a fence do not count.
        ("```python\na\n```   ", "a\n"),
        ("```python  \na\n```\t\n", "a\n"),
        # Lengths and kinds of fences.
        ("````python\n```\na\n```\n````", "```\na\n```\n"),
        ("```python\na\n`````", "a\n"),
        ("~~~python\na\n~~~", "a\n"),
        ("~~~python\n```\na\n~~~", "```\na\n"),
        ("```python\n~~~\na\n```", "~~~\na\n"),
        ("````python\na\n```\n", None),
        ("``python\na\n``", None),
        # A fence that names something closes nothing.
        ("```python\n```python\na\n```", "```python\na\n"),
        ("```python\na\n``` {.text}\n```", "a\n``` {.text}\n"),
        # Code between back-ticks on one line is no fence.
        ("```print(1)```\n```python\na\n```", "a\n"),
        ("Use ```python\nprint(1)\n```", None),
        # Info strings.
        ('```python title="main.py"\na\n```', "a\n"),
        ("``` python\na\n```", "a\n"),
        ("```python {1,3}\na\n```", "a\n"),
        ("```python{1,3}\na\n```", "a\n"),
        ("```{python}\na\n```", "a\n"),
        ("```{.python .numberLines}\na\n```", "a\n"),
        ("```{python}\na\n```\n```\nb\n```", "a\n"),
        ("```{r}\na\n```", None),
    ],
)
def test_examples(response: str, program: str | None) -> None:
    assert last_program(response, "python") == program


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("1. First:\n\n   ```python\n   if x:\n       a\n\n   b\n   ```\n", "if x:\n    a\n\nb\n"),
        ("- It is\n\t```python\n\ta\n\t```\n", "a\n"),
        ("  ```python\n  a\n```", "a\n"),
        ("```python\na\n  ```", "a\n"),
        ("  ```python\na\n   b\n  ```", "a\n b\n"),
        ("1. ```python\n   a\n     b\n   ```\n", "a\n  b\n"),
        ("- ```python\n  a\n  ```\n\nSo:\n\n```python\nb\n```", "b\n"),
    ],
)
def test_blocks_in_lists_lose_the_indentation_of_their_fence(response: str, program: str) -> None:
    assert last_program(response, "python") == program


def test_a_fence_in_a_docstring_does_not_close_the_block() -> None:
    # CommonMark: a closing fence is indented by at most three spaces.
    assert last_program(in_fence(FENCED_DOCSTRING), "python") == FENCED_DOCSTRING


@pytest.mark.parametrize("language", sorted(LANGUAGE_NAMES))
def test_every_name_of_a_language_in_any_case(language: str) -> None:
    others = sorted(set(LANGUAGE_NAMES) - {language})
    for name in LANGUAGE_NAMES[language]:
        for written in (name, name.upper(), name.capitalize(), f"{{{name}}}"):
            response = in_fence("a\n", f"```{written}")
            assert last_program(response, language) == "a\n"
            assert [last_program(response, other) for other in others] == [None]


def test_each_language_has_its_own_last_block() -> None:
    response = "```cpp\na\n```\n```python\nb\n```\n```C++\nc\n```\n```\nd\n```"
    assert last_program(response, "python") == "b\n"
    assert last_program(response, "cpp") == "c\n"


def test_lines_may_end_as_on_windows() -> None:
    response = 'Here:\r\n```python\r\nif True:\r\n    text = """a\r\nb"""\r\n```\r\nDone.\r\n'
    program = last_program(response, "python")
    assert program is not None
    namespace: dict[str, object] = {}
    exec(compile(program, "program", "exec"), namespace)
    assert namespace["text"] == "a\nb"


_lines = st.lists(st.text(st.characters(exclude_characters="\n"), max_size=12), max_size=6)


@given(
    before=st.text(alphabet="ab .\n", max_size=20), lines=_lines, after=st.text(alphabet="c \n", max_size=9)
)
def test_what_stands_in_a_block_comes_back_whole(before: str, lines: list[str], after: str) -> None:
    content = "".join(f"{line}\n" for line in lines)
    longest = max((len(run) for run in re.findall("`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    response = f"{before}\n{fence}python\n{content}{fence}\n{after}"
    assert last_program(response, "python") == (content or "\n")


@given(st.text(alphabet="`~pycp+ {}\n\t-1.", max_size=60), st.sampled_from(["python", "cpp"]))
def test_any_text_is_read_without_failing(response: str, language: str) -> None:
    program = last_program(response, language)
    lines = {line.strip() for line in response.split("\n")} | {""}
    assert program is None or {line.strip() for line in program.split("\n")} <= lines


@pytest.mark.parametrize("line", ["```" + "a" * 40_000 + "`", "```" + " " * 40_000 + "`", "~" * 1_200 + "`"])
def test_a_long_line_takes_no_long_time(line: str) -> None:
    # A model that repeats itself writes such lines: a pattern that tries every split would not end.
    began = time.process_time()
    assert last_program(f"{line}\n```python\na\n```", "python") in ("a\n", None)
    assert time.process_time() - began < 1
