"""What the checks of `sdzero doctor` are given, and what they yield."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sdzero.recipe import Recipe
from sdzero.recipe_sandbox import SandboxSettings

WARNING = "warning: "
"""Begins the detail of a finding that holds, and that a person should still look at."""


@dataclass(frozen=True)
class Finding:
    """What a check found. `todo` says how to mend what did not hold."""

    name: str
    held: bool
    detail: str
    todo: str = ""

    @property
    def is_warning(self) -> bool:
        """Whether it holds and should still be looked at."""
        return self.held and self.detail.startswith(WARNING)


def warning(name: str, detail: str, todo: str = "") -> Finding:
    """A finding that holds, and that a person should still look at."""
    return Finding(name, True, WARNING + detail, todo)


@dataclass
class Subject:
    """What is looked at: this machine, and a recipe's needs if there is one. `failed` are checks so far.

    `folder` is where the run would be; `quick` leaves out what takes long on a large model.
    """

    recipe: Recipe | None = None
    failed: set[str] = field(default_factory=set)
    quick: bool = False
    folder: Path | None = None

    @property
    def runs_programs(self) -> bool:
        """Whether programs of a model will be run here, as far as is known."""
        return self.recipe is None or self.recipe.verifier.name == "code"

    @property
    def sandbox(self) -> SandboxSettings:
        """The recipe's sandbox, or the default one."""
        return SandboxSettings() if self.recipe is None else self.recipe.verifier.sandbox


Check = Callable[[Subject], Iterator[Finding]]
