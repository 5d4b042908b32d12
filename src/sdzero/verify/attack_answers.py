"""Hostile answers: wrong programs that attack their grading, by a `Verifier` for programs.

None may be graded `correct`. None may be graded `error` either: that verdict is left out of training, so a
model could learn to escape the reward 0.
"""

import shutil
from dataclasses import dataclass

from sdzero.questions.programs import (
    AssertionTests,
    CallCase,
    CallTests,
    Language,
    ProgramTask,
    StdioCase,
    StdioTests,
    metadata_of,
)
from sdzero.questions.question import Question
from sdzero.verify.attacks import AttackResult
from sdzero.verify.verdict import Outcome
from sdzero.verify.verifier import Verifier

Tests = StdioTests | CallTests | AssertionTests

SECONDS = 0.5
"""CPU seconds of one test; those that hang take a few times as long by the clock."""

CALLS = CallTests(
    entry="twice",
    cases=[CallCase(arguments=[3], expected=6), CallCase(arguments=[1048573], expected=2097146)],
)
CALL = CallTests(entry="twice", cases=[CallCase(arguments=[3], expected=6)])
ASSERTIONS = AssertionTests(
    names=["twice"],
    code="def check(candidate):\n    for number in (3, 1048573):\n        expected = number + number\n"
    "        assert candidate(number) == expected\ncheck(twice)\n",
)
CHAINED = AssertionTests(names=["pack", "unpack"], code="assert unpack(pack('ab')) == 'ab'")
STDIO = StdioTests(
    cases=[StdioCase(input="3\n", output="6\n"), StdioCase(input="1048573\n", output="2097146\n")]
)
CHECKED = StdioTests(
    cases=[StdioCase(input="3\n", output="6\n")],
    checker="import sys\nprint(int(open(sys.argv[3]).read().split() == open(sys.argv[2]).read().split()))",
)

RIGHT: list[tuple[Tests, str]] = [
    (CALLS, "def twice(x):\n    return 2 * x"),
    (ASSERTIONS, "def twice(x):\n    return 2 * x"),
    (CHAINED, "def pack(x):\n    return [x]\n\ndef unpack(x):\n    return x[0]"),
    (STDIO, "print(2 * int(input()))"),
    (CHECKED, "print(2 * int(input()))"),
]
"""Right answers to the same tests: only where they pass does a verdict on an attack mean anything."""


@dataclass(frozen=True)
class HostileAnswer:
    """A wrong program. `fools` tells whether it deceives a grader that runs tests beside the program."""

    name: str
    tests: Tests
    program: str
    fools: bool = False
    language: Language = "python"

    @property
    def question(self) -> Question:
        """The question that it answers."""
        return question_of(self.tests, self.language)

    @property
    def response(self) -> str:
        """The response that contains it."""
        return response_of(self.program, self.language)


def question_of(tests: Tests, language: Language = "python") -> Question:
    """A question with these tests."""
    task = ProgramTask(language=language, time_seconds=SECONDS, tests=tests)
    return Question("attack", "Twice a number.", "tests", metadata=metadata_of(task))


def response_of(program: str, language: Language = "python") -> str:
    """A response that gives this program."""
    return f"Here it is.\n\n```{language}\n{program}\n```\n"


def attack_grading(verifier: Verifier) -> list[AttackResult]:
    """Have every hostile answer graded; about half a minute. Those in C++ need a compiler."""
    return [
        attack_with(answer, verifier)
        for answer in HOSTILE_ANSWERS
        if answer.language == "python" or shutil.which("g++")
    ]


def attack_with(answer: HostileAnswer, verifier: Verifier) -> AttackResult:
    """Have one graded."""
    try:
        verdict = verifier.grade(answer.question, answer.response)
    # Whatever a verifier raises, the pool makes it the verdict `error`.
    except Exception as fault:
        return AttackResult(answer.name, False, f"error: {type(fault).__name__}: {fault}")
    held = verdict.outcome not in (Outcome.CORRECT, Outcome.ERROR)
    return AttackResult(answer.name, held, f"{verdict.outcome}: {verdict.detail}")


