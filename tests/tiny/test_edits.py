"""The world of edits: operations worked by hand, and programs read here as Python runs them."""

import io
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdzero.questions.programs import StdioTests, metadata_of, task_of
from sdzero.tiny.edits import (
    HEAD,
    KINDS,
    OPERATIONS,
    PROBLEMS_PER_KIND,
    SPECIAL,
    TAIL,
    TEST_WORDS,
    Step,
    all_problems,
    edited,
    expected_output,
    is_right,
    make_problem,
    output_of,
    post_training_problems,
    problems,
    program_of,
    solution,
    task_of_problem,
)
from sdzero.tiny.problem import Problem, is_pretraining

INPUT = "\n".join(TEST_WORDS)

MEANINGS = {
    ("drop", 3): "defghij",
    ("add", 3): "abcdefghij3",
    ("reverse", 0): "jihgfedcba",
    ("last", 3): "hij",
    ("chop", 3): "abcdefg",
    ("rotate", 3): "defghijabc",
    ("every", 3): "adgj",
    ("from", 3): "cdefghij",
    ("flip", 3): "cbadefghij",
    ("first", 3): "abc",
    ("cut", 3): "abdefghij",
    ("double", 3): "abcabcdefghij",
    ("swap", 3): "hijdefgabc",
}
"""What each operation makes of `abcdefghij`."""

LINES = {
    ("last", 3): ("s[-3:]", "s[3:]"),
    ("chop", 3): ("s[:-3]", "s[:3]"),
    ("rotate", 3): ("s[3:]+s[:3]", "s[-3:]+s[:-3]"),
    ("every", 3): ("s[::3]", "s[3::]"),
    ("from", 3): ("s[2:]", "s[3:]"),
    ("flip", 3): ("s[:3][::-1]+s[3:]", "s[:3]+s[3:][::-1]"),
    ("first", 3): ("s[:3]", "s[3:]"),
    ("cut", 3): ("s[:2]+s[3:]", "s[:3]+s[4:]"),
    ("double", 3): ("s[:3]+s", "s+s[:3]"),
    ("swap", 3): ("s[-3:]+s[3:-3]+s[:3]", "s[-3:]+s[:3]"),
}
"""The right line and the misconception's."""


def program(*lines: str) -> str:
    return HEAD + "".join(f"\n s={line}" for line in lines) + TAIL


def run_by_python(text: str) -> str | None:
    """What a program of this world (and nothing else may come here) prints; None if it fails."""
    code = text.removeprefix("```python\n").removesuffix("\n```")
    printed: list[str] = []
    names = {"open": lambda _: io.StringIO(INPUT), "print": lambda s: printed.append(f"{s}\n")}
    try:
        exec(code, names)
    except (SyntaxError, ValueError):
        return None
    return "".join(printed)


@pytest.mark.parametrize("step", MEANINGS)
def test_operations_worked_by_hand(step: Step) -> None:
    assert edited("abcdefghij", (step,)) == MEANINGS[step]


@pytest.mark.parametrize("step", LINES)
def test_lines_of_a_program_worked_by_hand(step: Step) -> None:
    steps = (("reverse", 0), step, ("add", 7))
    assert program_of(steps) == program("s[::-1]", LINES[step][0], "s+'7'")
    assert program_of(steps, wrong=True) == program("s[::-1]", LINES[step][1], "s+'7'")


def test_every_operation_is_worked_by_hand() -> None:
    assert {name for name, _ in MEANINGS} == set(OPERATIONS)
    assert {name for name, _ in LINES} == set(KINDS) == set(SPECIAL)


