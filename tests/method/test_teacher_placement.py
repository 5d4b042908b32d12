"""Where the teacher's weights are changes nothing of what is trained: in the host's memory, or sharded.

accelerate's hooks bring weights to an execution device, which here is the CPU: they go through all that they
go through on a GPU, but for the copy.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from data_parallel_work import FSDP2, assert_equal_weights, phase_2, sharded_teacher, with_fsdp, without_fsdp
from distill_bench import QUESTIONS, Bench, make_recipe, placed
from in_ranks import in_ranks
from sdzero.cli import app
from sdzero.dry_run import small_recipe
from sdzero.errors import UserError
from sdzero.method.streamed_teacher import StreamedTeacher
from sdzero.method.teacher import TEACHER_WEIGHTS, Teacher, fingerprint
from sdzero.models import load_model
from sdzero.packed_attention import enable_packing
from sdzero.recipe import ModelSettings, Recipe
from support import environment, micro_recipe, sdzero

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
POSITIONS = torch.tensor([2, 3, 7])
SMALL: dict[str, Any] = {"batch_size": 4, "micro_batch_size": 2, "sync": "steps", "sync_every": 1}


def make_model(seed: int = 0, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=11,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
        )
    )


def streamed(seed: int = 0, tied: bool = False) -> StreamedTeacher:
    return StreamedTeacher(make_model(seed, tied), "here", "cpu")


def bytes_of(model: PreTrainedModel) -> int:
    """What of the model's parameters is anywhere."""
    return sum(p.untyped_storage().size() for p in model.parameters() if p.device.type != "meta")


# ---- in the host's memory ----


@pytest.mark.parametrize("tied", [False, True])
def test_a_streamed_teacher_computes_the_same_bits(tied: bool) -> None:
    teacher, on_device = streamed(tied=tied), Teacher(make_model(tied=tied), "here")
    teacher.check(packed=False)
    assert torch.equal(
        teacher.hidden_states(IDS, POSITIONS, None), on_device.hidden_states(IDS, POSITIONS, None)
    )
    assert torch.equal(teacher.head()[0], on_device.head()[0])
    assert teacher.head()[1] is None
    assert teacher.fingerprint == on_device.fingerprint == fingerprint(make_model(tied=tied))


def test_a_head_with_a_bias_is_brought_with_it() -> None:
    model = make_model()
    model.lm_head = torch.nn.Linear(8, 11)
    expected = model.lm_head.bias.detach().clone()
    bias = StreamedTeacher(model, "here", "cpu").head()[1]
    assert bias is not None
    assert torch.equal(bias, expected)


def test_a_layers_weights_are_there_for_its_own_pass_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = streamed()
    largest = max(p.numel() * p.element_size() for p in make_model().parameters())
    seen: list[int] = []
    after = AlignDevicesHook.post_forward

    def observed(self: Any, module: Any, output: Any) -> Any:
        seen.append(bytes_of(teacher.model))
        return after(self, module, output)

    monkeypatch.setattr(AlignDevicesHook, "post_forward", observed)
    assert bytes_of(teacher.model) == 0
    teacher.hidden_states(IDS, POSITIONS)
    assert max(seen) == largest
    assert bytes_of(teacher.model) == 0


def test_its_passes_are_made_where_it_is_told() -> None:
    """The device without data stands for a GPU: ids, positions and the head have to be brought there."""
    model = make_model()
    enable_packing(model)
    teacher = StreamedTeacher(model, "here", "meta")
    assert teacher.device.type == "meta"
    found = teacher.hidden_states(IDS.to("meta"), POSITIONS, lengths=[3, 5])
    assert (found.device.type, found.shape) == ("meta", (3, 8))
    assert teacher.head()[0].device.type == "meta"
    assert all(weight.device.type == "cpu" for weight in teacher.weights().values())


