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
