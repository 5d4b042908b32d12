"""What is asked. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Question:
    """A question with what is needed to grade an answer to it.

    `id` is unique within a source; `text` is what the model reads; `answer` is the reference answer
    (never shown to the model); `kind` groups questions in statistics; `metadata` is JSON-like data
    that a verifier may need (a reasoning-gym entry, tests). `solution` is a worked one, where the data has
    them: only the baselines that learn from demonstrations read it.
    """

    id: str
    text: str
    answer: str
    kind: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    solution: str = ""
