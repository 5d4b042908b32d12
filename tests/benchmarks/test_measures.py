"""Memory, growth, the GPU script, turns, and the page."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu
import growth
import memory
import pytest
import torch
from documents import fill
from entries import Entry, Found
from shapes import SHAPES
from speed_page import blocks
from split import PARTS
from timing import alternate, medians

ROOT = Path(__file__).resolve().parents[2]
SMALL = replace(SHAPES["24m"], width=32)


def test_turns_alternate_after_a_round_that_is_not_kept() -> None:
    order = []

    def turn(name: str) -> dict[str, float]:
        order.append(name)
        return {"step": float(len(order))}

    turns = alternate({name: lambda name=name: turn(name) for name in "ab"}, 3)
    assert "".join(order) == "ba" + "ab" + "ba" + "ab"
    assert [t["step"] for t in turns["a"]] == [3, 6, 7]
    assert medians(turns) == {"a": {"step": 6.0}, "b": {"step": 5.0}}
    assert len(alternate({"a": lambda: turn("a")}, 2, warm_up=False)["a"]) == 2


@pytest.mark.parametrize("who", ["ours", "trl"])
def test_the_losses_whose_memory_is_measured_are_one_loss(who: Any) -> None:
    torch.manual_seed(3)
    hidden, heads = torch.randn(2, 6, 8), torch.randn(2, 20, 8)
    arguments = hidden[0], hidden[1], heads[0], heads[1]
    wanted = memory.loss_of("dense", *arguments)
    torch.testing.assert_close(memory.loss_of(who, *arguments), wanted, rtol=1e-5, atol=1e-5)


def test_the_dense_loss_holds_several_logits() -> None:
    tokens, logits = 512, 4 * 512 * SMALL.vocabulary
    assert memory.loss_bytes("dense", SMALL, tokens) > 3 * logits


def test_memory_is_compared_with_the_dense_path_and_with_trl() -> None:
    asked = []

    def measure(what: str, who: str, model: str, tokens: int) -> int:
        asked.append((what, who, model, tokens))
        return {"ours": 1, "dense": 8, "trl": 4}[who] << 30

    found = memory.memory("tiny", 64, measure)
    ratios = {entry.name: (entry.ratio, entry.target) for entry in found.entries}
    assert ratios["memory-tiny/step/dense"] == (0.125, 0.25)
    assert ratios["memory-tiny/loss/trl"] == (0.25, None)
    assert len(set(asked)) == 6


def test_the_dense_path_is_measured_where_it_fits() -> None:
    enough = 7 * 4 * 4096 * SHAPES["70m"].vocabulary + (2 << 30)
    assert memory.fitting("70m", 4096, enough) == 4096
    assert memory.fitting("70m", 4096, enough - 1) == 2048
    with pytest.raises(SystemExit, match="does not fit"):
        memory.fitting("70m", 4096, 1 << 30)


def test_growth_in_proportion_is_1() -> None:
    assert growth.relative_growth([2, 4, 8], [1.0, 2.0, 4.0]) == 1.0
    assert growth.relative_growth([1, 10], [1.0, 20.0]) == 2.0


def test_growth_is_measured_along_an_axis() -> None:
    base = replace(SHAPES["tiny"], batch=1)
    found = growth.growth(1, {"T": (replace(base, response_tokens=8), replace(base, response_tokens=16))})
    assert [entry.name for entry in found.entries] == ["growth/T"]
    assert [row["size"] for row in found.details["growth"]["T"]] == [8, 16]
    assert all(row["seconds"] > 0 for row in found.details["growth"]["T"])


@pytest.mark.parametrize("model", gpu.MODELS)
def test_the_gpu_script_runs_small_on_a_cpu(tmp_path: Path, monkeypatch, capsys, model: str) -> None:
    file = tmp_path / "gpu.json"
    options = f"--size small --device cpu --tokens 16 --batch 2 --runs 1 --model {model} --into {file}"
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options.split()])
    gpu.main()
    found = json.loads(file.read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert found["response_tokens_per_second"] == pytest.approx(32 / found["seconds"])
    assert found["tflops"] > 0
    assert found["peak_memory_gb"] > 0
    assert (found["mfu"], found["peak_tflops"]) == ("unknown", "unknown")


def test_only_known_devices_have_a_peak() -> None:
    assert gpu.peak_tflops("NVIDIA H100 80GB HBM3") == 989.0
    assert gpu.peak_tflops("NVIDIA H100 PCIe") is None


def made_up() -> Found:
    step = {part: 1.0 for part in PARTS} | {"step": 8.0, "rollout": 2.0, "update": 6.0}
    theirs = {"step": 16.0, "rollout": 8.0, "update": 8.0}
    machine = {"cores": 2, "processor": "P", "torch": "2", "trl": "1"}
    return Found(
        [
            Entry("step-24m/sdft", 2.5, 2.0, "higher", 5, machine),
            Entry("update-24m/floor", 1.4, 1.3, "lower", 5, machine),
        ],
        {
            "step-24m": {"seconds": {"ours": step, "sdft": theirs}},
            "update-24m": {"seconds": {"floor": 1.0, "ours": 1.4}},
            "memory": {
                "model": "70m",
                "tokens": 2048,
                "wanted": 4096,
                "bytes": {w: {"ours": 1 << 30, "dense": 4 << 30, "trl": 2 << 30} for w in ("loss", "step")},
            },
            "growth": {"T": [{"size": 64, "seconds": 1.0}, {"size": 128, "seconds": 2.0}]},
            "processes": {
                "sizes": [{"size": 1, "seconds": 2.0}, {"size": 2, "seconds": 1.0}],
                "same weights": False,
            },
        },
    )


def test_the_page_shows_what_is_missed(tmp_path: Path) -> None:
    """On the real page: every block has its place there."""
    page = tmp_path / "speed.md"
    page.write_text((ROOT / "docs/speed.md").read_text())
    fill(page, blocks(made_up()))
    text = page.read_text()
    assert re.search(r"`step-24m/sdft` \| 2\.50 \| higher \| at least 2 \| yes \|", text)
    assert re.search(r"`update-24m/floor` \| 1\.40 \| lower \| at most 1\.3 \| \*\*no\*\* \|", text)
    assert "| teacher | 1.000 s (12%) |" in text
    assert "with 4096 did not fit" in text
    assert "there is no ratio" in text
    assert "Not measured yet" not in text
