"""Runs the tests of a program's functions; runs in a sandbox of its own, where no code of the model runs.

Arguments: the file with the tests. It asks the program on standard output, a JSON object a line, reads the
replies on standard input, and at the end writes one JSON object, the finding, to standard error. The tests
are the data set's, so they are not trusted with the machine; but no reply of the program can reach beyond
the value that it is.
"""

import builtins
import json
import math
import os
import select
import sys
import time
import types
from fractions import Fraction
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from values import UnsendableError, decode, encode  # type: ignore[import-not-found]

LONGEST_REPLY = 32 << 20


class Found(BaseException):
    """How the tests ended; no `except Exception` in a test catches it."""

    def __init__(self, outcome: str, detail: str = "") -> None:
        super().__init__(outcome)
        self.outcome, self.detail = outcome, detail


class Program:
    """The program, asked over pipes. `seconds` is the time that one call may take.

    `found` is how asking it ended, if it did: tests that catch everything cannot hide it.
    """

    def __init__(self, seconds: float) -> None:
        self._replies, self._requests = os.dup(0), os.dup(1)
        self._seconds = seconds
        self._waiting = bytearray()
        self.raised: Exception | None = None
        self.found: Found | None = None

    def call(self, name: str, arguments: Any, keywords: Any = None) -> Any:
        """The value that a function of the program returns. Raises what it raised, or Found."""
        if self.found is not None:
            raise self.found
        try:
            return self._call(name, arguments, keywords)
        except Found as found:
            self.found = found
            raise

    def _call(self, name: str, arguments: Any, keywords: Any) -> Any:
        self.raised = None
        try:
            request = {
                "call": name,
                "arguments": [encode(value, strict=True) for value in arguments],
                "keywords": {key: encode(value, strict=True) for key, value in (keywords or {}).items()},
            }
        except UnsendableError as fault:
            raise Found("failed", str(fault)) from None
        except TypeError as fault:
            raise Found("unusable", str(fault)) from None
        self._send(json.dumps(request).encode() + b"\n")
        try:
            reply = json.loads(self._line())
            if "value" in reply:
                return decode(reply["value"])
            detail = str(reply.get("detail", ""))
        except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, MemoryError) as fault:
            raise Found("failed", f"a reply that is no value: {type(fault).__name__}") from None
        if "raised" in reply:
            self.raised = _exception(str(reply["raised"])[:100], reply.get("kinds"), detail)
            raise self.raised
        for key in ("loading", "missing"):
            if key in reply:
                raise Found(key, f"{str(reply[key])[:100]} {detail}".strip())
        raise Found("failed", "a reply that is no value")

    def _send(self, data: bytes) -> None:
        view, until = memoryview(data), time.monotonic() + self._seconds
        os.set_blocking(self._requests, False)
        while view:
            if not select.select([], [self._requests], [], max(0.0, until - time.monotonic()))[1]:
                raise Found("late")
            try:
                view = view[os.write(self._requests, view) :]
            except BrokenPipeError:
                raise Found("gone") from None

    def _line(self) -> bytes:
        until = time.monotonic() + self._seconds
        while True:
            end = self._waiting.find(b"\n")
            if end >= 0:
                line = bytes(self._waiting[:end])
                del self._waiting[: end + 1]
                if self._waiting:
                    raise Found("failed", "more replies than questions")
                return line
            if len(self._waiting) > LONGEST_REPLY:
                raise Found("failed", "a reply that is too long")
            if not select.select([self._replies], [], [], max(0.0, until - time.monotonic()))[0]:
                raise Found("late")
            data = os.read(self._replies, 1 << 20)
            if not data:
                raise Found("gone")
            self._waiting += data


_NOT_RAISED = (UnicodeError, ExceptionGroup, StopIteration, StopAsyncIteration)
"""Some need more than a text; the last two would end a loop of the tests, such as `all(map(f, values))`."""


def _exception(name: str, kinds: Any, detail: str) -> Exception:
    """The built-in exception of a name, or the nearest of the `kinds` that it derives from.

    So tests can expect ValueError, and a class of the program that derives from it is one.
    """
    for known in (name, *kinds) if isinstance(kinds, list) else (name,):
        kind = getattr(builtins, known, None) if isinstance(known, str) else None
        if not isinstance(kind, type) or kind is Exception or not issubclass(kind, Exception):
            continue
        if not issubclass(kind, _NOT_RAISED):
            return kind(detail)
    return Exception(detail) if name == "Exception" else RuntimeError(f"{name}: {detail}")


def matches(expected: Any, given: Any, tolerance: float | None) -> bool:
    """Whether a value is the expected one; tuples count as lists, and with a tolerance numbers may differ."""
    if isinstance(expected, list | tuple) and isinstance(given, list | tuple):
        pairs = zip(expected, given, strict=False)
        return len(expected) == len(given) and all(matches(a, b, tolerance) for a, b in pairs)
    if isinstance(expected, dict) and isinstance(given, dict):
        return expected.keys() == given.keys() and all(
            matches(value, given[key], tolerance) for key, value in expected.items()
        )
    numbers = (int, float)
    if tolerance is not None and isinstance(expected, numbers) and isinstance(given, numbers):
        return expected == given or _close(expected, given, tolerance)
    return bool(expected == given)


def _close(expected: float, given: float, tolerance: float) -> bool:
    """Exact, since whole numbers may be too large for a float; nothing is close to infinity."""
    if not all(math.isfinite(number) for number in (expected, given) if isinstance(number, float)):
        return False
    wanted, got = Fraction(expected), Fraction(given)
    return abs(wanted - got) <= Fraction(tolerance) * max(Fraction(1), abs(wanted))


def run_calls(program: Program, tests: dict[str, Any]) -> None:
    """Call the entry with each case's arguments. Raises Found at the first that is wrong."""
    for number, case in enumerate(tests["cases"], start=1):
        value = program.call(tests["entry"], case["arguments"])
        if not matches(case["expected"], value, tests["tolerance"]):
            raise Found("failed", f"call {number} returned {value!r:.200}")


def run_assertions(program: Program, tests: dict[str, Any]) -> None:
    """Run the tests' code, with stand-ins for the program's functions."""

    def stand_in(name: str) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            return program.call(name, arguments, keywords)

        call.__name__ = name
        return call

    module = sys.modules["tests"] = types.ModuleType("tests")
    namespace: dict[str, Any] = module.__dict__
    try:
        code = compile(tests["code"], "<tests>", "exec")
        exec(compile(tests["preamble"], "<preamble>", "exec"), namespace)
    except Exception as fault:
        raise Found("unusable", f"{type(fault).__name__}: {fault}") from None
    namespace |= {name: stand_in(name) for name in tests["names"]}
    exec(code, namespace)


def find(tests: dict[str, Any]) -> Found:
    """Run the tests, however they end."""
    program = Program(tests["call_seconds"])
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    try:
        (run_calls if tests["kind"] == "calls" else run_assertions)(program, tests)
        found = Found("passed")
    except Found as caught:
        found = caught
    except BaseException as fault:
        detail = f"{type(fault).__name__}: {fault}"
        found = Found("raised" if fault is program.raised else "failed", detail)
    return program.found or found


def main() -> None:
    """Read the tests, run them, tell."""
    sys.set_int_max_str_digits(0)
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    told = os.dup(2)
    with open(sys.argv[1], encoding="utf-8") as file:
        tests = json.load(file)
    found = find(tests)
    os.write(told, json.dumps({"outcome": found.outcome, "detail": found.detail[:1000]}).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
