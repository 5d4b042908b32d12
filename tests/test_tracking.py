"""Experiment trackers are given what the step log gets, and nothing goes out unless the recipe allows it."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdzero import tracking
from sdzero.errors import UserError
from sdzero.onprem.doctor import CHECKS, trackers
from sdzero.onprem.findings import Subject
from sdzero.onprem.offline import goes_online
from sdzero.recipe import Recipe
from sdzero.recipe_io import load_recipe
from sdzero.run_dir import RunDir
from sdzero.step_log import StepLog
from sdzero.tracking import Trackers, open_trackers
from support import micro_recipe, read_jsonl

ROW = {
    "step": 3,
    "max_steps": 9,
    "loss": 0.5,
    "reward": 1,
    "overlong": 0,
    "note": "text",
    "nan": float("nan"),
}


class FakeRun:
    """What `init` of wandb and trackio returns, as far as it is used."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.defined: list[tuple[Any, ...]] = []
        self.finished = False

    def log(self, values: dict[str, Any]) -> None:
        self.rows.append(values)

    def define_metric(self, *arguments: Any, **keywords: Any) -> None:
        self.defined.append((*arguments, keywords.get("step_metric")))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Modules `wandb` and `trackio` whose `init` keeps what it was called with."""
    calls: dict[str, Any] = {}
    run = FakeRun()

    def init(**keywords: Any) -> FakeRun:
        calls.update(keywords)
        return run

    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=init, __spec__=object()))
    monkeypatch.setattr(tracking, "check_installed", lambda names: None)
    return SimpleNamespace(calls=calls, run=run)


def reporting(recipe: Recipe, *names: str) -> Recipe:
    return recipe.model_copy(update={"report_to": list(names)})


def test_a_tracker_that_is_not_installed_is_told_before_anything(
    micro_settings: Recipe, tmp_path: Path
) -> None:
    names = [name for name in ("wandb", "trackio", "tensorboard") if name not in _installed()]
    for name in names:
        with (
            pytest.raises(UserError, match=f"`{name}` is not installed") as told,
            open_trackers(reporting(micro_settings, name), tmp_path),
        ):
            pass
        assert f"sdzero[{name}]" in str(told.value)
    assert not list(tmp_path.glob("tracking"))


def _installed() -> set[str]:
    import importlib.util

    return {name for name in tracking.PACKAGES if importlib.util.find_spec(name) is not None}


def test_doctor_looks_whether_trackers_are_installed(micro_settings: Recipe, fake: Any) -> None:
    (finding,) = trackers(Subject(reporting(micro_settings, "wandb")))
    assert finding.held
    assert "wandb" in finding.detail
    assert list(trackers(Subject(micro_settings))) == []
    assert trackers in CHECKS


def test_an_unknown_tracker_is_a_fault_of_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'mlflow' is not a choice"):
        load_recipe(micro_recipe(tmp_path), ["report_to=[mlflow]"])


def test_wandb_is_offline_and_in_the_run_folder(micro_settings: Recipe, tmp_path: Path, fake: Any) -> None:
    with open_trackers(reporting(micro_settings, "wandb"), tmp_path / "runs/demo") as opened:
        opened.log("srt/round-1", 0, ROW)
    assert fake.calls["mode"] == "offline"
    assert fake.calls["dir"] == str(tmp_path / "runs/demo/tracking/wandb")
    assert fake.calls["name"] == "runs-demo"
    assert fake.calls["config"]["name"] == "micro"
    (row,) = fake.run.rows
    assert math.isnan(row.pop("srt/round-1/nan"))
    expected = {"step": 3, "loss": 0.5, "reward": 1.0, "overlong": 0.0}
    assert row == {f"srt/round-1/{key}": value for key, value in expected.items()}
    assert ("srt/round-1/*", "srt/round-1/step") in fake.run.defined
    assert fake.run.finished


def test_a_recipe_that_is_online_has_wandb_online(micro_settings: Recipe, tmp_path: Path, fake: Any) -> None:
    online = micro_settings.model_copy(update={"online": True})
    with open_trackers(reporting(online, "wandb"), tmp_path):
        assert fake.calls["mode"] == "online"
    assert goes_online(reporting(online, "wandb")) == {"report_to": "wandb"}
    assert goes_online(reporting(micro_settings, "wandb")) == {}


def test_trackio_stays_local(micro_settings: Recipe, tmp_path: Path, fake: Any) -> None:
    with open_trackers(reporting(micro_settings, "trackio"), tmp_path) as opened:
        opened.log("srt", 1, ROW)
    assert fake.calls["embed"] is False
    assert "space_id" not in fake.calls
    assert fake.run.rows[0]["srt-part-1/step"] == 3


def test_a_row_is_kept_in_the_step_log_first(micro_settings: Recipe, tmp_path: Path) -> None:
    order = []

    class Tracker:
        def log(self, stage: str, part: int, step: int, values: Any) -> None:
            order.append((stage, part, step, read_jsonl(tmp_path / "run/distill/log.jsonl")[-1]["step"]))

        def close(self) -> None:
            """There is nothing to close."""

    with RunDir.open(tmp_path / "run", micro_settings) as run:
        log = Trackers([Tracker()]).wrapped("distill", 0, StepLog(run, "distill/log.jsonl").append)
        log(dict(ROW))
    assert order == [("distill", 0, 3, 3)]


def test_trackers_may_be_asked_for_when_a_run_is_resumed(micro_settings: Recipe, tmp_path: Path) -> None:
    RunDir.open(tmp_path / "run", micro_settings).close()
    RunDir.open(tmp_path / "run", reporting(micro_settings, "wandb")).close()


def test_tensorboard_for_real(micro_settings: Recipe, tmp_path: Path) -> None:
    """A resumed training's first step drops those that were logged from it on."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps, loss in (((1, 2, 3), 0.5), ((3, 4), 0.25)):
        with open_trackers(reporting(micro_settings, "tensorboard"), tmp_path) as opened:
            for number in steps:
                opened.log("distill", 0, {"step": number, "max_steps": 4, "loss": loss})
    events = EventAccumulator(str(tmp_path / "tracking/tensorboard/distill"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("loss")] == [
        (1, 0.5),
        (2, 0.5),
        (3, 0.25),
        (4, 0.25),
    ]
