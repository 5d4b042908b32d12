"""Pickled weights and code of a model's own are refused wherever a model is read, with what to do instead."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sdzero import tiny
from sdzero.errors import UserError
from sdzero.method.teacher import Teacher
from sdzero.models import load_model, load_tokenizer, resolve_path
from sdzero.recipe import ModelSettings
from sdzero.safe_model import check_safe

CPU = ModelSettings(device="cpu")


class Bomb:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.model_folder(), tmp_path / "model"))


READERS: list[Callable[[str], Any]] = [
    resolve_path,
    load_tokenizer,
    lambda path: load_model(path, CPU),
    lambda path: Teacher.load(path, torch.float32, "cpu"),
]


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "a.ckpt", "w.pth"]
)
def test_pickled_weights_are_refused_and_never_loaded(folder: Path, tmp_path: Path, name: str) -> None:
    mark = tmp_path / "it-ran"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    for read in READERS:
        with pytest.raises(UserError, match="pickled weights") as error:
            read(str(folder))
        assert error.value.where == str(folder / name)
        assert "save_pretrained" in str(error.value.todo)
    assert not mark.exists()


def test_beside_safetensors_they_are_to_be_removed(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError) as error:
        load_model(str(folder), CPU)
    assert "remove the file" in str(error.value.todo)


def test_a_pickled_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    (adapter / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"adapter_model\.bin"):
        load_model(str(adapter), CPU)


def test_what_a_trainer_leaves_in_a_checkpoint_is_no_model(folder: Path) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (folder / name).write_bytes(b"")
    with pytest.raises(UserError, match="pickled weights"):
        check_safe(folder)
    (folder / "trainer_state.json").write_text("{}")
    check_safe(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        check_safe(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_its_own_is_refused_and_never_run(folder: Path, tmp_path: Path, name: str) -> None:
    mark = tmp_path / "it-ran"
    (folder / "modeling_own.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Own: ...\n")
    values = json.loads((folder / name).read_text())
    own = {"AutoModelForCausalLM": "modeling_own.Own", "AutoTokenizer": ["modeling_own.Own", None]}
    (folder / name).write_text(json.dumps(values | {"auto_map": own}))
    for read in READERS:
        with pytest.raises(UserError, match="code of its own") as error:
            read(str(folder))
        assert error.value.where == str(folder / name)
        assert "`auto_map`" in str(error.value.todo)
    assert not mark.exists()


def test_safe_folders_and_damaged_ones_go_on_to_their_reader(folder: Path) -> None:
    check_safe(folder)
    (folder / "config.json").write_text("{")
    check_safe(folder)
