"""Holds a program's functions and calls them as the judge asks; runs in the sandbox with the program.

Arguments: the program's file. Requests come on standard input, a JSON object a line, replies go to standard
output. The program itself can do to this process whatever it likes: all that comes of it is a reply, and a
reply is only a value, which the judge compares in a process of its own.
"""

import builtins
import json
import os
import sys
import types

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from values import decode, encode  # type: ignore[import-not-found]


def main() -> None:
    """Load the program, then serve."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    sys.set_int_max_str_digits(0)
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    file = sys.argv[1]
    sys.argv = [file]
    # A module that can be looked up: data classes do, for one.
    program = sys.modules["program"] = types.ModuleType("program")
    program.__file__ = file
    namespace = program.__dict__
    trouble = None
    try:
        with open(file, encoding="utf-8-sig", errors="replace") as source:
            exec(compile(source.read(), file, "exec"), namespace)
    except BaseException as fault:
        trouble = {"loading": type(fault).__name__, "detail": str(fault)[:500]}
    for line in requests:
        reply = trouble or _call(namespace, json.loads(line))
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def _call(namespace: dict, request: dict) -> dict:  # type: ignore[type-arg]
    try:
        name, _, method = request["call"].partition(".")
        if name not in namespace:
            return {"missing": request["call"]}
        function = namespace[name]
        if method:
            function = getattr(function(), method)
        keywords = {key: decode(value) for key, value in request["keywords"].items()}
        return {"value": encode(function(*[decode(value) for value in request["arguments"]], **keywords))}
    except BaseException as fault:
        return _raised(fault)


def _raised(fault: BaseException) -> dict:  # type: ignore[type-arg]
    kinds = [kind.__name__ for kind in type(fault).__mro__]
    return {"raised": kinds[0], "kinds": kinds[1:], "detail": str(fault)[:500]}


if __name__ == "__main__":
    main()
