"""The judge and the program that it asks, as two processes that talk."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdzero.verify import harness

FOLDER = Path(harness.__file__).parent
DOUBLE = "def double(x):\n    return 2 * x\n"

Judged = Callable[..., tuple[str, str]]


@pytest.fixture
def judged(tmp_path: Path) -> Judged:
    """Run a program on tests, as the sandbox would: (outcome, detail) of the judge's finding."""

    def run(program: str, *, seconds: float = 10.0, **tests: Any) -> tuple[str, str]:
        (tmp_path / "main.py").write_text(program, encoding="utf-8")
        data = {"call_seconds": seconds, "tolerance": None, "preamble": "", **tests}
        (tmp_path / "tests.json").write_text(json.dumps(data))
        to_program, from_judge = os.pipe()
        to_judge, from_program = os.pipe()
        python = [sys.executable, "-I"]
        host = subprocess.Popen(
            [*python, FOLDER / "host.py", tmp_path / "main.py"],
            stdin=to_program,
            stdout=from_program,
            stderr=subprocess.DEVNULL,
        )
        judge = subprocess.Popen(
            [*python, FOLDER / "judge.py", tmp_path / "tests.json"],
            stdin=to_judge,
            stdout=from_judge,
            stderr=subprocess.PIPE,
        )
        for descriptor in (to_program, from_judge, to_judge, from_program):
            os.close(descriptor)
        try:
            _, told = judge.communicate(timeout=30)
        finally:
            judge.kill()
            host.kill()
            host.wait()
        (line,) = told.splitlines()
        finding = json.loads(line)
        assert judge.returncode == 0
        return finding["outcome"], finding["detail"]

    return run


@pytest.fixture
def called(judged: Judged) -> Judged:
    """Call `entry` of a program once; pairs of (arguments, expected) are the cases."""

    def run(program: str, entry: str, *cases: tuple[list[Any], Any], **more: Any) -> tuple[str, str]:
        listed = [{"arguments": arguments, "expected": expected} for arguments, expected in cases]
        return judged(program, kind="calls", entry=entry, cases=listed, **more)

    return run


@pytest.fixture
def asserted(judged: Judged) -> Judged:
    """Run the code of tests against a program whose functions are `names`."""

    def run(program: str, code: str, *names: str, **more: Any) -> tuple[str, str]:
        return judged(program, kind="assertions", code=code, names=list(names), **more)

    return run


# ---- calls ----


def test_calls_in_order_until_one_is_wrong(called: Judged) -> None:
    assert called(DOUBLE, "double", ([1], 2), (["a"], "aa"), ([[1]], [1, 1])) == ("passed", "")
    outcome, detail = called(DOUBLE, "double", ([1], 2), ([2], 5), ([3], 7))
    assert outcome == "failed"
    assert detail == "call 2 returned 4"


def test_state_of_a_program_lasts_and_a_method_gets_a_new_object(called: Judged) -> None:
    counting = "n = 0\ndef count():\n    global n\n    n += 1\n    return n\n"
    assert called(counting, "count", ([], 1), ([], 2))[0] == "passed"
    held = (
        "class Solution:\n    def __init__(self):\n        self.n = 0\n"
        "    def count(self, step):\n        self.n += step\n        return self.n\n"
    )
    assert called(held, "Solution.count", ([1], 1), ([2], 2))[0] == "passed"


def test_tolerance_is_for_calls(called: Judged) -> None:
    third = "def third(x):\n    return x / 3 + 1e-9\n"
    assert called(third, "third", ([1], 1 / 3))[0] == "failed"
    assert called(third, "third", ([1], 1 / 3), tolerance=1e-6)[0] == "passed"
    assert called("def f():\n    return 5\n", "f", ([], math.inf), tolerance=1e-6)[0] == "failed"


