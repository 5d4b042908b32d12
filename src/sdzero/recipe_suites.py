"""How the benchmarks of a suite are scored: a section of a recipe. Imports no torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from sdzero.recipe_base import Settings
from sdzero.recipe_sandbox import SandboxSettings

SuiteName = Literal[
    "paper8",
    "math6",
    "code2",
    "aime24",
    "aime25",
    "hmmt25",
    "amobench",
    "openr1math",
    "math500",
    "codeforces",
    "livecodebench",
]
"""The suites and single benchmarks of `sdzero.evaluate.suites`."""


class SuiteSettings(Settings):
    """`sdzero evaluate RECIPE --suite NAME`. Defaults are the paper's: avg@8, temperature 0.7, 32K tokens.

    With `name`, `sdzero run` scores the run's models on that suite at its end.
    `data` is a folder with a local copy of each benchmark; without it they come from the hub. An instruction
    follows each question, in place of `chat.answer_instruction`, which is for the recipe's own questions.
    Benchmarks of the recipe's own kind are graded as its `verifier` says. Where that is another one,
    `code_timeout_seconds` (all tests of a response) and `sandbox` hold for programs.
    """

    name: SuiteName | None = None
    data: str | None = None
    k: int = Field(default=8, ge=1)
    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=32_768, ge=1)
    batch_size: int = Field(default=256, ge=1)
    math_instruction: str | None = "Please reason step by step, and put your final answer within \\boxed{}."
    code_instruction: str | None = "Please reason step by step before you write the program."
    max_tests: int | None = Field(default=None, ge=1)
    code_timeout_seconds: float = Field(default=300.0, gt=0)
    sandbox: SandboxSettings = SandboxSettings()

    @model_validator(mode="after")
    def _time_for_one_test(self) -> Self:
        if self.code_timeout_seconds <= self.sandbox.wall_seconds:
            raise ValueError(
                f"code_timeout_seconds ({self.code_timeout_seconds:g}) is for all tests of a response and"
                f" must be above sandbox.wall_seconds ({self.sandbox.wall_seconds:g}), which is for one"
            )
        return self
