"""What `sdzero localize` measures for the report: a section of a recipe. Imports no torch."""

from pydantic import Field

from sdzero.recipe_base import Settings


class ReportSettings(Settings):
    """`responses` of each verdict are measured token by token, with the `alternatives` likeliest tokens of
    the student and of the Reviser at each place."""

    responses: int = Field(default=16, ge=1)
    alternatives: int = Field(default=5, ge=1, le=20)
