"""What a recipe needs that is not in it, and the recipe as it is in a bundle."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sdzero import tiny
from sdzero.errors import UserError
from sdzero.onprem.bundle import Order, bring, make_bundle
from sdzero.onprem.bundle_files import Journal, check_name, copy_any, sum_of
from sdzero.onprem.bundle_recipe import extras_of, needs_of, within_bundle
from sdzero.onprem.wheel_metadata import Target
from sdzero.recipe import Recipe
from sdzero.recipe_io import load_recipe
from support import micro_recipe


def recipe_of(folder: Path, *overrides: str) -> Recipe:
    return load_recipe(micro_recipe(folder), overrides)


def test_an_embedded_model_and_made_questions_need_nothing(tmp_path: Path) -> None:
    assert needs_of(recipe_of(tmp_path)) == []
    assert extras_of(recipe_of(tmp_path)) == []


def test_models_and_files_have_places_of_their_own(tmp_path: Path) -> None:
    for place in ("a/model", "b/model", "packages"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "rows.jsonl").write_text("")
    recipe = recipe_of(
        tmp_path,
        f"model.path={tmp_path}/a/model",
        f"distill.teacher={tmp_path}/b/model",
        "data.source=jsonl",
        f"data.path={tmp_path}/rows.jsonl",
        "verifier.name=code",
        "verifier.timeout_seconds=100",
        f"verifier.sandbox.packages={tmp_path}/packages",
        "online=true",
    )
    needs = needs_of(recipe)
    assert {need.key: need.place for need in needs} == {
        "model.path": "models/model",
        "distill.teacher": "models/2-model",
        "data.path": "data/rows.jsonl",
        "verifier.sandbox.packages": "data/packages",
    }
    inside = within_bundle(recipe, needs)
    assert inside.distill.teacher == "models/2-model"
    assert inside.verifier.sandbox.packages == "data/packages"
    assert not inside.online
    changed = {"model", "distill", "data", "verifier", "online"}
    assert inside.model_dump(exclude=changed) == recipe.model_dump(exclude=changed)


def test_one_folder_that_is_named_twice_comes_along_once(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    recipe = recipe_of(tmp_path, f"model.path={tmp_path}/model", f"distill.teacher={tmp_path}/model")
    assert {need.place for need in needs_of(recipe)} == {"models/model"}


def test_hub_ids_are_fetched_and_a_file_of_questions_never_is(tmp_path: Path) -> None:
    (model,) = needs_of(recipe_of(tmp_path, "model.path=owner/name"))
    assert (model.is_on_hub, model.source, model.place) == (True, "owner/name", "models/owner--name")
    with pytest.raises(UserError, match="no such file") as refused:
        needs_of(recipe_of(tmp_path, "data.source=jsonl", "data.path=data/rows.jsonl"))
    assert refused.value.where == "data.path: data/rows.jsonl"


def test_a_verifier_of_the_users_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grading").mkdir()
    (tmp_path / "grading/__init__.py").write_text("")
    (tmp_path / "single.py").write_text("")
    monkeypatch.chdir(tmp_path)
    for name, source in (("grading.strict:Verifier", "grading"), ("single:grade", "single.py")):
        (code,) = needs_of(recipe_of(tmp_path, f"verifier.name={name}"))
        assert (code.kind, Path(code.source), code.place) == ("code", tmp_path / source, f"code/{source}")
    with pytest.raises(UserError, match="no module `absent`"):
        needs_of(recipe_of(tmp_path, "verifier.name=absent:grade"))
    with pytest.raises(UserError, match="of an installed package"):
        needs_of(recipe_of(tmp_path, "verifier.name=torch:grade"))


def test_benchmarks_from_the_hub_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="come from the hub"):
        needs_of(recipe_of(tmp_path, "suite.name=math6"))


@pytest.mark.parametrize(
    ("overrides", "extras"),
    [
        (["rollout.engine=vllm"], ["vllm"]),
        (["rollout.engine=vllm", "rollout.vllm={mode: server, url: 'http://127.0.0.1:8000'}"], []),
        (["distill.optimizer=adamw_8bit"], ["bitsandbytes"]),
        (["model.quantization=4bit", "lora={}"], ["bitsandbytes"]),
        (
            ["data={source: humaneval, n1: 1, n2: 1, tuning: 1, test: 1}", "sft=null", "sdft=null"],
            ["humaneval"],
        ),
    ],
)
def test_extras_follow_from_the_recipe(tmp_path: Path, overrides: list[str], extras: list[str]) -> None:
    assert extras_of(recipe_of(tmp_path, *overrides)) == extras


def test_without_the_extra_it_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdzero.onprem.sbom.importlib.util.find_spec", lambda name: None)
    order = Order(recipe_of(tmp_path), Target("x86_64", (2, 28), (3, 11)), tmp_path, None)
    with pytest.raises(UserError, match="cyclonedx-python-lib") as refused:
        make_bundle(order, tmp_path / "b", lambda text: None)
    assert "sdzero[bundle]" in str(refused.value.todo)
    assert not (tmp_path / "b.partial").exists()


def test_what_is_on_the_hub_is_fetched_and_looked_at(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def fetch(hub_id: str, kind: str, folder: Path) -> None:
        asked.append((hub_id, kind))
        shutil.copytree(tiny.model_folder(), folder, dirs_exist_ok=True)

    (model,) = needs_of(recipe_of(tmp_path, "model.path=owner/name"))
    to = tmp_path / "bundle" / model.place
    assert bring(model, to, journal_of(tmp_path / "bundle"), fetch) == []
    assert asked == [("owner/name", "model")]
    assert (to / "model.safetensors").is_file()
    (to / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights in safetensors"):
        bring(model, to, journal_of(tmp_path / "bundle"), lambda *_: None)


# ---- copying ----


def journal_of(root: Path) -> Journal:
    return Journal(root, root / ".making/journal.jsonl")


def copy_of_tiny(place: Path) -> tuple[Path, Path]:
    source, root = place / "source", place / "bundle"
    shutil.copytree(tiny.model_folder(), source)
    root.mkdir()
    return source, root


def test_a_model_without_safetensors_and_an_adapter_are_refused(tmp_path: Path) -> None:
    source, root = copy_of_tiny(tmp_path)
    (source / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="the model is an adapter"):
        copy_any(source, root / "m", journal_of(root), is_model=True)
    (source / "adapter_config.json").unlink()
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(UserError, match="no weights in safetensors"):
        copy_any(source, root / "m", journal_of(root), is_model=True)


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    source, root = copy_of_tiny(tmp_path)
    (source / "model.safetensors").rename(tmp_path / "blob")
    (source / "model.safetensors").symlink_to(tmp_path / "blob")
    copy_any(source, root / "m", journal_of(root), is_model=True)
    assert not (root / "m/model.safetensors").is_symlink()
    assert sum_of(root / "m/model.safetensors") == sum_of(tmp_path / "blob")


def test_a_file_is_copied_again_only_if_it_or_its_source_changed(tmp_path: Path) -> None:
    source, root = copy_of_tiny(tmp_path)
    copy_any(source, root / "m", journal_of(root))
    inodes = {file.name: file.stat().st_ino for file in (root / "m").iterdir()}
    (root / "m/config.json").write_text("{}")
    changed = json.loads((source / "generation_config.json").read_text()) | {"note": 1}
    (source / "generation_config.json").write_text(json.dumps(changed))
    (source / "tokenizer_config.json").touch()  # another date, the same content
    (root / "m/stale.json").write_text("{}")
    copy_any(source, root / "m", journal_of(root))
    again = {file.name for file in (root / "m").iterdir() if file.stat().st_ino != inodes[file.name]}
    assert again == {"config.json", "generation_config.json"}
    assert json.loads((root / "m/generation_config.json").read_text()) == changed
    assert sum_of(root / "m/config.json") == sum_of(source / "config.json")


@pytest.mark.parametrize("name", ["a\nb", "a\\b", "a\rb"])
def test_names_that_a_list_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="line break or a backslash"):
        check_name(name, name)


def test_what_the_hub_cannot_give_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    from sdzero.onprem.bundle_files import fetch_from_hub

    asked: dict[str, Any] = {}

    def snapshot(hub_id: str, **arguments: Any) -> None:
        asked.update(arguments, id=hub_id)
        raise ConnectionError("no route\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(UserError, match="owner/name cannot be fetched from the hub: no route"):
        fetch_from_hub("owner/name", "model", tmp_path)
    assert "*.bin" in asked["ignore_patterns"]
    assert asked["repo_type"] == "model"
