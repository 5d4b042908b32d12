"""Scores, and what may be concluded from them.

The package has the name of a public function, `sdzero.evaluate`. Importing a module of the package binds that
name to the package, so the package can be called, and does what the function does.
"""

import sys
from types import ModuleType
from typing import Any


class _CalledAsFunction(ModuleType):
    def __call__(self, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        """`sdzero.evaluate.score.evaluate`."""
        from sdzero.evaluate.score import evaluate

        return evaluate(*arguments, **keywords)


sys.modules[__name__].__class__ = _CalledAsFunction
