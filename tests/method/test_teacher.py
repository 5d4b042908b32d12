import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sdzero.errors import UserError
from sdzero.method.teacher import TEACHER_STATE, TEACHER_WEIGHTS, Teacher, fingerprint


def make_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=11,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=True,
        )
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "srt")
    return tmp_path / "srt"


def load(folder: Path) -> Teacher:
    return Teacher.load(folder, torch.float32, "cpu")


def test_it_holds_the_checkpoints_weights_frozen(folder: Path) -> None:
    teacher = load(folder)
    assert teacher.fingerprint == fingerprint(make_model())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not teacher.model.training


def test_a_fingerprint_changes_with_one_bit(folder: Path) -> None:
    model = make_model()
    before = fingerprint(model)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nextafter(model.model.norm.weight[0], torch.tensor(9.0))
    assert fingerprint(model) != before


def test_a_sync_copies_and_does_not_share(folder: Path) -> None:
    teacher, student = load(folder), make_model(seed=1)
    teacher.sync(student)
    assert teacher.sync_count == 1
    assert teacher.fingerprint == fingerprint(student)
    synced = teacher.fingerprint
    with torch.no_grad():
        student.model.embed_tokens.weight.add_(1.0)
    assert fingerprint(teacher.model) == synced
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_a_synced_teacher_is_restored(folder: Path, tmp_path: Path) -> None:
    teacher = load(folder)
    teacher.sync(make_model(seed=1))
    teacher.save(tmp_path)
    again = load(folder)
    again.restore(tmp_path)
    assert (again.fingerprint, again.sync_count) == (teacher.fingerprint, 1)


def test_a_teacher_that_was_never_synced_saves_no_weights(folder: Path, tmp_path: Path) -> None:
    teacher = load(folder)
    teacher.save(tmp_path)
    assert not (tmp_path / TEACHER_WEIGHTS).exists()
    load(folder).restore(tmp_path)


def test_another_teacher_is_refused_on_resume(folder: Path, tmp_path: Path) -> None:
    load(folder).save(tmp_path)
    state = json.loads((tmp_path / TEACHER_STATE).read_text())
    (tmp_path / TEACHER_STATE).write_text(json.dumps(state | {"fingerprint": "0" * 16}))
    with pytest.raises(UserError, match="not those the run was saved with"):
        load(folder).restore(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a model folder"):
        load(tmp_path)


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_a_teacher_that_follows_is_the_mean_by_hand(folder: Path, decay: float) -> None:
    teacher, student = load(folder), make_model(seed=1)
    before = {name: p.clone() for name, p in teacher.model.named_parameters()}
    for _ in range(2):
        teacher.follow(student, decay)
    for name, parameter in student.named_parameters():
        once = decay * before[name] + (1 - decay) * parameter
        twice = decay * once + (1 - decay) * parameter
        torch.testing.assert_close(dict(teacher.model.named_parameters())[name], twice)
    assert (teacher.steps_followed, teacher.sync_count) == (2, 0)
    assert teacher.fingerprint == fingerprint(teacher.model)


def test_small_steps_are_not_lost_in_bfloat16(folder: Path) -> None:
    teacher = Teacher.load(folder, torch.bfloat16, "cpu")
    student = make_model().to(torch.bfloat16)
    with torch.no_grad():
        student.model.norm.weight.fill_(1.5)  # from 1: a step of 0.001 * 0.5 is below bfloat16's 2 ** -7
    for _ in range(100):
        teacher.follow(student, 0.999)
    expected = 1.5 - 0.5 * 0.999**100
    assert teacher.model.model.norm.weight[0].item() == pytest.approx(expected, abs=2**-7)
    assert teacher.model.model.norm.weight[0].item() > 1.03
    assert teacher.model.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_teacher_that_followed_is_restored_with_its_mean(
    folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    teacher, student = Teacher.load(folder, dtype, "cpu"), make_model(seed=1).to(dtype)
    teacher.follow(student, 0.9)
    teacher.save(tmp_path)
    again = Teacher.load(folder, dtype, "cpu")
    again.restore(tmp_path)
    assert (again.fingerprint, again.steps_followed) == (teacher.fingerprint, 1)
    for one in (teacher, again):
        one.follow(student, 0.9)
    assert again.fingerprint == teacher.fingerprint
