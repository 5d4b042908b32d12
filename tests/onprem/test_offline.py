"""What a recipe would ask of other machines, and whether the hub's clients are offline."""

from pathlib import Path
from typing import Any

import pytest

from sdzero.onprem.energy_check import energy
from sdzero.onprem.findings import Finding, Subject
from sdzero.onprem.offline import OFFLINE, goes_online, is_hub_id, offline
from sdzero.recipe_io import load_recipe
from support import micro_recipe


def subject(folder: Path, **sections: dict[str, Any]) -> Subject:
    return Subject(load_recipe(micro_recipe(folder, sections)))


def found(folder: Path, **sections: dict[str, Any]) -> Finding:
    (finding,) = offline(subject(folder, **sections))
    return finding


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OFFLINE:
        monkeypatch.delenv(name, raising=False)


def test_a_local_recipe_asks_for_nothing(tmp_path: Path) -> None:
    finding = found(tmp_path)
    assert (finding.held, finding.is_warning) == (True, False)
    assert "asks nothing of other machines; offline mode is on" in finding.detail
    assert list(offline(Subject())) == []


def test_hub_ids_are_named_by_their_keys(tmp_path: Path, online: None) -> None:
    data = {"source": "huggingface", "path": "owner/questions", "fields": {}}
    finding = found(
        tmp_path,
        model={"path": "owner/model"},
        data=data,
        srt={"checkpoint": "other/srt"},
        distill={"teacher": "other/teacher", "rehearsal_weight": 0.0},
        suite={"name": "math6", "max_new_tokens": 8},
    )
    assert finding.is_warning
    for key, value in (
        ("model.path", "owner/model"),
        ("data.path", "owner/questions"),
        ("srt.checkpoint", "other/srt"),
        ("distill.teacher", "other/teacher"),
        ("suite.name", "math6"),
    ):
        assert f"{key} ({value})" in finding.detail
    assert "HF_HUB_OFFLINE=1" in finding.todo


def test_offline_mode_keeps_the_hub_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    finding = found(tmp_path, model={"path": "owner/model"})
    assert not finding.is_warning
    assert "only local copies are read of model.path (owner/model)" in finding.detail


def test_a_server_elsewhere_is_not_the_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    vllm = {"mode": "server", "url": "http://10.0.0.2:8000", "allow_remote": True}
    finding = found(tmp_path, rollout={"engine": "vllm", "vllm": vllm})
    assert finding.is_warning
    assert "rollout.vllm.url (http://10.0.0.2:8000)" in finding.detail
    vllm = {"mode": "server", "url": "http://127.0.0.1:8000"}
    assert goes_online(subject(tmp_path, rollout={"engine": "vllm", "vllm": vllm}).recipe) == {}  # type: ignore[arg-type]


def test_what_looks_like_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("owner/name")
    (tmp_path / "owner/name").mkdir(parents=True)
    assert not is_hub_id("owner/name"), "a folder of that name is here"
    assert not any(
        map(is_hub_id, ["tiny", "tiny:walks", "./owner/x", "/owner/x", "~/x", "a/b/c", "name", "x/"])
    )


def test_the_energy_that_can_be_measured_is_told(tmp_path: Path, micro_settings: Any) -> None:
    (finding,) = energy(Subject(micro_settings))
    assert finding.held, "that nothing can be measured is no fault"
    assert "nvml: no GPU is used" in finding.detail
