"""Finding a verifier by its name, and wrapping a plain function."""

from pathlib import Path

import pytest

from sdzero.errors import UserError
from sdzero.questions.question import Question
from sdzero.verify.verdict import Outcome, Verdict
from sdzero.verify.verifier import make_verifier

QUESTION = Question("q", "1+1?", "2")

MODULE = """
from sdzero.verify.verdict import Outcome, Verdict

def as_bool(question, response): return response == question.answer
def as_verdict(question, response): return Verdict(Outcome.NO_ANSWER, "none")
def as_score(question, response): return 0.5
def with_three(question, response, more): return True
def fails(): raise RuntimeError("no licence")
def gives_text(): return "a verifier"
not_callable = 3

class Own:
    name = "own"
    def grade(self, question, response): return Verdict(Outcome.CORRECT)
    def canaries(self): return []
"""


@pytest.fixture(autouse=True, scope="module")
def _module(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder: Path = tmp_path_factory.mktemp("modules")
    (folder / "own_verifiers_for_lookup.py").write_text(MODULE)
    (folder / "own_broken_verifiers.py").write_text("import a_module_that_is_not_there")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


def test_a_class_without_arguments_is_a_factory() -> None:
    verifier = make_verifier("own_verifiers_for_lookup:Own")
    assert verifier.name == "own"
    assert verifier.grade(QUESTION, "").outcome == Outcome.CORRECT


def test_plain_functions_are_wrapped() -> None:
    verifier = make_verifier("own_verifiers_for_lookup:as_bool")
    assert verifier.grade(QUESTION, "2") == Verdict(Outcome.CORRECT)
    assert verifier.grade(QUESTION, "3") == Verdict(Outcome.WRONG)
    assert verifier.canaries() == []
    assert make_verifier("own_verifiers_for_lookup:as_verdict").grade(QUESTION, "") == Verdict(
        Outcome.NO_ANSWER, "none"
    )


def test_a_result_that_is_not_binary_is_refused() -> None:
    with pytest.raises(TypeError, match=r"returned 0\.5"):
        make_verifier("own_verifiers_for_lookup:as_score").grade(QUESTION, "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maths", "did you mean `math`"),
        ("own_verifiers_for_lookup", "package.module:factory"),
        ("no_such_module_anywhere:f", "cannot be imported: ModuleNotFoundError"),
        ("own_broken_verifiers:f", "a_module_that_is_not_there"),
        ("own_verifiers_for_lookup:as_bol", "did you mean `own_verifiers_for_lookup:as_bool`"),
        ("own_verifiers_for_lookup:not_callable", "no function or class `not_callable`"),
        ("own_verifiers_for_lookup:with_three", r"takes \(question, response, more\)"),
        ("own_verifiers_for_lookup:fails", "RuntimeError: no licence"),
        ("own_verifiers_for_lookup:gives_text", "lacks `name`, `grade`, `canaries`"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_verifier(name)
    assert caught.match(message) or message in str(caught.value)
