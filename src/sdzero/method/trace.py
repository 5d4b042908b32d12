"""A kept revision: the unit of `D_revision`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True)
class RevisionTrace:
    """`(x, y_init, P_r, y_revised)` as token ids, with `y_revised` verified correct (paper, section 3.1).

    `prompt_ids` are chat(x); both responses are the sampler's ids, end token included; P_r follows from
    `reward`, which is that of the initial response (0 or 1).
    """

    question_id: str
    prompt_ids: tuple[int, ...]
    initial_ids: tuple[int, ...]
    reward: int
    revised_ids: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """The trace as JSON-like data."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The trace that `to_json` wrote. Raises KeyError for a missing field."""
        return cls(
            question_id=str(data["question_id"]),
            prompt_ids=tuple(data["prompt_ids"]),
            initial_ids=tuple(data["initial_ids"]),
            reward=int(data["reward"]),
            revised_ids=tuple(data["revised_ids"]),
        )
