"""`sdzero plan`: counts, time, cost, switches, calibration, a plan against a run, and the command."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import floor
import pytest
from typer.testing import CliRunner

from sdzero import tiny
from sdzero.bench import bench_recipe
from sdzero.cli import app
from sdzero.errors import UserError
from sdzero.onprem.calibration import read_calibration
from sdzero.onprem.hardware import DEVICES, hardware_named
from sdzero.onprem.model_shape import read_shape, shape_of
from sdzero.onprem.plan import make_plan
from sdzero.onprem.plan_against import against
from sdzero.onprem.plan_cost import Prices, break_even, kilowatt_hours, owned_hour
from sdzero.onprem.plan_sampling import vllm_bytes
from sdzero.onprem.plan_setting import Setting
from sdzero.onprem.plan_time import CPU, assumed_efficiency, operations, rows_at_once, sampling_seconds
from sdzero.onprem.plan_tokens import PHRASE_TOKENS, Sample, Train, assumed_lengths, stages_of, with_given
from sdzero.recipe_io import dump_recipe, load_recipe
from support import environment, micro_recipe

ROOT = Path(__file__).resolve().parents[2]
MATH = ROOT / "recipes/qwen3-4b-math.yaml"


def plan_of(hardware: str, *overrides: str, **keywords: Any) -> Any:
    return make_plan(load_recipe(MATH, overrides), hardware, **keywords)


# ---- counts ----


def test_the_papers_budget_is_counted() -> None:
    """10K initial responses, 3 revisions each, 9K in phase 2: 49K, which every baseline may sample too."""
    plan = plan_of("8xH100-80GB")
    counts = {stage.work.name: stage.work for stage in plan.stages}
    assert counts["collect"].responses == 40_000
    assert counts["distill"].responses == 9_000
    assert counts["rft"].responses == 49_000
    assert plan.methods["sdzero"][0].responses == 49_000
    assert plan.methods["grpo"][0].responses == 49_000 // 128 * 128
    (train,) = counts["srt"].trains
    assert train.sequences == 6_000 * 3
    assert counts["evaluate"].responses == 4 * (500 * 8 + 500)


def test_later_rounds_train_on_all_traces_so_far() -> None:
    recipe = load_recipe(
        MATH, ["collect.rounds=2", "collect.target_initial=null", "collect.target_traces=1000"]
    )
    works = {work.name: work for work in stages_of(recipe, assumed_lengths(recipe))}
    assert works["collect"].samples[0].responses == 12_000
    assert [train.sequences for train in works["srt"].trains] == [3_000, 6_000]


def test_a_checkpoint_of_ones_own_leaves_phase_1_out() -> None:
    recipe = load_recipe(MATH, ["srt.checkpoint=models/srt", "rft.enabled=false"])
    assert [work.name for work in stages_of(recipe, assumed_lengths(recipe))] == ["distill", "evaluate"]


def test_lengths_are_given_by_name_or_for_all() -> None:
    recipe = load_recipe(MATH)
    lengths = with_given(assumed_lengths(recipe), ["4000", "student=6000"], 150, 0.7)
    assert (lengths.base, lengths.srt, lengths.student) == (4000, 4000, 6000)
    assert (lengths.prompt, lengths.right) == (150, 0.7)
    for wrong in ("students=3", "student=0", "long", "student="):
        with pytest.raises(UserError):
            with_given(lengths, [wrong], None, None)


# ---- time ----


def test_operations_are_those_of_the_floor() -> None:
    """The floor counts products one by one; 2 sequences, the teacher's context included."""
    shape = shape_of("allenai/Olmo-3-7B-Instruct")
    sizes = floor.Sizes(
        shape.width,
        shape.inner,
        shape.heads,
        shape.key_heads,
        shape.head_width,
        shape.vocabulary,
        shape.windows,
    )
    lengths = floor.lengths_of([200, 200], PHRASE_TOKENS, [5000, 5000])
    expected = floor.operations(floor.update_products(sizes, lengths))
    recipe = load_recipe(ROOT / "recipes/olmo3-7b-math.yaml", ["model.gradient_checkpointing=false"])
    setting = Setting(recipe, shape, hardware_named("1xH100-80GB"))
    train = Train(2, 5200, 5000, (200 + 2 * 5000 + PHRASE_TOKENS,))
    assert 2 * operations(setting, train) == pytest.approx(expected, rel=1e-3)


