"""Where the answers come from that training rewards are given by: a recipe's section `labels`.

Imports no torch.
"""

from typing import Literal

from pydantic import Field

from sdzero.recipe_base import Settings


class LabelSettings(Settings):
    """What a training response is graded against: the data's reference answer, or, with `majority`, the
    answer that most of the base model's own responses to the question agree on (arXiv 2504.16084).

    `samples` responses are sampled to each question of N1 and N2; sampling settings that are not given are
    those of `collect`. A question is left out, and counted, if fewer than `min_agreement` of its responses
    gave the most frequent answer. Tuning and test questions are graded with their true answers.
    """

    source: Literal["reference", "majority"] = "reference"
    samples: int = Field(default=8, ge=2)
    min_agreement: float = Field(default=0.0, ge=0, le=1)
    temperature: float | None = Field(default=None, gt=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_new_tokens: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)

    @property
    def is_majority(self) -> bool:
        """Whether training rewards come from agreement, so that no reference may reach them."""
        return self.source == "majority"