_TELL = r"""
import gc, json, os, signal, sys, time

def tell(data):
    for descriptor in range(64):
        try:
            data and os.write(descriptor, data)
        except OSError:
            pass
"""
_SEARCH = r"""
import gc, json, os, sys


def search(argument):
    frame = sys._getframe()
    while frame is not None:
        for found in (frame.f_locals, frame.f_globals):
            if found is not globals() and "expected" in found:
                return found["expected"]
        frame = frame.f_back
    for value in gc.get_objects():
        if isinstance(value, dict) and value is not globals() and "expected" in value:
            if value.get("arguments", [argument]) == [argument]:
                return value["expected"]
    for folder in ("/program", "/work", "/tmp", os.path.dirname(os.path.abspath(__file__)), "/proc/1/root"):
        for place, _, names in os.walk(folder):
            for name in names:
                if name.endswith((".json", ".txt")):
                    try:
                        for case in json.load(open(os.path.join(place, name)))["cases"]:
                            if case.get("arguments") == [argument]:
                                return case["expected"]
                    except (OSError, ValueError, KeyError, TypeError):
                        pass
    return 0

twice = search
"""


def _reply(expression: str) -> str:
    """A program that sends bytes of its own as its reply, and ends."""
    return f"{_TELL}\ndef twice(x):\n    tell({expression})\n    os._exit(0)\n"