@pytest.mark.parametrize(
    ("program", "outcome", "detail"),
    [
        ("def other():\n    pass\n", "missing", "double"),
        ("double = None\n", "raised", "TypeError: 'NoneType' object is not callable"),
        ("def double():\n    pass\n", "raised", "TypeError: double() takes 0 positional arguments"),
        ("def double(x)\n", "loading", "SyntaxError expected ':'"),
        ("import nothing_of_this_name\n", "loading", "ModuleNotFoundError No module"),
        ("input()\n", "loading", "EOFError"),
        ("raise SystemExit(0)\n", "loading", "SystemExit 0"),
        ("import os\nos._exit(0)\n", "gone", ""),
        ("def double(x):\n    import os\n    os._exit(0)\n", "gone", ""),
        ("def double(x):\n    raise SystemExit(0)\n", "raised", "RuntimeError: SystemExit: 0"),
        ("def double(x):\n    raise ValueError('no ' + str(x))\n", "raised", "ValueError: no 1"),
        ("def double(x):\n    return double(x)\n", "raised", "RecursionError: maximum"),
        ("def double(x):\n    return [double]\n", "failed", "call 1 returned [<function>]"),
        ("def double(x):\n    a = []\n    a.append(a)\n    return a\n", "raised", "RecursionError"),
        ("def double(x):\n    yield 2\n", "failed", "call 1 returned <"),
        ("def double(x):\n    print(2)\n", "failed", "call 1 returned None"),
        ("class Own(Exception): pass\ndef double(x):\n    raise Own(x)\n", "raised", "RuntimeError: Own: 1"),
    ],
)
def test_how_a_call_can_end(called: Judged, program: str, outcome: str, detail: str) -> None:
    told = called(program, "double", ([1], 2))
    assert told[0] == outcome
    assert told[1].startswith(detail)


def test_a_call_that_takes_too_long_is_late(called: Judged) -> None:
    began = time.monotonic()
    program = "def f(x):\n    while x:\n        pass\n    return 0\n"
    assert called(program, "f", ([0], 0), ([1], 0), seconds=0.7) == ("late", "")
    assert time.monotonic() - began < 10
    # Nor does it help not to read what is asked.
    deaf = "import time\ntime.sleep(60)\ndef f(x):\n    return 0\n"
    assert called(deaf, "f", (["x" * 1_000_000], 0), seconds=0.7) == ("late", "")


def test_large_arguments_and_values_cross(called: Judged) -> None:
    many = list(range(200_000))
    assert called("def f(x):\n    return x[::-1]\n", "f", ([many], many[::-1]))[0] == "passed"
    assert called("def f(n):\n    return 10 ** n\n", "f", ([5000], None))[0] == "failed"
    assert called("def f(n):\n    return 10 ** n == 10 ** 5000\n", "f", ([5000], True))[0] == "passed"


def test_a_program_may_write_and_read_what_it_likes(called: Judged) -> None:
    program = (
        "import sys\nprint('loading', flush=True)\n"
        "def double(x):\n    print('x' * 100_000, flush=True)\n    sys.stderr.write('y')\n"
        "    assert sys.stdin.read() == ''\n    return 2 * x\n"
    )
    assert called(program, "double", ([1], 2), ([2], 4)) == ("passed", "")


@pytest.mark.parametrize(
    ("module", "value"),
    [
        ("from __future__ import annotations\nfrom dataclasses import dataclass\n", "Point(x).x"),
        ("from dataclasses import dataclass\n", "Point(x).x"),
    ],
)
def test_a_program_finds_itself_as_a_module(called: Judged, module: str, value: str) -> None:
    # Data classes with postponed annotations look their own module up.
    program = f"{module}@dataclass\nclass Point:\n    x: int\ndef f(x):\n    return {value}\n"
    assert called(program, "f", ([1], 1)) == ("passed", "")


def test_a_program_is_no_main_program(called: Judged) -> None:
    assert called(f"{DOUBLE}if __name__ == '__main__':\n    raise SystemExit(1)\n", "double", ([1], 2)) == (
        "passed",
        "",
    )


FORGED = """
import json, os
def f(x):
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, {reply!r})
        except OSError:
            pass
    {then}
"""


@pytest.mark.parametrize(
    "reply",
    [
        b"nonsense\n",
        b'"value"\n',
        b'["value"]\n',
        b"5\n",
        b"{}\n",
        b'{"value": {}}\n',
        b'{"value": {"~": "decimal", "of": "one"}}\n',
        b'{"value": {"~": "fraction", "of": "1/0"}}\n',
        b'{"value": {"~": "set", "of": [[1]]}}\n',
        b"[" * 100_000 + b"\n",
        b'{"outcome": "passed", "detail": ""}\n',
        b'{"value": 2}\n{"value": 3}\n',  # right, but the second before it was asked for
        b"\xff\xfe\n",
    ],
)
def test_a_forged_reply_is_only_a_wrong_value(called: Judged, reply: bytes) -> None:
    told = called(FORGED.format(reply=reply, then="os._exit(0)"), "f", ([1], 2), ([2], 3))
    assert told[0] == "failed"