def test_a_question_and_its_answer() -> None:
    problem = make_problem("last", (("reverse", 0), ("drop", 3), ("last", 4)))
    assert problem.text == "Edit each word in Python: reverse; drop 3; last 4"
    assert solution(problem) == problem.answer
    assert solution(problem) == (
        "```python\nfor s in open(0).read().split():\n s=s[::-1]\n s=s[3:]\n s=s[-4:]\n print(s)\n```"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_program_is_right_and_a_misconception_wrong_on_every_word(kind: str) -> None:
    for problem in all_problems(kind):
        right, wrong = solution(problem), solution(problem, right=False)
        assert is_right(problem, right)
        assert not is_right(problem, wrong)
        printed, misprinted = output_of(right), output_of(wrong)
        assert printed is not None
        assert misprinted is not None
        assert len(printed.split()) == len(TEST_WORDS), "no word is used up"
        pairs = zip(printed.splitlines(), misprinted.splitlines(), strict=True)
        assert all(one != other for one, other in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_python_prints_what_the_reference_and_the_reading_say(kind: str) -> None:
    for problem in problems(kind)[:200]:
        right, wrong = solution(problem), solution(problem, right=False)
        assert run_by_python(right) == output_of(right) == expected_output(problem.operands)
        assert run_by_python(wrong) == output_of(wrong) != expected_output(problem.operands)


def test_a_program_runs_on_its_own() -> None:
    problem = problems("rotate")[0]
    code = solution(problem).removeprefix("```python\n").removesuffix("\n```")
    (case,) = stdio(problem).cases
    result = subprocess.run(
        [sys.executable, "-c", code], input=case.input, capture_output=True, text=True, check=True
    )
    assert result.stdout == case.output


numbers = st.sampled_from(["", "0", "1", "3", "9", "12", "60", "-1", "-4", "-0", "03", "-60"])
slices = st.one_of(
    st.tuples(numbers, numbers).map(lambda ends: f"[{ends[0]}:{ends[1]}]"),
    st.tuples(numbers, numbers, numbers).map(lambda ends: f"[{ends[0]}:{ends[1]}:{ends[2]}]"),
)
terms = st.one_of(
    st.integers(0, 9).map(lambda digit: f"'{digit}'"),
    st.lists(slices, max_size=2).map(lambda own: "s" + "".join(own)),
)
sums = st.lists(terms, min_size=1, max_size=3).map("+".join)


@given(st.lists(sums, max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_program_of_sums_and_slices_is_read_as_python_runs_it(lines: list[str]) -> None:
    text = program(*lines)
    printed = run_by_python(text)
    if printed is None or max(map(len, printed.splitlines())) < 60:
        assert output_of(text) == printed
    else:
        assert output_of(text) in (printed, None), "words that grow too long are given up"


LAST_FOUR = make_problem("last", (("reverse", 0), ("drop", 3), ("last", 4)))


@pytest.mark.parametrize(
    "lines",
    [
        ("s[::-1]", "s[3:]", "s[-4:]"),
        ("s[:-3]", "s[:4]", "s[::-1]"),
        ("s[::-1][3:][-4:]",),
        ("s[3::-1]",),
        ("s+'7'", "s[:4][::-1]"),
    ],
)
def test_other_programs_that_do_the_same_are_right(lines: tuple[str, ...]) -> None:
    assert run_by_python(program(*lines)) == expected_output(LAST_FOUR.operands)
    assert is_right(LAST_FOUR, program(*lines))


RIGHT = solution(LAST_FOUR)


@pytest.mark.parametrize(
    "text",
    [
        "",
        RIGHT.removeprefix("```python\n"),
        RIGHT.removesuffix("\n```"),
        RIGHT.replace(" print(s)", ""),
        RIGHT.replace("split()", "splitlines()"),
        RIGHT.replace("s[3:]", "s[3:"),
        RIGHT.replace("s[3:]", "s[03:]"),
        RIGHT.replace("s[3:]", "s[::0]"),
        RIGHT.replace("s[3:]", "t[3:]"),
        RIGHT.replace("s[3:]", "s[3]"),
        RIGHT.replace(" s=s[3:]", "s=s[3:]"),
        RIGHT.replace("s[3:]", ""),
        RIGHT.replace(" s=s[3:]", ""),
        RIGHT.replace("():\n", "(): pass\n"),
        RIGHT + "\n\n```python\nprint(1)\n```",
        RIGHT + "\n```",
        RIGHT + "python",
        "So: " + RIGHT,
        "```python\n" + RIGHT,
        program(*["s+s"] * 60),
    ],
)
def test_what_is_not_understood_has_no_output_and_is_wrong(text: str) -> None:
    assert output_of(text) is None
    assert not is_right(LAST_FOUR, text)


def test_the_last_block_counts() -> None:
    wrong = solution(LAST_FOUR, right=False)
    assert is_right(LAST_FOUR, f"{wrong}\n\nNo.\n\n{RIGHT}")
    assert not is_right(LAST_FOUR, f"{RIGHT}\n\nNo.\n\n{wrong}")
    assert is_right(LAST_FOUR, f"Here it is:\n\n{RIGHT}\n\nDone.")
    assert not is_right(LAST_FOUR, f"{RIGHT}\n\nNo.\n\n{HEAD}"), "the last one was given up"


@pytest.mark.parametrize("steps", [(("last", 3), ("drop", 3)), (("every", 9), ("drop", 9))])
def test_steps_that_use_up_a_word_have_no_output(steps: tuple[Step, ...]) -> None:
    assert expected_output(steps) is None


def test_the_letters_of_a_test_word_are_all_different() -> None:
    for word in TEST_WORDS:
        assert word.isascii()
        assert word.isalpha()
        assert len(set(word)) == len(word) > 2 * 9 + 2 * 9


def test_problems_are_many_and_each_has_the_one_operation_of_its_kind() -> None:
    for kind in KINDS:
        own = problems(kind)
        assert len(own) == PROBLEMS_PER_KIND
        for problem in own:
            assert [name for name, _ in problem.operands if name in KINDS] == [kind]
            assert len(problem.operands) == 3
    assert PROBLEMS_PER_KIND * len(KINDS) >= 30_000


def stdio(problem: Problem) -> StdioTests:
    tests = task_of_problem(problem).tests
    assert isinstance(tests, StdioTests)
    return tests


def test_a_task_tests_on_the_words_and_is_kept_as_json() -> None:
    for problem in post_training_problems()[: len(KINDS)]:
        assert not is_pretraining(problem.text)
        task = task_of_problem(problem)
        assert task.language == "python"
        (case,) = stdio(problem).cases
        assert case.input.split() == list(TEST_WORDS)
        assert case.output == output_of(solution(problem))
        assert task_of(json.loads(json.dumps(metadata_of(task))), "here") == task