def test_checkpointing_and_adapters_change_the_operations() -> None:
    shape = shape_of("Qwen/Qwen3-4B-Instruct-2507")
    train = Train(1, 1000, 0.0)

    def made(*overrides: str) -> float:
        return operations(Setting(load_recipe(MATH, overrides), shape, hardware_named("1xA100-80GB")), train)

    whole = made("model.gradient_checkpointing=false")
    assert made() == pytest.approx(whole * 4 / 3)
    assert whole * 2 / 3 < made("model.gradient_checkpointing=false", "lora.rank=16") < whole * 0.75


def test_decoding_is_bound_by_the_weights_that_are_read() -> None:
    """One row on an RTX 4090: reading 8.04 GB takes less than the kernels of 36 layers at 0.6 ms each."""
    recipe = load_recipe(MATH, ["rollout.batch_size=1"])
    setting = Setting(recipe, shape_of(recipe.model.path), hardware_named("1xRTX4090"))
    sample = Sample(1, 1, 10, 100, 100, 1)
    seconds = sampling_seconds(setting, sample, assumed_efficiency(setting))
    assert seconds == pytest.approx(100 * 36 * 6e-4, rel=0.01)
    compiled = setting.with_recipe(load_recipe(MATH, ["rollout.batch_size=1", "rollout.cuda_graphs=true"]))
    seconds = sampling_seconds(compiled, sample, assumed_efficiency(compiled))
    assert seconds == pytest.approx(100 * setting.weights / (0.7 * 1008e9), rel=0.02)


def test_a_cache_of_vllm_that_is_given_holds_so_many_rows() -> None:
    """Gibibytes, as vLLM is told: the rows that fit are those of the memory that is planned."""
    overrides = ["rollout.engine=vllm", "rollout.vllm.kv_cache_gigabytes=2", "rollout.batch_size=100"]
    recipe = load_recipe(MATH, overrides)
    setting = Setting(recipe, shape_of(recipe.model.path), hardware_named("1xH100-80GB"))
    cache = vllm_bytes(setting, True) - setting.weights
    assert cache == 2 * 2**30
    each = 2 * setting.shape.layers * setting.shape.keys * setting.size
    length = int(cache / each / 4)  # four rows fill it; of 2 * 10^9 bytes there would be three
    assert rows_at_once(setting, Sample(100, 100, 0, length, length, 100)) == 4


# ---- cost ----


def test_cost_worked_by_hand() -> None:
    """8 H100: 1,275 W each with the machine; at 80%, PUE 1.5, 10 hours: 122.4 kWh."""
    hardware = hardware_named("8xH100-80GB")
    prices = Prices(2.0, 350_640, 4.0, 0.5, 0.2, pue=1.5, power_share=0.8)
    assert kilowatt_hours(hardware, 10, prices) == pytest.approx(122.4)
    # 4 years of 8,766 hours, half of them used: 20 an hour, and 12.24 kWh.
    assert owned_hour(hardware, prices) == pytest.approx(20 + 12.24 * 0.2)
    share = break_even(hardware, prices)
    assert share is not None
    again = Prices(2.0, 350_640, 4.0, share, 0.2, pue=1.5, power_share=0.8)
    assert owned_hour(hardware, again) == pytest.approx(8 * 2.0)
    assert break_even(hardware, Prices(0.2, 350_640, energy=0.2)) is None
    with pytest.raises(UserError, match="price is not known"):
        Prices(hardware=1000.0)


# ---- hardware ----


def test_hardware_by_name_and_from_a_file(tmp_path: Path) -> None:
    assert hardware_named("2xa100-80gb").device is DEVICES["A100-80GB"]
    assert hardware_named("RTX4090").count == 1
    assert hardware_named("cpu").device.kind == "cpu"
    assert all(device.source for device in DEVICES.values())
    own = tmp_path / "own.yaml"
    own.write_text("name: mine\ncount: 4\nmemory_gb: 48\nbf16_tflops: 100\nbandwidth_gb_s: 900\nwatts: 300\n")
    hardware = hardware_named(str(own))
    assert (hardware.count, hardware.device.memory, hardware.device.peak) == (4, 48e9, 100e12)
    with pytest.raises(UserError, match="no device `H200`") as unknown:
        hardware_named("H200")
    assert "H200-141GB" in str(unknown.value.todo)
    own.write_text("name: mine\nmemory: 48\n")
    with pytest.raises(UserError, match="memory_gb: Field required"):
        hardware_named(str(own))
    with pytest.raises(UserError, match="cannot be read"):
        hardware_named(str(tmp_path / "none.yaml"))
    own.write_bytes(b"\xff\xfename: x")
    with pytest.raises(UserError, match="not well-formed YAML"):
        hardware_named(str(own))