FLOOD = """
import os
def f(x):
    written = []
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"x")
            written.append(descriptor)
        except OSError:
            pass
    while True:
        os.write(written[0], b"x" * 1_000_000)
"""


def test_a_reply_without_an_end_is_given_up(called: Judged) -> None:
    assert called(FLOOD, "f", ([1], 2)) == ("failed", "a reply that is too long")


# ---- assertions ----


def test_assertions_call_the_functions_of_the_program(asserted: Judged) -> None:
    code = (
        "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(x=[1]) == [1, 1]\n"
        "check(double)\nassert double.__name__ == 'double'\n"
    )
    assert asserted(DOUBLE, code, "double") == ("passed", "")
    assert asserted("def double(x):\n    return x\n", code, "double")[0] == "failed"


ARRIVING = [
    ("(1, 2)", "{0} == (1, 2) and {0} != [1, 2]"),
    ("{1, 2}", "{0} == {{2, 1}} and isinstance({0}, set)"),
    ("{1: (2,)}", "{0} == {{1: (2,)}} and list({0}) == [1]"),
    ("{frozenset({1}): 2}", "{0} == {{frozenset({{1}}): 2}}"),
    ("{(frozenset({1}),): 2}", "{0} == {{(frozenset({{1}}),): 2}}"),
    ("float('nan')", "{0} != {0}"),
    ("iter([1, 2])", "list({0}) == [1, 2]"),
    ("range(3)", "{0} == range(3)"),
    ("b'x'", "{0} == b'x'"),
    ("1j", "{0} == 1j"),
    ("True", "{0} is True"),
    ("None", "{0} is None"),
    ("10 ** 5000", "{0} == 10 ** 5000"),
]


def test_values_arrive_as_they_were(asserted: Judged) -> None:
    names = [f"f{number}" for number in range(len(ARRIVING))]
    pairs = list(zip(names, ARRIVING, strict=True))
    program = "".join(f"def {name}():\n    return {value}\n" for name, (value, _) in pairs)
    code = "".join(f"assert {test.format(f'{name}()')}, {value!r}\n" for name, (value, test) in pairs)
    assert asserted(program, code, *names) == ("passed", "")


def test_what_a_program_raises_can_be_expected(asserted: Judged) -> None:
    program = "def f(x):\n    return {}[x] if x else 1 / x\n"
    code = (
        "for value, kind in ((0, ZeroDivisionError), (1, KeyError)):\n    try:\n        f(value)\n"
        "    except kind:\n        pass\n    else:\n        assert False\n"
    )
    assert asserted(program, code, "f") == ("passed", "")
    assert asserted("def f(x):\n    return 1\n", code, "f")[0] == "failed"
    assert asserted(program, "f(0)", "f") == ("raised", "ZeroDivisionError: division by zero")


def test_the_preamble_stands_before_the_tests_and_not_in_the_program(asserted: Judged) -> None:
    code = "assert math.isclose(double(near), 2)"
    assert asserted(DOUBLE, code, "double", preamble="import math\nnear = 1.0") == ("passed", "")
    peeping = "def double(x):\n    return 2 * x if 'near' not in globals() else 0\n"
    assert asserted(peeping, code, "double", preamble="import math\nnear = 1.0") == ("passed", "")


@pytest.mark.parametrize(
    ("code", "preamble", "detail"),
    [
        ("assert double(1", "", "SyntaxError: "),
        ("pass", "import nothing_of_this_name", "ModuleNotFoundError: "),
        ("double(object())", "", "a value of type object cannot be sent"),
        ("double(lambda x: x)", "", "a value of type function cannot be sent"),
    ],
)
def test_tests_that_cannot_be_used_are_told(asserted: Judged, code: str, preamble: str, detail: str) -> None:
    outcome, told = asserted(DOUBLE, code, "double", preamble=preamble)
    assert outcome == "unusable"
    assert told.startswith(detail)


def test_a_strange_value_given_back_is_the_programs_fault(asserted: Judged) -> None:
    # `unusable` would become an `error`, which is not counted: a way out for a program that is wrong.
    program = "def pack(x):\n    return object()\ndef unpack(x):\n    return 1\n"
    assert asserted(program, "assert unpack(pack(1)) == 1", "pack", "unpack")[0] == "failed"


