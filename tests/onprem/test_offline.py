"""What a recipe would ask of other machines, and whether it may."""

from pathlib import Path
from typing import Any

import pytest

from sdzero.onprem.energy_check import energy
from sdzero.onprem.findings import Finding, Subject
from sdzero.onprem.offline import goes_online, offline
from sdzero.recipe import Recipe
from sdzero.recipe_io import load_recipe
from support import micro_recipe


def recipe_with(folder: Path, online: bool = False, **sections: dict[str, Any]) -> Recipe:
    return load_recipe(micro_recipe(folder, sections), [f"online={str(online).lower()}"])


def found(folder: Path, online: bool = False, **sections: dict[str, Any]) -> Finding:
    (finding,) = offline(Subject(recipe_with(folder, online, **sections)))
    return finding


@pytest.mark.parametrize("online", [False, True])
def test_a_local_recipe_asks_for_nothing(
    tmp_path: Path, online: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    finding = found(tmp_path, online)
    assert (finding.held, finding.is_warning) == (True, False)
    state = f"(online: {str(online).lower()}; the hub's client is online)"
    assert finding.detail == f"a run asks nothing of other machines {state}"
    assert list(offline(Subject())) == []


NAMED: dict[str, dict[str, Any]] = {
    "model": {"path": "owner/model"},
    "data": {"source": "huggingface", "path": "owner/questions"},
    "srt": {"checkpoint": "other/srt"},
    "distill": {"teacher": "other/teacher", "rehearsal_weight": 0.0},
    "suite": {"name": "math6", "max_new_tokens": 8},
}


def test_an_online_recipes_hub_ids_are_named_by_their_keys(tmp_path: Path) -> None:
    finding = found(tmp_path, online=True, **NAMED)
    assert finding.is_warning
    for key, value in (
        ("model.path", "owner/model"),
        ("data.path", "owner/questions"),
        ("srt.checkpoint", "other/srt"),
        ("distill.teacher", "other/teacher"),
        ("suite.name", "math6"),
    ):
        assert f"{key} ({value})" in finding.detail
    assert "online: false" in finding.todo


def test_of_an_offline_recipes_hub_ids_local_copies_are_read(tmp_path: Path) -> None:
    finding = found(tmp_path, **NAMED)
    assert (finding.held, finding.is_warning) == (True, False)
    assert "only local copies are read of model.path (owner/model)" in finding.detail


def test_a_server_elsewhere_is_asked_by_offline_recipes_too(tmp_path: Path) -> None:
    vllm = {"mode": "server", "url": "http://10.0.0.2:8000", "allow_remote": True}
    finding = found(tmp_path, rollout={"engine": "vllm", "vllm": vllm})
    assert finding.is_warning
    assert "rollout.vllm.url (http://10.0.0.2:8000)" in finding.detail
    vllm = {"mode": "server", "url": "http://127.0.0.1:8000"}
    assert goes_online(recipe_with(tmp_path, rollout={"engine": "vllm", "vllm": vllm})) == {}


def test_the_energy_that_can_be_measured_is_told(micro_settings: Recipe) -> None:
    (finding,) = energy(Subject(micro_settings))
    assert finding.held, "that nothing can be measured is no fault"
    assert "nvml: no GPU is used" in finding.detail
