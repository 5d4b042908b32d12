"""What the tests of a comparison with several processes run in each of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from sdzero import ranks
from sdzero.compare_methods import Method, collapse_of, train_guarded
from sdzero.errors import CollapseError
from sdzero.pipeline import Stages
from sdzero.recipe_io import load_recipe
from sdzero.run_context import Budget
from sdzero.run_dir import RunDir


def collapse_and_try_again(folder: Path, recipe: Path) -> dict[str, Any]:
    """A training that collapses; then, with the alarms off, one that does not."""
    method, asked = Method("rft", "rft"), 0

    def baseline(kind: str, name: str, settings: Any, budget: Budget) -> None:
        nonlocal asked
        asked += 1
        if stages.recipe.alarms.enabled:
            raise CollapseError("the mean reward went from 1 to 0")

    with RunDir.open(folder, load_recipe(recipe)) as run:
        stages = SimpleNamespace(
            run=run,
            recipe=load_recipe(recipe),
            claim=lambda name, settings: None,
            report=lambda line: None,
            baseline=baseline,
        )
        own = cast("Stages", stages)

        def once() -> str | None:
            return train_guarded(
                own, method, "rft", method.settings(own.recipe), lambda: Budget("responses", 7)
            )

        run.write_json("evaluate/rft.json", {"of": "a training before"})
        found = [once(), once()]
        noted = [collapse_of(own, "rft") is not None, run.path("evaluate/rft.json").exists()]
        ranks.barrier()  # no process goes on while another one still looks
        stages.recipe = load_recipe(recipe, ["alarms.enabled=false"])
        found.append(once())
        noted.append(collapse_of(own, "rft") is not None)
    return {"found": found, "noted": noted, "asked": asked}
