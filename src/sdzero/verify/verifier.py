"""What a verifier is, and how one is found by its name."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sdzero.errors import UserError
from sdzero.questions.question import Question
from sdzero.verify.verdict import Outcome, Verdict


@dataclass(frozen=True)
class Canary:
    """A response whose outcome is known beforehand; a verifier that grades it otherwise is broken."""

    question: Question
    response: str
    outcome: Outcome


class Verifier(Protocol):
    """Grades one response at a time, in a worker process (see `sdzero.verify.pool`).

    `grade` may take as long and fail as badly as it likes: the pool ends it at the time-out, and an
    exception becomes the verdict `error`, which is left out of training. `canaries` are graded before
    a run starts; there should be one that is right, one that is wrong and one without an answer.
    """

    name: str

    def grade(self, question: Question, response: str) -> Verdict:
        """Grade a response (text, without the end-of-turn token)."""
        ...

    def canaries(self) -> list[Canary]:
        """Responses with known outcomes."""
        ...


class FunctionVerifier:
    """A plain function `(question, response) -> bool | 0 | 1 | Verdict` as a verifier; no canaries."""

    def __init__(self, name: str, function: Callable[[Question, str], Any]) -> None:
        self.name = name
        self._function = function

    def grade(self, question: Question, response: str) -> Verdict:
        """Call the function. Raises TypeError for a result that is neither a Verdict nor 0 or 1."""
        result = self._function(question, response)
        if isinstance(result, Verdict):
            return result
        if result == 1:
            return Verdict(Outcome.CORRECT)
        if result == 0:
            return Verdict(Outcome.WRONG)
        raise TypeError(f"the verifier `{self.name}` returned {result!r}; it must return a Verdict, 0 or 1")

    def canaries(self) -> list[Canary]:
        """None: only the function's author knows what is right."""
        return []


BUILT_IN = ("math", "puzzle", "code")


def make_verifier(name: str, options: Mapping[str, Any] | None = None) -> Verifier:
    """The verifier of a name: `math`, `puzzle`, `code`, or `package.module:factory`.

    The factory is called without arguments and returns a Verifier; a plain function of
    (question, response), or a reward function `(completions, **columns)` as TRL's trainers take them, stands
    for a verifier without canaries. Raises UserError for a name that leads to none of these. `options` are
    for `code`: `sandbox`, settings as JSON, and `cache`, a file's path; and for a reward function:
    `threshold` and `completions`.
    """
    if name == "math":
        from sdzero.verify.math import MathVerifier

        return MathVerifier()
    if name == "puzzle":
        from sdzero.verify.puzzle import PuzzleVerifier

        return PuzzleVerifier()
    if name == "code":
        from sdzero.recipe_sandbox import SandboxSettings
        from sdzero.verify.code import CodeVerifier

        given = dict(options or {})
        cache = given.get("cache")
        return CodeVerifier(
            SandboxSettings(**given.get("sandbox", {})), None if cache is None else Path(cache)
        )
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        nearest = difflib.get_close_matches(name, BUILT_IN, n=1)
        raise UserError(
            f"there is no verifier `{name}`",
            where="verifier.name",
            todo=f"did you mean `{nearest[0]}`?"
            if nearest
            else f"use {', '.join(BUILT_IN)}, or package.module:factory",
        )
    return _from_factory(name, _find(name, module_name, attribute), options or {})


def _find(name: str, module_name: str, attribute: str) -> Callable[..., Any]:
    try:
        module = importlib.import_module(module_name)
    # Importing runs the user's code, which may raise anything.
    except Exception as fault:
        raise UserError(
            f"the module of the verifier `{name}` cannot be imported: {type(fault).__name__}: {fault}",
            where="verifier.name",
            todo="give a module that Python can import from the folder where the command is run",
        ) from fault
    found = getattr(module, attribute, None)
    if not callable(found):
        nearest = difflib.get_close_matches(attribute, dir(module), n=1)
        raise UserError(
            f"`{module_name}` has no function or class `{attribute}`",
            where="verifier.name",
            todo=f"did you mean `{module_name}:{nearest[0]}`?"
            if nearest
            else "check the name after the colon",
        )
    return found  # type: ignore[no-any-return]


def _from_factory(name: str, found: Callable[..., Any], options: Mapping[str, Any]) -> Verifier:
    from sdzero.verify.reward_function import RewardFunctionVerifier, is_reward_function

    if is_reward_function(found):
        return RewardFunctionVerifier(name, found, **options)
    if options:
        raise UserError(
            f"`{name}` is no reward function: {', '.join(options)} cannot be set for it",
            where="verifier",
            todo="take them out; a reward function takes `completions` by name",
        )
    signature = inspect.signature(found)
    if not _takes(signature, 0):
        if inspect.isclass(found) or not _takes(signature, 2):
            raise UserError(
                f"`{name}` takes {signature}",
                where="verifier.name",
                todo="it must take no arguments and return a verifier, or take (question, response), or"
                " (completions, **columns) as TRL's reward functions do",
            )
        return FunctionVerifier(name, found)
    try:
        verifier = found()
    except Exception as fault:
        raise UserError(
            f"the verifier `{name}` cannot be made: {type(fault).__name__}: {fault}",
            where="verifier.name",
            todo=f"mend `{found.__qualname__}`; it is called without arguments",
        ) from fault
    missing = [part for part in ("name", "grade", "canaries") if not hasattr(verifier, part)]
    if missing:
        raise UserError(
            f"what `{name}` returns is no verifier: it lacks {', '.join(f'`{part}`' for part in missing)}",
            where="verifier.name",
            todo="see sdzero.verify.verifier.Verifier",
        )
    return verifier  # type: ignore[no-any-return]


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True
