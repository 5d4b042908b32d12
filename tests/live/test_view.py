"""What is read of a run from its folder while another process works on it."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sdzero.errors import UserError
from sdzero.ledger import Ledger
from sdzero.live.display import LiveRun, curve, progress_text, render
from sdzero.live.pace import Pace, duration
from sdzero.live.plan import planned_stages, work_of
from sdzero.live.tail import Tail
from sdzero.live.view import RunReader, find_run, holder
from sdzero.live.watch import watch
from sdzero.recipe_io import load_recipe
from sdzero.run_dir import RunDir
from sdzero.step_log import StepLog
from support import environment, micro_recipe


def step(number: int, **more: Any) -> dict[str, Any]:
    own = {"rollout_seconds": 1.0, "update_seconds": 2.0, "divergence_r0": 0.2, "divergence_r1": 0.1}
    return {"step": number, "max_steps": 6, "loss": 0.5, "reward": 0.25, "tokens": 20.0, **own, **more}


def begun(folder: Path) -> RunDir:
    """A run in phase 2: collection and SRT are done, and some steps are made."""
    run = RunDir.open(folder, load_recipe(micro_recipe(folder.parent)))
    ledger = Ledger(run.path("ledger.jsonl"))
    for number in range(2):
        key = f"collect/round-1/initial/batch-{number:05d}.jsonl"
        ledger.record("collect", key, responses=12, sampled_tokens=240, seconds=2.0)
    run.mark_done("collect/round-1")
    ledger.record("srt", "srt/round-1/0/to-step-000008", trained_tokens=800, seconds=4.0)
    run.mark_done("srt/round-1")
    log = StepLog(run, "distill/log.jsonl")
    for number in (1, 2):
        key = f"distill/rollouts/step-{number - 1:06d}.jsonl"
        ledger.record("distill", key, responses=4, sampled_tokens=80, seconds=1.0)
        ledger.record("distill", f"update-{number:06d}", trained_tokens=80, seconds=2.0)
        log.append(step(number))
    return run


def test_a_run_at_work(tmp_path: Path) -> None:
    with begun(tmp_path / "run") as run:
        view = RunReader(run.root).look()
    assert view.state == "running"
    assert view.process is not None
    states = {stage.name: stage.state for stage in view.stages}
    assert states["collect/round-1"] == states["srt/round-1"] == "done"
    assert states["distill"] == "now"
    assert states["rft"] == states["evaluate/sdzero"] == "waiting"
    assert (view.part, view.done, view.total, view.unit) == ("distill/steps", 2, 6, "steps")
    assert view.seconds_left == pytest.approx(4 * 3.0)
    assert view.speed.responses_per_second == pytest.approx(4.0)
    assert view.speed.tokens_per_second == pytest.approx(80.0)
    assert (view.reward, view.length, view.loss) == (0.25, 20.0, 0.5)
    assert view.divergence == {"divergence_r0": pytest.approx(0.2), "divergence_r1": pytest.approx(0.1)}
    assert (view.responses, view.sampled_tokens, view.trained_tokens) == (32, 640, 960)


def test_only_what_is_new_is_read_and_a_resumed_log_is_read_anew(tmp_path: Path) -> None:
    with begun(tmp_path / "run") as run:
        reader = RunReader(run.root)
        reader.look()
        StepLog(run, "distill/log.jsonl").append(step(3, reward=1.0))
        view = reader.look()
        assert view.done == 3
        assert view.rewards == (0.25, 0.25, 1.0)
        StepLog(run, "distill/log.jsonl").append(step(2, reward=0.5))  # a resumed process makes it again
        assert reader.look().rewards == (0.25, 0.5)


def test_a_run_that_nobody_works_on(tmp_path: Path) -> None:
    begun(tmp_path / "run").close()
    view = RunReader(tmp_path / "run").look()
    assert (view.state, view.process, view.seconds_left) == ("stopped", None, None)


def test_looking_changes_nothing_and_leaves_the_lock_to_others(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    with run.path("ledger.jsonl").open("a") as ledger:
        ledger.write('{"stage": "distill", "key"')  # a line that is being written
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    reader = RunReader(run.root)
    assert reader.look().responses == 32
    run.close()
    assert reader.look().state == "stopped"
    assert holder(run.root) is None
    assert {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()} == before
    RunDir.open(run.root, load_recipe(run.root / "recipe.yaml")).close()


def test_a_finished_run(micro_run: Path) -> None:
    view = RunReader(micro_run).look()
    assert view.state == "finished"
    assert {stage.state for stage in view.stages} == {"done"}
    assert [stage.name for stage in view.stages] == planned_stages(load_recipe(micro_run / "recipe.yaml"))
    budget = json.loads((micro_run / "results.json").read_text())["budget"]["by_stage"]
    assert view.responses == sum(own["responses"] for own in budget.values())


def test_how_much_each_part_samples_is_what_a_run_samples(micro_run: Path) -> None:
    """The plan's totals against the ledger of a real run: exact, or where it says so, not exceeded."""
    recipe = load_recipe(micro_run / "recipe.yaml")
    sampled: dict[str, int] = {}
    for line in (micro_run / "ledger.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["responses"]:
            part = row["key"].rpartition("/")[0]
            sampled[part] = sampled.get(part, 0) + row["responses"]
    known = {part: work for part in sampled if (work := work_of(recipe, part, sampled)) is not None}
    assert {"collect/round-1/initial", "collect/round-1/revised", "rft/responses"} <= set(known)
    for part, work in known.items():
        assert sampled[part] == work.total or (work.at_most and sampled[part] <= work.total), part


def test_of_several_runs_the_last_at_work(tmp_path: Path) -> None:
    begun(tmp_path / "runs/seed-0").close()
    with begun(tmp_path / "runs/seed-1") as second:
        Ledger(second.path("ledger.jsonl")).record("distill", "update-000003", seconds=1.0)
        (second.path("ledger.jsonl")).touch()
        assert find_run(tmp_path / "runs") == second.root
    with pytest.raises(UserError, match="no such folder"):
        find_run(tmp_path / "none")
    with pytest.raises(UserError, match="no run here"):
        find_run(second.root / "distill")


def test_watching_ends_when_the_run_ends(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    lines: list[str] = []
    looks = iter([lambda: StepLog(run, "distill/log.jsonl").append(step(3)), lambda: None, run.close])
    watch(run.root, Console(), as_json=True, write=lines.append, sleep=lambda seconds: next(looks)())
    views = [json.loads(line) for line in lines]
    assert [(view["state"], view["done"]) for view in views] == [
        ("running", 2),
        ("running", 3),
        ("stopped", 3),
    ]


def test_watching_once(tmp_path: Path) -> None:
    lines: list[str] = []
    with begun(tmp_path / "run") as run:
        watch(run.root, Console(), once=True, write=lines.append)
    text = "\n".join(lines)
    assert "distill/steps: 2 of 6 steps, left 12 s" in text
    assert "80 tokens/s" in text
    assert "divergence wrong 0.2000, right 0.1000" in text


def test_watching_on_a_terminal_keeps_one_display(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, _environ={"TERM": "xterm"})
    looks = iter([lambda: StepLog(run, "distill/log.jsonl").append(step(3)), run.close])
    watch(run.root, console, sleep=lambda seconds: next(looks)())
    shown = screen.getvalue()
    assert "2 of 6 steps" in shown
    assert "3 of 6 steps" in shown
    assert "\x1b[1A" in shown, "the lines before are written over"
    assert "running" in shown
    assert "stopped" in shown


def test_watching_imports_no_torch(tmp_path: Path) -> None:
    begun(tmp_path / "run").close()
    code = (
        f"import sys; sys.argv = ['sdzero', 'watch', {str(tmp_path / 'run')!r}, '--once']\n"
        "from sdzero.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end: print('ENDED', end.code)\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert "ENDED 0" in done.stdout, done.stderr
    assert "HEAVY []" in done.stdout


def test_the_display_has_as_many_lines_whatever_is_known(tmp_path: Path) -> None:
    console = Console(width=160, record=True)
    RunDir.open(tmp_path / "new", load_recipe(micro_recipe(tmp_path))).close()
    begun(tmp_path / "run").close()
    heights = []
    for name in ("new", "run"):
        console.print(render(RunReader(tmp_path / name).look()))
        text = console.export_text()
        heights.append(len(text.splitlines()))
    assert heights[0] == heights[1]
    assert "[distill]" in text
    assert "2 of 6 steps" in text


def test_the_live_display_takes_progress_from_the_run_itself(tmp_path: Path) -> None:
    console = Console(width=120, force_terminal=True, record=True, file=(tmp_path / "screen").open("w"))
    with begun(tmp_path / "run") as run, LiveRun(console, run.root) as live:
        live("distill/steps", 4, 6)
        console.print(live._look())
    assert "4 of 6 steps" in console.export_text()


def test_a_file_that_grows(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "rows.jsonl")
    assert tail.read() == []
    tail.path.write_text('{"a": 1}\n{"a": 2')
    assert tail.read() == [{"a": 1}]
    tail.path.write_text('{"a": 1}\n{"a": 2}\nno json\n[3]\n')
    assert tail.read() == [{"a": 2}]
    tail.path.write_text('{"a": 9}\n')
    assert tail.read() == [{"a": 9}]
    assert tail.started_over


def test_the_time_left_is_counted_from_the_first_note() -> None:
    now = [100.0]
    pace = Pace(lambda: now[0])
    pace.note("a", 50, 100)  # found finished
    assert pace.seconds_left() is None
    now[0] = 110.0
    pace.note("a", 60, 100)
    assert pace.seconds_left() == pytest.approx(40.0)
    pace.note("b", 1, 2)
    assert pace.seconds_left() is None


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (4.4, "4 s"), (125, "2 min 05 s"), (12_000, "3 h 20 min"), (1e5, "1 d 03 h")],
)
def test_times_for_people(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


def test_progress_and_curve() -> None:
    assert progress_text(3, 10, True, "responses") == "3 of at most 10 responses"
    assert progress_text(3, None, False, "responses") == "3 responses"
    assert curve((0.0, 0.5, 1.0)) == " ▄█"
