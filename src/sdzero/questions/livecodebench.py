"""Problems of LiveCodeBench: code_generation and code_generation_lite.

See https://github.com/LiveCodeBench/LiveCodeBench and https://huggingface.co/livecodebench. Imports no torch.
"""

import base64
import pickletools
import re
import zlib
from typing import Any

from sdzero.errors import UserError
from sdzero.questions.program_rows import (
    LeftOutError,
    Row,
    ask_for_functions,
    ask_for_program,
    fenced,
    input_output,
    list_of,
    name_of,
    optional_text,
    parse_json,
    program_question,
    spread,
    text_of,
)
from sdzero.questions.question import Question

REQUIRED = ("question_content", "starter_code", "public_test_cases", "private_test_cases", "metadata")
OPTIONAL = ("question_id", "difficulty")

MAX_TESTS_BYTES = 512 * 1024**2
"""Most bytes that the packed tests of one row may have unpacked: a few kilobytes can unpack to gigabytes."""

TEXT_OPCODES = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
FRAME_OPCODES = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP"}
"""What stands around the text in the pickle of a plain str."""

STAR_MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "json", "typing", "builtins"),
)
"""LeetCode's programs need no imports; the benchmark's own runner imports these for them. `builtins` is last,
so that `pow` is the built-in one and not that of `math`."""

PREAMBLE = "\n".join(
    [
        *(f"from {module} import *" for module in STAR_MODULES),
        f"import sys, {', '.join(module for module in STAR_MODULES if module != 'builtins')}",
        "sys.setrecursionlimit(50_000)",
    ]
)


def livecodebench_question(row: Row, where: str, default_id: str, max_tests: int | None = None) -> Question:
    """The question of one row, with public and private tests; its kind is the difficulty.

    `testtype` of the tests is `stdin` (a whole program) or `functional` (the starter code's method is called:
    the input has one JSON value a line, one for each argument, and the output is one JSON value). Raises
    LeftOutError for a problem without tests, UserError for a fault in the row.
    """
    tests = list_of(row, "public_test_cases", where) + private_tests(row, where)
    if not tests:
        raise LeftOutError("without tests")
    cases = spread([input_output(test, "the test cases", where) for test in tests], max_tests)
    types = {str(test.get("testtype")) for test in tests}
    statement = text_of(row, "question_content", where).strip()
    if types == {"stdin"}:
        text = f"{statement}\n\n{ask_for_program('python')}"
        task: dict[str, Any] = {"tests": {"kind": "stdio", "cases": cases}}
    elif types == {"functional"}:
        starter = text_of(row, "starter_code", where)
        name = _function_name(row, where)
        entry = _entry(name, starter, where)
        text = f"{statement}\n\nStarter code:\n\n{fenced(starter, 'python')}\n\n{ask_for_functions([name])}"
        if "." in entry:
            text = f"{text} Keep the class `{entry.partition('.')[0]}`."
        calls = [_call(case, where) for case in cases]
        task = {"preamble": PREAMBLE, "tests": {"kind": "calls", "entry": entry, "cases": calls}}
    else:
        raise UserError(
            f"the test cases are of type {', '.join(sorted(types))}",
            where,
            "each `testtype` of a row must be `stdin`, or each `functional`",
        )
    kind = optional_text(row, "difficulty", where)
    return program_question(where, name_of(row, "question_id", default_id), text, task, kind=kind)


def private_tests(row: Row, where: str, limit: int = MAX_TESTS_BYTES) -> list[Any]:
    """The private tests: JSON text of a list, or base64 of zlib of a pickle of such text.

    A pickle can run any code, so none is loaded: its opcodes are listed, and the one text in it is taken.
    (A restricted unpickler would run no code either, but ten bytes make it ask for gigabytes of memory.)
    Raises UserError for a pickle of anything else, and for more than `limit` bytes.
    """
    column = "private_test_cases"
    value = row.get(column)
    if not isinstance(value, str) or not value.strip() or value.lstrip().startswith("["):
        return list_of(row, column, where)
    try:
        packed = base64.b64decode(value, validate=True)
        stream = zlib.decompressobj()
        pickled = stream.decompress(packed, limit + 1)
        if len(pickled) > limit:
            raise UserError(
                f"column `{column}` unpacks to more than {limit} bytes",
                where,
                "remove the row, or split its tests",
            )
        if not stream.eof:
            raise ValueError("the compressed data are cut off")
        text = _pickled_text(pickled)
    except (ValueError, zlib.error) as fault:
        raise UserError(
            f"column `{column}` is neither JSON text nor base64 of zlib of a pickled text: {fault}",
            where,
            "take the file as it was published, or set data.faulty=drop",
        ) from fault
    return list_of({column: text}, column, where)


def _pickled_text(pickled: bytes) -> str:
    """The text that is pickled. Raises ValueError for a pickle of anything but one str."""
    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in TEXT_OPCODES and isinstance(argument, str):
            texts.append(argument)
        elif opcode.name not in FRAME_OPCODES:
            raise ValueError(f"the pickle holds more than text (opcode {opcode.name})")
    if len(texts) != 1:
        raise ValueError(f"the pickle holds {len(texts)} texts, not one")
    return texts[0]


def _function_name(row: Row, where: str) -> str:
    metadata = row.get("metadata")
    if isinstance(metadata, str):
        metadata = parse_json(metadata, "column `metadata`", where)
    name = metadata.get("func_name") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(
            f"column `metadata` gives {name!r} as `func_name`, which is no function's name",
            where,
            "correct the row, or set data.faulty=drop",
        )
    return name


def _entry(name: str, starter: str, where: str) -> str:
    """What the tests call: `name`, or `Class.name` if the starter code has it in a class.

    The starter code has no body yet, so it cannot be parsed as Python.
    """
    definition = re.search(rf"^([ \t]*)(?:async[ \t]+)?def[ \t]+{name}[ \t]*\(", starter, re.MULTILINE)
    if definition is None:
        raise UserError(
            f"the starter code does not define `{name}`", where, "correct the row, or set data.faulty=drop"
        )
    classes = re.findall(r"^class[ \t]+(\w+)", starter[: definition.start()], re.MULTILINE)
    return f"{classes[-1]}.{name}" if definition[1] and classes else name


def _call(case: dict[str, str], where: str) -> dict[str, Any]:
    # Only "\n" ends a line here: JSON text may hold the other characters that splitlines splits at.
    lines = [line for line in case["input"].split("\n") if line.strip()]
    return {
        "arguments": [parse_json(line, "an argument of a test", where) for line in lines],
        "expected": parse_json(case["output"], "the output of a test", where),
    }
