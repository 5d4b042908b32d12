"""The problems of MBPP, full and sanitized: write a Python function.

See https://github.com/google-research/google-research/tree/master/mbpp. Imports no torch.
"""

import ast
import builtins

from sdzero.errors import UserError
from sdzero.questions.program_rows import (
    LeftOutError,
    Row,
    ask_for_functions,
    fenced,
    list_of,
    name_of,
    optional_text,
    program_question,
    spread,
    text_of,
)
from sdzero.questions.question import Question

REQUIRED = ("text|prompt", "code", "test_list")
OPTIONAL = ("text", "prompt", "task_id", "test_setup_code", "test_imports")


def mbpp_question(row: Row, where: str, default_id: str, max_tests: int | None = None) -> Question:
    """The question of one row: `text`, `test_setup_code` (full) or `prompt`, `test_imports` (sanitized).

    The first test is shown, as the only place where the function's name and arguments stand; the others are
    not, so that they cannot be copied into the program. Raises LeftOutError for tests that build objects of a
    class of the program (they run in another process than the program), UserError for a fault in the row.
    """
    tests = list_of(row, "test_list", where)
    if not tests or not all(isinstance(test, str) and test.strip() for test in tests):
        raise UserError(
            "column `test_list` is not a list of assertions",
            where,
            "correct the row, or set data.faulty=drop",
        )
    imports = [str(line) for line in list_of(row, "test_imports", where)]
    setup = "\n".join([*imports, optional_text(row, "test_setup_code", where)]).strip()
    code = text_of(row, "code", where).strip("\n")
    tests = [test.strip() for test in tests]
    names, borrowed = _names(_parse(setup, where), _parse("\n".join(tests), where), _parse(code, where))
    if not names:
        raise UserError("no test calls a function of the program", where, "correct or remove the row")
    statement = text_of(row, "prompt" if row.get("prompt") else "text", where).strip()
    example = f"It must pass this test and others like it:\n\n{fenced(tests[0], 'python')}"
    task = {
        "tests": {
            "kind": "assertions",
            "names": names,
            "preamble": "\n".join(part for part in (*borrowed, setup) if part),
            "code": "\n".join(spread(tests, max_tests)) + "\n",
        }
    }
    return program_question(
        where,
        name_of(row, "task_id", default_id),
        f"{statement}\n\n{example}\n\n{ask_for_functions(names)}",
        task,
        solution=fenced(code, "python"),
    )


def _parse(code: str, where: str) -> ast.Module:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError) as fault:
        raise UserError(
            f"the tests or the solution are not Python: {fault}", where, "correct or remove the row"
        ) from fault


def _names(setup: ast.Module, tests: ast.Module, code: ast.Module) -> tuple[list[str], list[str]]:
    """The program's functions that the tests call, and the solution's imports that the tests need too.

    A built-in's name counts if the solution defines it (MBPP has a function `sum`).
    """
    functions = {part.name for part in code.body if isinstance(part, ast.FunctionDef)}
    known = (set(dir(builtins)) - functions) | _bound(setup)
    borrowed, imported = [], set()
    free = [name for name in _used(tests) if name not in known | _bound(tests)]
    for part in code.body:
        if isinstance(part, ast.Import | ast.ImportFrom) and _bound(part) & set(free):
            borrowed.append(ast.unparse(part))
            imported |= _bound(part)
    names = [name for name in free if name not in imported]
    calls = [part.func for part in ast.walk(tests) if isinstance(part, ast.Call)]
    called = {function.id for function in calls if isinstance(function, ast.Name)}
    if set(names) - called or set(names) - functions or set(_used(setup)) - known:
        raise LeftOutError("with tests that need more of the program than calls of its functions")
    return names, borrowed


def _used(tree: ast.AST) -> list[str]:
    """The names that are read, each once, in order."""
    reads = [part for part in ast.walk(tree) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)]
    reads.sort(key=lambda part: (part.lineno, part.col_offset))
    return list(dict.fromkeys(part.id for part in reads))


def _bound(tree: ast.AST) -> set[str]:
    """The names that are imported, defined, assigned or are arguments, in any scope."""
    bound: set[str] = set()
    for part in ast.walk(tree):
        if isinstance(part, ast.Import | ast.ImportFrom):
            bound |= {(name.asname or name.name).partition(".")[0] for name in part.names}
        elif isinstance(part, ast.FunctionDef | ast.ClassDef):
            bound.add(part.name)
        elif isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Load):
            bound.add(part.id)
        elif isinstance(part, ast.arg):
            bound.add(part.arg)
    return bound
