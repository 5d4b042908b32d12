"""What `sdzero export` writes: a model folder that others load, or one adapter for the base model."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from typer.testing import CliRunner

from sdzero import tiny
from sdzero.adapters import is_adapter_folder, merge_adapter
from sdzero.cli import app
from sdzero.errors import UserError
from sdzero.export import export_model
from sdzero.method.teacher import fingerprint
from sdzero.model_card import base_name, license_of
from sdzero.models import load_model
from sdzero.recipe import ModelSettings
from support import micro_recipe

CPU = ModelSettings(device="cpu")
IDS = torch.arange(5, 25)[None]
FEW: dict[str, dict[str, Any]] = {
    "data": {"n1": 12, "n2": 4, "test": 2, "tuning": 0},
    "distill": {"rehearsal_weight": 0.0, "learning_rate": 1e-2, "sync": "never", "sync_every": None},
    "srt": {"learning_rate": 1e-2},
    "rft": {"enabled": False},
    "evaluate": {"k": 1},
}
VLLM = "SDZERO_VLLM_PYTHON"
"""Names the Python of an environment with vLLM, for the test that loads an exported folder there."""


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def run_with(folder: Path, **lora: Any) -> Path:
    done = invoke("run", micro_recipe(folder, FEW | {"lora": {"rank": 2} | lora}), "-o", folder / "run")
    assert done.exit_code == 0, done.output
    return folder / "run"


@pytest.fixture(scope="module")
def merged_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_with(tmp_path_factory.mktemp("merged"), keep="merged")


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_with(tmp_path_factory.mktemp("adapter"), keep="adapter")


@pytest.fixture(scope="module")
def exported(merged_run: Path) -> Path:
    done = invoke("export", merged_run, "--to", merged_run.parent / "out")
    assert done.exit_code == 0, done.output
    return merged_run.parent / "out"


def test_transformers_loads_it_and_answers(exported: Path, merged_run: Path) -> None:
    assert {path.name for path in exported.iterdir()} >= {
        *("config.json", "model.safetensors", "generation_config.json", "tokenizer.json"),
        *("chat_template.jinja", "README.md", "recipe.yaml", "results.json"),
    }
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert fingerprint(model) == fingerprint(load_model(str(merged_run / "distill/model"), CPU))
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.use_cache
    generate = pipeline("text-generation", model=str(exported))
    (answer,) = generate([{"role": "user", "content": "What is 3 + 4?"}], max_new_tokens=48, do_sample=False)
    assert answer["generated_text"][-1]["role"] == "assistant"
    assert answer["generated_text"][-1]["content"]


def test_the_card_has_the_runs_own_figures(exported: Path, merged_run: Path) -> None:
    card = (exported / "README.md").read_text()
    results = json.loads((merged_run / "results.json").read_text())
    for name in ("base", "srt", "sdzero"):
        own = results["evaluations"][name]
        assert f"| {name} | {own['avg']:.1%} | {own['se']:.1%} | {own['pass_at_k']:.1%} |" in card
    assert results["recipe_sha256"][:16] in card
    assert "its licence holds" in card
    assert "LoRA: rank 2" in card
    assert f"torch {results['versions']['torch']}" in card
    assert str(tiny.model_folder()) not in card
    assert (merged_run / "distill/model/README.md").read_text() == card


def test_two_adapters_become_one_for_the_base_model(merged_run: Path, tmp_path: Path) -> None:
    done = invoke("export", merged_run, "--to", tmp_path / "out", "--adapter")
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["r"] == 4
    assert Path(config["base_model_name_or_path"]) == tiny.model_folder().resolve()
    base = AutoModelForCausalLM.from_pretrained(tiny.model_folder())
    before = logits(base)
    expected = logits(load_model(str(merged_run / "distill/model"), CPU))
    found = logits(PeftModel.from_pretrained(base, str(tmp_path / "out")))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert float((found - before).abs().max()) > 0.05
    assert "library_name: peft" in (tmp_path / "out/README.md").read_text()


def test_an_adapter_run_is_exported_whole_or_as_it_is(adapter_run: Path, tmp_path: Path) -> None:
    for flags, is_adapter in (([], False), (["--adapter"], True)):
        to = tmp_path / f"out-{is_adapter}"
        assert invoke("export", adapter_run, "--to", to, *flags).exit_code == 0
        assert is_adapter_folder(to) == is_adapter
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out-False")
    adapted = AutoModelForCausalLM.from_pretrained(tmp_path / "out-True")  # transformers reads adapters
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=1e-4, atol=1e-4)
    merge_adapter(adapted)
    assert fingerprint(adapted) == fingerprint(merged)


def test_the_srt_model_can_be_exported_too(merged_run: Path, tmp_path: Path) -> None:
    assert invoke("export", merged_run, "--to", tmp_path / "srt", "--model", "srt").exit_code == 0
    model = load_model(str(tmp_path / "srt"), CPU)
    assert fingerprint(model) == fingerprint(load_model(str(merged_run / "srt/round-1/model"), CPU))
    assert "self-revision training, the first phase" in (tmp_path / "srt/README.md").read_text()


def test_an_exported_folder_is_scored(exported: Path, merged_run: Path) -> None:
    recipe = merged_run.parent / "micro.yaml"
    done = invoke("evaluate", recipe, "-o", merged_run, "--model", exported, "--name", "exported")
    assert done.exit_code == 0, done.output
    own = json.loads((merged_run / "evaluate/exported.json").read_text())["evaluation"]
    assert own["questions"] == 2


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["{run}", "--to", "{run}"], "something here already"),
        (["{out}", "--to", "{new}"], "no run's folder"),
        (["{run}", "--to", "{new}", "--model", "rft"], "no finished model"),
        (["{run}", "--to", "{new}", "--model", "sdzeroo"], "did you mean"),
    ],
)
def test_what_cannot_be_exported(
    exported: Path, merged_run: Path, tmp_path: Path, arguments: list[str], problem: str
) -> None:
    places = {"run": merged_run, "out": exported, "new": tmp_path / "new"}
    result = invoke("export", *[one.format(**places) for one in arguments])
    assert result.exit_code == 1
    assert problem in result.stderr
    assert not (tmp_path / "new").exists()


def test_where_nothing_can_be_written_is_told(micro_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as refused:
        export_model(micro_run, tmp_path / "file/model")
    assert str(refused.value.where).endswith("file/model.partial")


@pytest.mark.slow
def test_without_lora_there_is_no_adapter(micro_run: Path, tmp_path: Path) -> None:
    result = invoke("export", micro_run, "--to", tmp_path / "out", "--adapter")
    assert result.exit_code == 1
    assert "trained without LoRA" in result.stderr
    assert not (tmp_path / "out").exists()
    assert invoke("export", micro_run, "--to", tmp_path / "out", "--model", "rft").exit_code == 0
    assert (tmp_path / "out/README.md").is_file()


def test_a_base_models_licence_is_handed_on(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# Model\n")
    assert license_of(tmp_path) == "apache-2.0"
    assert license_of(tmp_path / "nowhere") is None
    assert base_name("owner/name") == "owner/name"
    assert base_name(str(tmp_path)) == tmp_path.name


@pytest.mark.slow
@pytest.mark.skipif(VLLM not in os.environ, reason=f"{VLLM} names no Python with vLLM")
def test_vllm_loads_it(exported: Path) -> None:
    program = (
        "import sys; from vllm import LLM, SamplingParams\n"
        "llm = LLM(sys.argv[1], dtype='float32', max_model_len=128, enforce_eager=True)\n"
        "chat = [{'role': 'user', 'content': 'What is 3 + 4?'}]\n"
        "out = llm.chat(chat, SamplingParams(temperature=0, max_tokens=48, skip_special_tokens=False))\n"
        "print('IDS', list(out[0].outputs[0].token_ids))\n"
    )
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(
        [os.environ[VLLM], "-c", program, str(exported)],
        capture_output=True,
        text=True,
        timeout=500,
        env=environment | {"VLLM_HOST_IP": "127.0.0.1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("IDS "))
    tokenizer = AutoTokenizer.from_pretrained(exported)
    chat = [{"role": "user", "content": "What is 3 + 4?"}]
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model = AutoModelForCausalLM.from_pretrained(exported)
    own = model.generate(**ids, max_new_tokens=48, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert json.loads(line[4:]) == own.tolist()