def test_packed_rows_are_read_as_on_the_device() -> None:
    models = make_model(), make_model()
    for model in models:
        enable_packing(model)
    teacher, on_device = StreamedTeacher(models[0], "here", "cpu"), Teacher(models[1], "here")
    teacher.check(packed=True)
    found = [one.hidden_states(IDS, POSITIONS, lengths=[3, 5]) for one in (teacher, on_device)]
    assert torch.equal(*found)
    assert not torch.equal(found[0], teacher.hidden_states(IDS, POSITIONS))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sync_mean_and_what_is_saved_are_those_of_a_teacher_on_the_device(
    tmp_path: Path, tied: bool, dtype: torch.dtype
) -> None:
    student = make_model(seed=1, tied=tied).to(dtype)

    def teachers() -> list[Teacher]:
        models = [make_model(tied=tied).to(dtype) for _ in range(2)]
        return [StreamedTeacher(models[0], "here", "cpu"), Teacher(models[1], "here")]

    start = streamed(tied=tied).fingerprint
    for number, act in enumerate(
        (
            lambda one: one.sync(student),
            lambda one: one.follow(student, 0.9),
            lambda one: (one.sync(student), one.follow(make_model(2, tied).to(dtype), 0.75)),
        )
    ):
        first, second = teachers()
        for name, one in (("streamed", first), ("device", second)):
            act(one)
            (tmp_path / f"{name}-{number}").mkdir()
            one.save(tmp_path / f"{name}-{number}")
        assert first.fingerprint == second.fingerprint != start
        assert torch.equal(first.hidden_states(IDS, POSITIONS), second.hidden_states(IDS, POSITIONS))
        assert torch.equal(first.head()[0], second.head()[0])
        saved = [tmp_path / f"{name}-{number}" / TEACHER_WEIGHTS for name in ("streamed", "device")]
        assert saved[0].read_bytes() == saved[1].read_bytes()
        # Saved by one and taken up by the other, it goes on the same.
        again, other = teachers()
        again.restore(tmp_path / f"device-{number}")
        other.restore(tmp_path / f"streamed-{number}")
        for one in (first, again, other):
            one.follow(student, 0.9)
        assert first.fingerprint == again.fingerprint == other.fingerprint


def test_training_and_resuming_do_not_depend_on_it(tmp_path: Path) -> None:
    """Two steps with a teacher on the device; and one, a kill, and one, with one in the host's memory."""
    whole = Bench(tmp_path / "device", QUESTIONS[:8], **SMALL)
    whole.train()
    settings = SMALL | {"teacher_placement": "cpu", "checkpoint_every": 1}
    cut = Bench(tmp_path / "cpu", QUESTIONS[:8], **settings)
    cut.train_until(1)
    again = Bench(tmp_path / "cpu", QUESTIONS[:8], **settings)
    assert isinstance(again.teacher, StreamedTeacher)
    assert [row["step"] for row in again.train()] == [2]
    assert again.teacher.sync_count == whole.teacher.sync_count == 1
    assert fingerprint(again.model) == fingerprint(whole.model)
    assert again.teacher.fingerprint == whole.teacher.fingerprint


def test_a_model_that_is_elsewhere_is_not_streamed() -> None:
    with pytest.raises(ValueError, match="host's memory"):
        StreamedTeacher(make_model().to("meta"), "here", "cpu")