def test_an_iterator_can_be_given_back(asserted: Judged) -> None:
    program = "def pack(x):\n    yield x\ndef unpack(x):\n    return next(x)\n"
    assert asserted(program, "assert unpack(pack(1)) == 1", "pack", "unpack") == ("passed", "")


@pytest.mark.parametrize(
    "code",
    [
        "try:\n    double(1)\nexcept Exception:\n    pass\n",
        "try:\n    double(1)\nexcept:\n    pass\n",
        "try:\n    double(1)\nexcept BaseException:\n    pass\n",
        "def f():\n    try:\n        double(1)\n    finally:\n        return\nf()\n",
    ],
)
def test_tests_do_not_hide_that_the_program_is_gone(asserted: Judged, code: str) -> None:
    assert asserted("def double(x):\n    import os\n    os._exit(0)\n", code, "double")[0] == "gone"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("StopIteration", "assert all(map(double, [1, 2]))"),
        ("StopIteration", "list(map(double, [1]))"),
        ("StopAsyncIteration", "assert [double(x) for x in [1]] == [2]"),
        ("GeneratorExit", "assert all(map(double, [1, 2]))"),
        ("ExceptionGroup('x', [ValueError()])", "double(1)"),
    ],
)
def test_no_exception_of_the_program_ends_a_loop_of_the_tests(asserted: Judged, kind: str, code: str) -> None:
    outcome, detail = asserted(f"def double(x):\n    raise {kind}\n", code, "double")
    assert outcome == "raised"
    assert detail.startswith(f"RuntimeError: {kind.partition('(')[0]}: ")


PEEP = """
import sys
def f(x):
    seen, frame = [], sys._getframe()
    while frame:
        seen.append(repr(frame.f_locals) + repr(frame.f_globals))
        frame = frame.f_back
    return 4711 if x == 2 else str(4700 + 11) in str(seen) + str(sys.argv)
"""


def test_what_is_expected_is_not_in_reach_of_the_program(called: Judged) -> None:
    assert called(PEEP, "f", ([1], False), ([2], 4711)) == ("passed", "")
    assert called(PEEP, "f", ([[1, 4711]], True)) == ("passed", ""), "arguments can be seen"


def test_tests_that_write_and_exit_do_not_pass(asserted: Judged) -> None:
    assert asserted(DOUBLE, "print('x' * 100_000)\nassert double(1) == 2", "double") == ("passed", "")
    outcome, _ = asserted(DOUBLE, "raise SystemExit(0)\nassert double(1) == 3", "double")
    assert outcome == "failed"


@pytest.mark.parametrize(
    "body",
    [
        "raise type('Bad', (ValueError,), {})('x')",
        "import json; return json.loads('{')",
        "return b'\\xff'.decode()",
        "return 'é'.encode('ascii')",
    ],
)
def test_a_kind_of_an_exception_is_that_exception(asserted: Judged, body: str) -> None:
    code = "try:\n    f(1)\nexcept {}:\n    pass\nelse:\n    assert False\n"
    assert asserted(f"def f(x):\n    {body}\n", code.format("ValueError"), "f") == ("passed", "")
    outcome, detail = asserted(f"def f(x):\n    {body}\n", code.format("LookupError"), "f")
    assert outcome == "raised"
    assert detail.startswith("ValueError: ")


def test_an_assertion_after_an_expected_exception_is_the_tests_own(asserted: Judged) -> None:
    code = "try:\n    f(1)\nexcept ValueError:\n    pass\nassert False, 'too late'\n"
    program = "def f(x):\n    raise ValueError(x)\n"
    assert asserted(program, code, "f") == ("failed", "AssertionError: too late")


def test_a_program_is_the_main_module(tmp_path: Path) -> None:
    run = Path(harness.__file__).with_name("run.py")
    program = tmp_path / "main.py"
    program.write_bytes(
        b"\xef\xbb\xbfimport sys\nprint(sorted(name for name in globals() if name[0] != '_'), __name__)\n"
        b"print(sys.argv == [__file__], __import__('__main__').__dict__ is globals())\nexit(3)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", run, program], capture_output=True, text=True)
    assert done.stdout == "['sys'] __main__\nTrue True\n"
    assert done.returncode == 3
