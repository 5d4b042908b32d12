"""How a response was graded, and why."""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """Every way that grading can end. Only `CORRECT` is reward 1; `ERROR` is our own fault."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    TRUNCATED = "truncated"
    TIMEOUT = "timeout"
    COMPILE_ERROR = "compile_error"
    RUNTIME_ERROR = "runtime_error"
    MEMORY = "memory"
    ERROR = "error"


@dataclass(frozen=True)
class Verdict:
    """An outcome and, for people, a detail. An `ERROR` is left out of training and denominators."""

    outcome: Outcome
    detail: str = ""

    @property
    def reward(self) -> int:
        """The binary reward, 0 or 1."""
        return int(self.outcome is Outcome.CORRECT)

    @property
    def counts(self) -> bool:
        """Whether the verdict says anything about the model."""
        return self.outcome is not Outcome.ERROR