# ---- what cannot be ----


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"distill.teacher_placement": "gpu"}, "teacher_placement"),
        ({"lora": {}, "distill.teacher_placement": "sharded"}, "LoRA does not run under"),
        ({"lora": {"teacher": "copy"}, "distill.teacher_placement": "sharded"}, "LoRA does not run under"),
        ({"lora": {}, "distill.teacher_placement": "cpu"}, "none to be placed"),
    ],
)
def test_placements_that_make_no_sense_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Recipe.model_validate(changed(changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"distill.teacher_placement": "cpu"},
        {"distill.teacher_placement": "sharded"},
        {"lora": {"teacher": "copy"}, "distill.teacher_placement": "cpu"},
        {"lora": {}, "distill.teacher": "x", "distill.teacher_placement": "cpu"},
    ],
)
def test_and_those_that_do_are_taken(changes: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(changed(changes))
    assert recipe.distill.teacher_placement == changes["distill.teacher_placement"]
    assert small_recipe(recipe, Path("x"), {}).distill.teacher_placement == "device"


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    values = make_recipe().model_dump(exclude_unset=True)
    for key, value in changes.items():
        section, _, name = key.partition(".")
        values[section] = values[section] | {name: value} if name else value
    return values


def test_without_fsdp_there_is_nothing_to_shard_with(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="FSDP is not asked for"):
        placed(make_model(), "here", "sharded")
    recipe = micro_recipe(tmp_path, {"distill": {"teacher_placement": "sharded"}})
    result = CliRunner().invoke(app, ["run", str(recipe), "-o", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert "distill.teacher_placement" in result.output
    assert not (tmp_path / "run/collect").exists(), "it is told before anything is sampled"


# ---- sharded ----


def assert_as_alone(found: dict[str, Any], alone: dict[str, Any]) -> None:
    for who in ("student", "teacher"):
        assert_equal_weights(found[who], alone[who], 1e-10)
    for row, expected in zip(found["metrics"], alone["metrics"], strict=True):
        assert row == pytest.approx(expected, rel=1e-6)


def test_a_sharded_teacher_trains_as_that_of_one_process(tmp_path: Path) -> None:
    """Synced in between; of the last batch of one question, one of the processes has nothing for the teacher
    to read, and joins the other's pass."""
    (alone,) = in_ranks(partial(phase_2, questions=9), tmp_path / "one", processes=1)
    both = in_ranks(partial(sharded_teacher, questions=9), tmp_path / "two")
    for found in both:
        assert found["sharded"]
        assert found["syncs"] == 1
        assert_as_alone(found, alone)
        half = found["whole"] / 2
        assert max(found["between"]) < 1.01 * half, "outside a pass there are its shards alone"
        assert half < max(found["inside"]) < half + found["whole"] / 2, "never all layers at a time"
    assert len(both[0]["joins"]) < len(both[1]["joins"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"sync": "never", "sync_every": None, "teacher_decay": 0.5}, {"contrast": 0.5}],
    ids=["mean", "contrast"],
)
def test_a_sharded_teacher_with_other_options(tmp_path: Path, changes: dict[str, Any]) -> None:
    (alone,) = in_ranks(partial(phase_2, questions=9, **changes), tmp_path / "one", processes=1)
    for found in in_ranks(partial(sharded_teacher, questions=9, **changes), tmp_path / "two"):
        assert_as_alone(found, alone)


@pytest.mark.slow
def test_three_steps_with_a_sharded_teacher_are_two_and_one(tmp_path: Path) -> None:
    expected, _ = in_ranks(sharded_teacher, tmp_path / "whole")
    settings = {"teacher_placement": "sharded"}
    cut = in_ranks(partial(with_fsdp, phase_2, stop_after=2, **settings), tmp_path / "cut")
    assert [row["step"] for row in cut[0]["reported"]] == [1, 2]
    resumed = in_ranks(partial(with_fsdp, phase_2, **settings), tmp_path / "cut")
    for own in resumed:
        for who in ("student", "teacher"):
            assert all(torch.equal(own[who][name], weight) for name, weight in expected[who].items())
    assert [row["step"] for row in resumed[0]["metrics"]] == [3]


@pytest.mark.slow
@pytest.mark.parametrize("setting", [with_fsdp, without_fsdp], ids=["fsdp2", "ddp"])
def test_several_processes_each_with_a_streamed_teacher(tmp_path: Path, setting: Any) -> None:
    (alone,) = in_ranks(phase_2, tmp_path / "one", processes=1)
    work = partial(setting, phase_2, teacher_placement="cpu")
    for found in in_ranks(work, tmp_path / "two"):
        assert_as_alone(found, alone)


@pytest.mark.slow
def test_a_whole_run_by_the_command_names_the_srt_model_as_its_sharded_teacher(tmp_path: Path) -> None:
    changes: dict[str, dict[str, Any]] = {
        "data": {"n1": 12, "n2": 8, "test": 2, "tuning": 0},
        "distill": {"rehearsal_weight": 0.0, "sync": "steps", "sync_every": 1, "learning_rate": 1e-3},
        "rft": {"enabled": False},
    }
    changes["distill"]["teacher_placement"] = "sharded"
    folder = tmp_path / "run"
    threads = environment() | FSDP2 | {"OMP_NUM_THREADS": "1"}
    recipe = micro_recipe(tmp_path, changes)
    done = sdzero("run", recipe, "-o", folder, "--num-processes", "2", env=threads, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    srt = load_model(str(folder / "srt/round-1/model"), ModelSettings(device="cpu"))
    assert f"teacher {fingerprint(srt)}" in " ".join(done.stdout.split())
    facts = json.loads((folder / "stages/distill.json").read_text())["info"]
    assert facts["syncs"] == 1
    assert facts["teacher"] != fingerprint(srt)
