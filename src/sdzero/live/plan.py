"""What `sdzero run` will do with a recipe: its stages in order, and how much each has to do."""

from dataclasses import dataclass

from sdzero.recipe import Recipe


@dataclass(frozen=True)
class Work:
    """One part of a stage: how many of what. `at_most`: the number is known for certain only at its end."""

    unit: str
    total: int
    at_most: bool = False


def planned_stages(recipe: Recipe) -> list[str]:
    """The stages of `sdzero run`, in order, under the names that their markers have."""
    stages = ["labels"] if recipe.labels.is_majority else []
    if recipe.srt.checkpoint is None:
        for round_ in range(1, recipe.collect.rounds + 1):
            stages += [f"collect/round-{round_}", f"srt/round-{round_}"]
    stages.append("distill")
    names = ["base", "srt", "sdzero"]
    if recipe.rft.enabled:
        stages.append("rft")
        names.insert(1, "rft")
    return [*stages, *(f"evaluate/{name}" for name in names)]


def work_of(recipe: Recipe, part: str, sampled: dict[str, int]) -> Work | None:
    """How many responses a part samples; None where that is not known beforehand.

    `sampled` is how many responses each part of the run has so far, by the part's name.
    """
    names = part.split("/")
    if names[0] == "collect" and len(names) == 3:
        own, rounds = recipe.collect, recipe.collect.rounds
        round_ = int(names[1].removeprefix("round-"))
        initial = own.initial_of(recipe.data.n1, round_)
        if names[2] == "initial":
            return Work("responses", initial, at_most=own.target_initial is not None and rounds > 1)
        initial = sampled.get(f"{names[0]}/{names[1]}/initial", initial)
        return Work("responses", initial * own.revisions_per_initial, at_most=True)
    if names[0] == "evaluate" and len(names) == 3:
        questions = getattr(recipe.data, recipe.evaluate.on)
        of_each = recipe.evaluate.k if names[2] == "responses" else 1
        return Work("responses", questions * of_each, at_most=names[2] == "revised")
    if part == "rft/responses" and recipe.budget.match == "responses":
        if recipe.budget.responses is not None:
            return Work("responses", recipe.budget.responses)
        spent = sum(count for name, count in sampled.items() if name.split("/")[0] in ("collect", "distill"))
        return Work("responses", spent)
    return None