@pytest.mark.parametrize("name", ["0xcpu", "0xH100-80GB"])
def test_no_device_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no device"):
        hardware_named(name)


def test_a_model_that_is_not_here_needs_its_configuration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not known here") as unknown:
        shape_of("someone/Model-9B")
    assert "--model-config" in str(unknown.value.todo)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    with pytest.raises(UserError, match="type `mixtral`"):
        shape_of("someone/Model-9B", tmp_path)
    assert shape_of("tiny:walks").vocabulary > 0


@pytest.mark.parametrize("size", ["wide", 0, None, [4]])
def test_a_configuration_with_nonsense_in_it_is_told(tmp_path: Path, size: object) -> None:
    known = json.loads((tiny.model_folder() / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(known))
    assert read_shape(tmp_path / "config.json").width == known["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(known | {"num_attention_heads": size}))
    with pytest.raises(UserError, match="no number that a model has"):
        read_shape(tmp_path / "config.json")


# ---- switches ----


def test_switches_are_checked_by_planning_with_them() -> None:
    plan = plan_of("1xH100-80GB", "model.gradient_checkpointing=false", "srt.micro_batch_size=2")
    assert not plan.fits
    assert plan.enough is not None
    again = plan_of(
        "1xH100-80GB",
        "model.gradient_checkpointing=false",
        "srt.micro_batch_size=2",
        *" ".join(plan.enough).split(),
    )
    assert again.fits
    assert again.peak == plan.enough_peak
    assert again.hours == pytest.approx(plan.enough_hours)
    for switch in plan.switches:
        one = plan_of(
            "1xH100-80GB",
            "model.gradient_checkpointing=false",
            "srt.micro_batch_size=2",
            *switch.text.split(),
        )
        assert one.peak == switch.peak
        assert plan.peak - one.peak == switch.saves > 0
        assert one.fits == switch.fits


def test_what_cannot_fit_has_no_switches_that_are_enough() -> None:
    plan = plan_of("1xL4-24GB", "model.path=Qwen/Qwen3-32B")
    assert not plan.fits
    assert plan.enough is None


def test_several_devices_are_offered_sharding() -> None:
    plan = plan_of("4xA100-80GB", "model.path=Qwen/Qwen3-14B", "rollout.batch_size=1")
    assert "--parallel fsdp2" in [switch.text for switch in plan.switches]


def test_devices_that_cannot_share_a_batch_are_refused() -> None:
    with pytest.raises(UserError, match="no multiple of the number of devices"):
        plan_of("3xH100-80GB")


# ---- calibration, and a plan against a run ----


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that did what its plan said, but sampled in twice the time and trained at half of
    the assumed share of the peak."""
    recipe = load_recipe(micro_recipe(tmp_path), ["distill.rehearsal_weight=0"])
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    plan = make_plan(recipe, "cpu", prompt_tokens=20)
    rows = []
    for stage in plan.stages:
        work = stage.work
        common = {"stage": work.name, "joules": None}
        if work.name == "collect":
            for part, sample in zip(("initial", "revised"), work.samples, strict=True):
                key = f"collect/round-1/{part}/batch-00000.jsonl"
                rows.append(common | {"key": key, **sampled(sample.responses, sample.tokens, 1.0)})
        elif work.name == "distill":
            key = "distill/rollouts/step-000000.jsonl"
            seconds = 2 * stage.time.sampling
            rows.append(common | {"key": key, **sampled(work.responses, work.sampled_tokens, seconds)})
            trained = {"trained_tokens": work.trained_tokens, "teacher_tokens": work.teacher_tokens}
            rows.append(common | {"key": "update-000001", "seconds": 2 * stage.time.training} | trained)
    lines = [json.dumps(row) + "\n" for row in rows]
    # A line that is recorded again takes the place of the first; the last one is still being written.
    (folder / "ledger.jsonl").write_text("".join([lines[0].replace("1.0", "7.0"), *lines]) + '{"stage": "dis')
    (folder / "distill").mkdir()
    (folder / "distill/log.jsonl").write_text('{"step": 1, "peak_memory_bytes": 5000}\n')
    return folder


def sampled(responses: int, tokens: float, seconds: float) -> dict[str, float]:
    return {"responses": responses, "sampled_tokens": tokens, "seconds": seconds}


def test_a_run_calibrates_a_plan(run: Path) -> None:
    recipe = load_recipe(run / "recipe.yaml")
    found = read_calibration(run, shape_of("tiny"), hardware_named("cpu"))
    assert found.products == pytest.approx(CPU.products / 2, rel=0.02)
    assert found.decoding == pytest.approx(2.0, rel=0.02)
    assert found.lengths["prompt"] == pytest.approx(20)
    assert found.lengths["student"] == pytest.approx(assumed_lengths(recipe).student)
    kept = run.parent / "calibration.json"
    kept.write_text(found.to_json())
    assert read_calibration(kept, shape_of("tiny"), hardware_named("cpu")) == found
    plan = make_plan(recipe, "cpu", calibration=kept)
    spent = {row["stage"]: row for row in against(plan, run)}["distill"]
    for count in ("responses", "sampled_tokens", "teacher_tokens", "seconds"):
        assert spent["planned"][count] == pytest.approx(spent["spent"][count], rel=0.02)
    assert spent["peak_bytes"] == 5000
    assert spent["planned_peak_bytes"] > 5000
    assert {row["stage"] for row in against(plan, run)} >= {"collect", "srt", "evaluate"}


def test_a_run_of_a_cpu_says_nothing_of_a_gpu(run: Path) -> None:
    with pytest.raises(UserError, match=r"made on a CPU.*1xH100-80GB") as told:
        read_calibration(run, shape_of("tiny"), hardware_named("1xH100-80GB"))
    assert "--measured-on cpu" in str(told.value.todo)


def test_what_is_no_calibration_is_told(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    for text in ("{}", "[]", '{"schema": 1}', "no"):
        own.write_text(text)
        with pytest.raises(UserError, match="no calibration"):
            read_calibration(own, shape_of("tiny"), hardware_named("cpu"))
    with pytest.raises(UserError, match="no such calibration"):
        read_calibration(tmp_path / "none.json", shape_of("tiny"), hardware_named("cpu"))
    with pytest.raises(UserError, match="no run here"):
        read_calibration(tmp_path, shape_of("tiny"), hardware_named("cpu"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("products", 0),
        ("products", "x"),
        ("decoding", float("nan")),
        ("right", 7),
        ("lengths", []),
        ("lengths", {"unknown": 3}),
        ("lengths", {"base": -1}),
    ],
)
def test_a_calibration_with_nonsense_in_it_is_told(run: Path, tmp_path: Path, key: str, value: Any) -> None:
    shape, hardware = shape_of("tiny"), hardware_named("cpu")
    found = read_calibration(run, shape, hardware)
    own = tmp_path / "own.json"
    own.write_text(found.to_json())
    assert read_calibration(own, shape, hardware) == found
    own.write_text(json.dumps(json.loads(found.to_json()) | {key: value}))
    with pytest.raises(UserError, match="no calibration"):
        read_calibration(own, shape, hardware)


def test_damaged_statistics_are_told(run: Path) -> None:
    file = run / "collect/round-1/statistics.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    for text in ("{", "[]", '{"revised": 3}'):
        file.write_text(text)
        with pytest.raises(UserError, match="statistics of a collection are damaged"):
            read_calibration(run, shape_of("tiny"), hardware_named("cpu"))


def test_a_bench_that_cannot_be_kept_is_refused_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdzero.bench.measure", lambda *_: pytest.fail("it began"))
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file/calibration.json", tmp_path):
        arguments = ["bench", str(micro_recipe(tmp_path)), "--hardware", "cpu", "-o", str(output)]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 1
        assert "cannot be written" in done.output


def test_a_damaged_ledger_is_told_with_its_line(run: Path) -> None:
    ledger = run / "ledger.jsonl"
    ledger.write_text("{}\n" + ledger.read_text())
    with pytest.raises(UserError, match="ledger is damaged"):
        read_calibration(run, shape_of("tiny"), hardware_named("cpu"))
    ledger.write_text("nothing\n")
    with pytest.raises(UserError) as damaged:
        read_calibration(run, shape_of("tiny"), hardware_named("cpu"))
    assert "line 1" in str(damaged.value.where)


def test_a_bench_is_phase_2_of_the_recipe_with_few_questions(tmp_path: Path) -> None:
    recipe = load_recipe(micro_recipe(tmp_path))
    small = bench_recipe(recipe, steps=3, questions=6)
    assert (small.data.n2, small.distill.batch_size, small.distill.micro_batch_size) == (18, 6, 2)
    assert small.distill.max_new_tokens == recipe.distill.max_new_tokens
    assert small.distill.rehearsal_weight == 0
    assert bench_recipe(recipe, 2, None).data.n2 == 2 * recipe.distill.batch_size


@pytest.mark.slow
def test_a_bench_measures_and_its_file_is_read(tmp_path: Path) -> None:
    written = tmp_path / "calibration.json"
    recipe = micro_recipe(tmp_path)
    arguments = ["bench", str(recipe), "--hardware", "cpu", "--steps", "2", "-o", str(written)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = read_calibration(written, shape_of("tiny"), hardware_named("cpu"))
    assert found.products is not None
    assert 0 < found.products < 2
    assert found.tokens_per_second is not None
    assert found.tokens_per_second > 0
    assert 1 < found.lengths["student"] <= 64
    assert 1 <= found.lengths["prompt"] < 60


# ---- the page ----


def test_the_page_has_the_tables_of_today() -> None:
    spec = importlib.util.spec_from_file_location("make_plan_page", ROOT / "docs/make_plan_page.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = script.PAGE.read_text()
    assert text == script.with_tables(text), "run `python docs/make_plan_page.py`"


# ---- the command ----


def test_planning_imports_no_torch() -> None:
    """Nor transformers: the command is to be quick."""
    code = (
        "import sys\n"
        "from sdzero.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", code, "plan", str(MATH), "--hardware", "8xH100-80GB", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["hardware"]["count"] == 8


def test_the_command_tells_verdict_switches_and_assumptions() -> None:
    arguments = ["plan", str(MATH), "--hardware", "8xH100-80GB", "--price-per-gpu-hour", "2"]
    too_large = [*arguments, "rollout.batch_size=32"]
    done = CliRunner().invoke(app, [*too_large, "--hardware-price", "300000", "--energy-price", "0.2"])
    assert done.exit_code == 0, done.output
    assert "does not fit" in done.output
    assert "rollout.batch_size=" in done.output
    assert "assumptions:" in done.output
    assert "owning" in done.output
    for method in ("SD-Zero", "RFT", "GRPO", "SDFT"):
        assert method in done.output
    assert CliRunner().invoke(app, [*too_large, "--strict"]).exit_code == 1
    done = CliRunner().invoke(app, [*arguments, "--strict"])
    assert done.exit_code == 0, done.output
    assert "fits 8xH100-80GB" in done.output


def test_json_has_the_plan_and_what_was_spent(run: Path) -> None:
    recipe = str(run / "recipe.yaml")
    done = CliRunner().invoke(app, ["plan", recipe, "--hardware", "cpu", "--against", str(run), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["fits"] is True
    assert found["total"]["hours"] == pytest.approx(sum(s["seconds"] for s in found["stages"]) / 3600)
    assert [row["stage"] for row in found["against"]][:2] == ["collect", "srt"]
    for stage in found["stages"]:
        if stage["memory_bytes"] is not None:
            assert sum(stage["memory_bytes"].values()) <= found["peak_bytes"]


def test_faults_are_told_without_a_traceback() -> None:
    for arguments, told in (
        (["--hardware", "9xP1"], "no device `P1`"),
        (["--hardware", "cpu", "--parallel", "tp"], "no way to share"),
        (["--hardware", "cpu", "--hardware-price", "5"], "price is not known"),
        (["--hardware", "2xL4-24GB", "--parallel", "fsdp2", "lora.rank=8"], "are not sharded"),
    ):
        done = CliRunner().invoke(app, ["plan", str(MATH), *arguments])
        assert done.exit_code == 1
        assert told in done.output
        assert "Traceback" not in done.output
