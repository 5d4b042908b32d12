"""The doctor's look at the plan: the same peak as `sdzero plan`, and a warning that names what is enough."""

from pathlib import Path

from sdzero.onprem.findings import Subject
from sdzero.onprem.hardware import hardware_named, this_cpu
from sdzero.onprem.model_shape import shape_of
from sdzero.onprem.plan import make_plan
from sdzero.onprem.plan_check import device_here, finding_of, planned_memory
from sdzero.onprem.plan_setting import Setting
from sdzero.recipe_io import load_recipe

ROOT = Path(__file__).parents[2]
MATH = ROOT / "recipes/qwen3-4b-math.yaml"


def test_the_demo_fits_this_machine() -> None:
    recipe = load_recipe(ROOT / "recipes/demo.yaml", [])
    (found,) = planned_memory(Subject(recipe))
    assert found.held
    assert not found.is_warning
    assert f"{make_plan(recipe, 'cpu').peak / 1e9:.1f} GB" in found.detail
    assert device_here(recipe).memory == this_cpu().memory


def test_what_does_not_fit_is_a_warning_with_what_is_enough() -> None:
    recipe = load_recipe(MATH, ["rollout.batch_size=32"])
    setting = Setting(recipe, shape_of(recipe.model.path), hardware_named("1xH100-80GB"))
    found = finding_of(setting)
    assert found.is_warning
    assert "does not fit" in found.detail
    assert "rollout.batch_size=" in found.todo
    fitting = setting.with_recipe(load_recipe(MATH, ["rollout.batch_size=4"]))
    assert not finding_of(fitting).is_warning


def test_a_model_of_another_kind_is_not_planned(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    recipe = load_recipe(ROOT / "recipes/demo.yaml", [f"model.path={tmp_path}"])
    (found,) = planned_memory(Subject(recipe))
    assert found.held
    assert "not planned" in found.detail


def test_nothing_is_planned_for_a_model_that_is_not_here() -> None:
    recipe = load_recipe(ROOT / "recipes/demo.yaml", [])
    assert not list(planned_memory(Subject(recipe, failed={"model"})))
    assert not list(planned_memory(Subject()))
