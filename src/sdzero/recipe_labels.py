"""The settings of label-free training. Imports no torch."""

from typing import Literal

from pydantic import Field

from sdzero.recipe_base import Settings


class LabelSettings(Settings):
    """Where the rewards of training come from.

    `reference`: the data's answers. `majority`: before phase 1 the base model answers each training question
    `samples` times (sampled as `collect` says), and the answer that most responses agree on takes the place
    of the data's (TTRL, arXiv 2504.16084). A question whose largest group has a smaller share of the samples
    than `min_agreement` is left out of training. Tuning and test questions keep their own answers.
    """

    source: Literal["reference", "majority"] = "reference"
    samples: int = Field(default=8, ge=2)
    min_agreement: float = Field(default=0.0, ge=0, le=1)