HOSTILE_ANSWERS = [
    # ---- ends before it is tested ----
    HostileAnswer("exit at the start", CALLS, "import sys\nsys.exit(0)", fools=True),
    HostileAnswer("exit at the start, assertions", ASSERTIONS, "raise SystemExit(0)", fools=True),
    HostileAnswer("hard exit at the start", ASSERTIONS, "import os\nos._exit(0)", fools=True),
    HostileAnswer("hard exit in a call", CALLS, "import os\n\ndef twice(x):\n    os._exit(0)", fools=True),
    HostileAnswer("exit in a call", ASSERTIONS, "def twice(x):\n    raise SystemExit(0)", fools=True),
    HostileAnswer("exit before reading", STDIO, "import os\nos._exit(0)"),
    HostileAnswer(
        "exit on failure",
        ASSERTIONS,
        "import os, sys\nsys.excepthook = lambda *_: os._exit(0)\n\ndef twice(x):\n    return 1",
        fools=True,
    ),
    HostileAnswer("killed", CALLS, f"{_TELL}\ndef twice(x):\n    os.kill(os.getpid(), signal.SIGKILL)"),
    HostileAnswer("stopped", CALL, f"{_TELL}\ndef twice(x):\n    os.kill(os.getpid(), signal.SIGSTOP)"),
    # ---- says that it passed ----
    HostileAnswer(
        "marker at the start",
        ASSERTIONS,
        f'{_TELL}\ntell(b\'PASSED\\n{{"outcome": "passed", "detail": ""}}\\n\')\nos._exit(0)',
        fools=True,
    ),
    HostileAnswer("marker as a reply", CALLS, _reply('b\'{"outcome": "passed", "detail": ""}\\n\'')),
    HostileAnswer(
        "marker as an exception",
        CALLS,
        'def twice(x):\n    raise ValueError(\'\\n{"outcome": "passed", "detail": ""}\\n\')',
    ),
    HostileAnswer("marker as output", STDIO, 'print("PASSED", "correct", "AC", "ok")'),
    # ---- replaces what compares ----
    HostileAnswer(
        "equal to everything",
        CALLS,
        "class Same:\n    __eq__ = lambda *_: True\n    __ne__ = lambda *_: False\n    __hash__ = None\n\n"
        "def twice(x):\n    return Same()",
        fools=True,
    ),
    HostileAnswer(
        "a number equal to everything",
        ASSERTIONS,
        "class Same(int):\n    __eq__ = lambda *_: True\n    __int__ = lambda self: self\n\n"
        "def twice(x):\n    return Same(1)",
        fools=True,
    ),
    HostileAnswer(
        "builtins replaced",
        CALLS,
        "import builtins, json, sys, unittest\n"
        "builtins.isinstance = lambda *_: True\nbuiltins.bool = lambda *_: True\n"
        "builtins.print = lambda *_: None\njson.loads = lambda *_: {}\n"
        'json.dumps = lambda *_: \'{"outcome": "passed", "value": true}\'\n'
        "unittest.TestCase.assertEqual = lambda *_: None\nsys.settrace(lambda *_: None)\n\n"
        "def twice(x):\n    return 1",
    ),
    HostileAnswer(
        "harness replaced",
        ASSERTIONS,
        "import os, sys\n"
        "for module in list(sys.modules.values()):\n"
        "    for name in ('encode', 'decode', '_call', 'matches', 'check', 'difference'):\n"
        "        if hasattr(module, name) and module.__name__ in ('__main__', 'values'):\n"
        "            setattr(module, name, lambda *_, **__: True)\n"
        "for folder in {os.path.dirname(os.path.abspath(__file__)), '/program', '.'}:\n"
        "    for name in ('judge.py', 'host.py', 'values.py', 'main.py', 'tests.json'):\n"
        "        try:\n"
        "            os.chmod(os.path.join(folder, name), 0o777)\n"
        "            with open(os.path.join(folder, name), 'w') as file:\n"
        "                file.write('raise SystemExit(0)')\n"
        "        except OSError:\n"
        "            pass\n\n"
        "def twice(x):\n    return 1",
    ),
    # ---- looks for what is expected ----
    HostileAnswer("expected values, calls", CALLS, _SEARCH, fools=True),
    HostileAnswer("expected values, assertions", ASSERTIONS, _SEARCH, fools=True),
    HostileAnswer("expected output", STDIO, f"{_SEARCH}\nprint(search(int(input())))"),
    # ---- replies out of turn, and with what is no value ----
    HostileAnswer(
        "replies in advance",
        CALLS,
        f"{_TELL}\ntell(b'{{\"value\": 6}}\\n' * 100)\n\ndef twice(x):\n    return 0",
    ),
    HostileAnswer(
        "replies from two processes", CALLS, f"{_TELL}\ndef twice(x):\n    os.fork()\n    return 6"
    ),
    HostileAnswer("no reply", CALL, f"{_TELL}\ndef twice(x):\n    time.sleep(60)"),
    HostileAnswer(
        "closed descriptors", CALL, f"{_TELL}\ndef twice(x):\n    os.closerange(0, 64)\n    time.sleep(60)"
    ),
    HostileAnswer("half a reply", CALLS, _reply("b'{\"value\": 6'")),
    HostileAnswer("bytes as a reply", CALLS, _reply("bytes(range(256)) + b'\\n'")),
    HostileAnswer(
        "a reply without end", CALLS, f"{_TELL}\ndef twice(x):\n    while True:\n        tell(b'x' * 4096)"
    ),
    HostileAnswer("a nested reply", CALLS, _reply("b'{\"value\": ' + b'[' * 500_000 + b'\\n'")),
    HostileAnswer(
        "a nested value", ASSERTIONS, _reply("b'{\"value\": ' + b'[' * 900 + b']' * 900 + b'}\\n'")
    ),
    HostileAnswer("not a number", CALLS, _reply("b'{\"value\": NaN}\\n'")),
    HostileAnswer("an infinite number", CALLS, _reply("b'{\"value\": 1e999}\\n'")),
    HostileAnswer(
        "a number of a million digits", CALL, _reply("b'{\"value\": ' + b'7' * 1_000_000 + b'}\\n'")
    ),
    HostileAnswer(
        "a fraction that explodes", CALL, _reply('b\'{"value": {"~": "fraction", "of": "1e99999999"}}\\n\'')
    ),
    HostileAnswer("a wide reply", CALL, _reply("b'{\"value\": [' + b'{},' * 5_000_000 + b'{}]}\\n'")),
    HostileAnswer("an unknown kind", CALLS, _reply('b\'{"value": {"~": "pickle", "of": "x"}}\\n\'')),
    HostileAnswer("a list as a reply", CALLS, _reply("b'[\"value\", 6]\\n'")),
    HostileAnswer("an exception that is none", ASSERTIONS, _reply('b\'{"raised": "SystemExit"}\\n\'')),
    HostileAnswer(
        "an exception that takes no text", ASSERTIONS, _reply('b\'{"raised": "ExceptionGroup"}\\n\'')
    ),
    HostileAnswer("half a character", CALLS, "def twice(x):\n    raise ValueError('\\ud800')"),
    HostileAnswer("half a character as a value", CALLS, "def twice(x):\n    return '\\ud800'"),
    HostileAnswer("a list of itself", CALLS, "def twice(x):\n    x = [x]\n    x.append(x)\n    return x"),
    HostileAnswer(
        "an endless iterator", CALL, "import itertools\n\ndef twice(x):\n    return itertools.count()"
    ),
    HostileAnswer(
        "a value that cannot go on",
        CHAINED,
        "def pack(x):\n    return object()\n\ndef unpack(x):\n    return 'ab'",
    ),
    HostileAnswer(
        "an iterator that cannot go on",
        CHAINED,
        "def pack(x):\n    return iter(x)\n\ndef unpack(x):\n    return x",
    ),
    HostileAnswer(
        "memory in the call", CALLS, "def twice(x):\n    return [bytearray(1 << 24) for _ in range(10**6)]"
    ),
    HostileAnswer(
        "memory in no process",
        CALLS,
        f"{_TELL}\nblock = bytes(1 << 20)\n\ndef twice(x):\n    while True:\n"
        "        file = os.memfd_create('x')\n        for _ in range(15):\n            os.write(file, block)",
    ),
    # ---- programs that read and write ----
    HostileAnswer(
        "several outputs", STDIO, "x = int(input())\nprint(x, 2 * x)\nprint(2 * x)\nprint(x * x)", fools=True
    ),
    HostileAnswer("much output", STDIO, "print(2 * int(input()))\nwhile True:\n    print('x' * (1 << 20))"),
    HostileAnswer("16 MB of output", STDIO, "import sys\nsys.stdout.write('6 ' * (8 << 20))"),
    HostileAnswer("16 MB of output, checked", CHECKED, "import sys\nsys.stdout.write('6 ' * (8 << 20))"),
    HostileAnswer("no text as output", CHECKED, "import os\nos.write(1, bytes(range(256)) * 16)"),
    HostileAnswer("closed output", STDIO, "import os\nos.closerange(0, 64)"),
    HostileAnswer("a null character", STDIO, "print(1)\0"),
    HostileAnswer("half a character in the program", STDIO, "print(1) # \ud800"),
    HostileAnswer("a huge program", STDIO, "#" + "x" * (17 << 20) + "\nprint(1)"),
    # ---- C++ ----
    HostileAnswer(
        "a huge binary",
        STDIO,
        "volatile char room[24 << 20] = {1};\nint main() { return 0; }",
        language="cpp",
    ),
    HostileAnswer(
        "a constructor that exits",
        STDIO,
        "#include <unistd.h>\n__attribute__((constructor)) void out() { _exit(0); }\nint main() {}",
        language="cpp",
    ),
    HostileAnswer(
        "includes of devices and processes",
        STDIO,
        '#include "/dev/stdin"\n#include "/proc/1/environ"\nint main() {}',
        language="cpp",
    ),
]
