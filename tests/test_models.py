"""Model folders: what can be loaded, and what a user reads when one cannot."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sdzero import tiny
from sdzero.errors import UserError
from sdzero.models import load_model, load_tokenizer, pick_device, resolve_path, save_model
from sdzero.recipe import ModelSettings

CPU = ModelSettings(device="cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded model's folder."""
    return Path(shutil.copytree(tiny.model_folder(), tmp_path / "model"))


def test_the_embedded_model_is_found_by_name() -> None:
    assert Path(resolve_path("tiny")) == tiny.model_folder()
    assert (tiny.model_folder() / "model.safetensors").is_file()


def test_a_hub_id_is_left_as_it_is() -> None:
    assert resolve_path("owner/name") == "owner/name"


@pytest.mark.parametrize("path", ["no-such-folder", "./no/such", "/no/such", "~/x", "a/b/c", ""])
def test_what_is_neither_folder_nor_hub_id_is_refused(path: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        resolve_path(path)
    assert error.value.where == (path or ".")


def test_a_folder_without_a_configuration_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        load_model(str(folder), CPU)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x08\0\0\0\0\0\0\0{broken}"])
def test_damaged_weights_are_a_users_error(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="the model cannot be loaded") as error:
        load_model(str(folder), CPU)
    assert error.value.where == str(folder)


def test_truncated_weights_are_a_users_error(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="the model cannot be loaded"):
        load_model(str(folder), CPU)


def test_missing_weights_are_a_users_error(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="the model cannot be loaded"):
        load_model(str(folder), CPU)


def test_a_damaged_configuration_is_a_users_error(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="the model cannot be loaded"):
        load_model(str(folder), CPU)


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_damaged_tokenizer_is_a_users_error(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="the tokenizer cannot be loaded"):
        load_tokenizer(str(folder))


def test_weights_that_do_not_fit_the_configuration_are_a_users_error(folder: Path) -> None:
    """Otherwise the layers that are missing would start from random numbers, with a warning."""
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="weights"):
        load_model(str(folder), CPU)


def test_a_model_that_is_not_on_the_hub_of_an_offline_machine() -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model("owner/no-such-model", CPU)


def test_a_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        pick_device("cuda")
    assert pick_device("auto") == torch.device("cpu")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", torch.bfloat16), ("float64", torch.float64)])
def test_the_recipes_dtype_is_the_weights(dtype, expected) -> None:
    model = load_model("tiny", ModelSettings(device="cpu", dtype=dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_what_is_saved_is_loaded_again_in_place_of_what_was_there(tmp_path: Path) -> None:
    model, tokenizer = load_model("tiny", CPU), load_tokenizer("tiny")
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("from before")
    (tmp_path / "model.partial").mkdir()  # left by a process that was killed while it saved
    with torch.no_grad():
        next(iter(model.parameters())).add_(1.0)
    save_model(model, tokenizer, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert not (target / "old").exists()
    again = load_model(str(target), CPU)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(again.named_parameters())[name]), name
    text = "1+2?\n\\boxed{3}"
    assert load_tokenizer(str(target)).encode(text) == tokenizer.encode(text)
    assert load_tokenizer(str(target)).chat_template == tokenizer.chat_template
