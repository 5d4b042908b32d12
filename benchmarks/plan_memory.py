"""The memory that `sdzero plan` predicts beside the peak that a step takes, on this machine's CPU.

    python benchmarks/plan_memory.py                        all cases, a process each; prints the table
    python benchmarks/plan_memory.py --only 24m-long        one of them
    python benchmarks/plan_memory.py --write                keeps the results, and fills in docs/plan.md

Measured is the peak of resident memory in a step, less what the process takes after a step of the smallest
model: interpreter and libraries. The step is the trainer's own (phase 2 on recorded responses, or SRT), with
AdamW's moments made by a step before. It is measured twice: with the C library told to give each freed
block back at once, so that what is resident is held; and with freed memory kept, as a run has it
(`sdzero/allocator.py`), which fragments. Predicted are weights, teacher, gradients, moments, activations,
loss and working memory.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from datasets import Dataset
from documents import RESULTS, ROOT, fill
from entries import this_machine
from memory import WARM_UP_TOKENS, forget_peak, peak_after_warm_up, resident
from shapes import SHAPES, Shape, make_folder, questions_of, recorded_responses, roles_of
from step import our_step, recipe_of
from transformers import AutoTokenizer, LlamaConfig, Olmo3Config, PreTrainedModel, Qwen3Config

from sdzero.adapters import attach_adapter, lora_config
from sdzero.allocator import keep_freed_memory
from sdzero.method.adapter_teacher import AdapterTeacher
from sdzero.method.srt import SRTConfig, SRTTrainer
from sdzero.method.teacher import Teacher
from sdzero.method.training import training_arguments
from sdzero.models import load_model
from sdzero.onprem.hardware import hardware_named
from sdzero.onprem.model_shape import read_shape
from sdzero.onprem.plan_memory import peak_moment, stage_moments
from sdzero.onprem.plan_setting import Setting
from sdzero.recipe import Recipe

PAGE = ROOT / "docs" / "plan.md"
FILE = RESULTS / "plan_memory.json"
TARGET = 0.15
"""How far a prediction may be off."""

FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc: blocks of 64 KiB and more are mapped one by one, and given back when they are freed."""

CONFIGS = {"qwen3": Qwen3Config, "llama": LlamaConfig, "olmo3": Olmo3Config}


@dataclass(frozen=True)
class Case:
    """What is measured: the stage, the model's size and family, tokens of a response, and what is turned."""

    name: str
    size: str
    tokens: int
    micro: int
    stage: Literal["distill", "srt"] = "distill"
    family: Literal["qwen3", "llama", "olmo3"] = "qwen3"
    checkpointing: bool = False
    lora: bool = False


CASES = {
    case.name: case
    for case in (
        Case("24m-short", "24m", 128, 8),
        Case("24m-one", "24m", 128, 1),
        Case("24m-long", "24m", 512, 8),
        Case("24m-checkpointing", "24m", 512, 8, checkpointing=True),
        Case("24m-lora", "24m", 512, 8, lora=True),
        Case("24m-llama", "24m", 512, 8, family="llama"),
        Case("24m-olmo3", "24m", 512, 8, family="olmo3"),
        Case("70m-short", "70m", 128, 8),
        Case("70m-one", "70m", 512, 1),
        Case("70m-long", "70m", 512, 8),
        Case("24m-srt", "24m", 256, 8, stage="srt"),
        Case("70m-srt", "70m", 256, 8, stage="srt"),
        Case("70m-srt-one", "70m", 256, 1, stage="srt"),
    )
}


def shape_of(case: Case) -> Shape:
    """The benchmark's shape with the case's responses; 8 questions."""
    return replace(SHAPES[case.size], response_tokens=case.tokens, batch=8)


def recipe_for(case: Case, folder: Path) -> Recipe:
    """The recipe of the step."""
    sizes = {"micro_batch_size": case.micro}
    recipe = recipe_of(shape_of(case), folder, sizes, {"gradient_checkpointing": case.checkpointing})
    lora = {"rank": 16, "alpha": 32} if case.lora else None
    values = recipe.model_dump(mode="json") | {"lora": lora}
    values["srt"] |= sizes
    return Recipe.model_validate(values)


def pair_of(case: Case, recipe: Recipe, folder: Path) -> tuple[PreTrainedModel, Teacher]:
    """Student and teacher as phase 2 has them."""
    model = load_model(str(folder), recipe.model)
    if recipe.lora is None:
        return model, Teacher.load(folder, torch.float32, "cpu")
    attach_adapter(model, lora_config(recipe.lora), seed=0, base=str(folder))
    return model, AdapterTeacher.beside(model, str(folder))


def predicted(case: Case, recipe: Recipe, folder: Path, prompt: int) -> tuple[str, dict[str, float]]:
    """The moment that takes the most, and its parts, but for the context."""
    setting = Setting(recipe, read_shape(folder / "config.json"), hardware_named("cpu"), prompt=prompt)
    moments = dict(stage_moments(setting)[case.stage])
    moments.pop("sampling", None)  # responses are recorded
    name, parts = peak_moment(moments)
    return name, {part: size for part, size in parts.items() if part != "context"}


def distill_peak(case: Case, recipe: Recipe, folder: Path, workplace: Path) -> int:
    """Bytes resident at the peak of a step of phase 2."""
    shape = shape_of(case)
    roles = roles_of(AutoTokenizer.from_pretrained(folder))
    recorded = recorded_responses(shape, roles, questions_of(shape, roles))
    whole = dict(recorded)
    settings = {"micro_batch_size": case.micro}
    own = {"gradient_checkpointing": case.checkpointing}
    pair = pair_of(case, recipe, folder)
    with our_step(
        shape, folder, workplace, settings=settings, model=own, recorded=recorded, pair=pair
    ) as step:
        return peak_after_warm_up(step, recorded, whole)


def srt_peak(case: Case, recipe: Recipe, folder: Path, workplace: Path) -> int:
    """The same of a step of SRT: eight traces with two responses each."""
    shape = shape_of(case)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    roles = roles_of(tokenizer)
    model = load_model(str(folder), recipe.model)
    recorded = recorded_responses(shape, roles, questions_of(shape, roles))

    def step(tokens: int) -> None:
        rows = [
            roles.joint_sequence(prompt, tuple(ids[:tokens]), 0, tuple(ids[:tokens]))
            for prompt, ids in recorded.items()
        ]
        data = {
            "input_ids": [list(row.token_ids) for row in rows],
            "token_weights": [list(row.weights) for row in rows],
        }
        arguments = training_arguments(
            recipe.srt,
            workplace / "checkpoints",
            epochs=2,
            checkpoint_every=100,
            seed=0,
            gradient_checkpointing=case.checkpointing,
            use_cpu=True,
        )
        config = SRTConfig(**(arguments | {"save_strategy": "no"}))
        SRTTrainer(model, config, Dataset.from_dict(data), tokenizer).train()

    step(WARM_UP_TOKENS)
    forget_peak()
    step(case.tokens)
    return resident("VmHWM")


@contextmanager
def place() -> Iterator[Path]:
    """A folder for the time of a measurement."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def libraries() -> int:
    """Bytes resident after a step of each stage with the embedded model: what is not ours to predict."""
    for stage in ("distill", "srt"):
        with place() as workplace:
            case = Case("libraries", "tiny", 16, 8, stage)  # type: ignore[arg-type]
            folder = make_folder(shape_of(case), workplace / "model")
            peak = srt_peak if stage == "srt" else distill_peak
            peak(case, recipe_for(case, folder), folder, workplace)
    gc.collect()
    return resident("VmRSS")


def measure(case: Case, kept: bool) -> dict[str, Any]:
    """Predicted and measured, in this process, whose environment says what is done with freed memory."""
    if kept:
        keep_freed_memory()
    with place() as workplace:
        folder = workplace / "model"
        subprocess.run([sys.executable, __file__, "--make", str(folder), "--only", case.name], check=True)
        recipe = recipe_for(case, folder)
        roles = roles_of(AutoTokenizer.from_pretrained(folder))
        prompts = [len(roles.generator_prompt(q)) for q in questions_of(shape_of(case), roles)]
        moment, parts = predicted(case, recipe, folder, max(prompts))
        taken = libraries()
        peak = srt_peak if case.stage == "srt" else distill_peak
        measured = peak(case, recipe, folder, workplace) - taken
    return {
        **asdict(case),
        "moment": moment,
        "parts": parts,
        "predicted": sum(parts.values()),
        "kept" if kept else "measured": measured,
    }


def measured_apart(name: str) -> dict[str, Any]:
    """A case measured twice, each time in a process of its own."""
    row: dict[str, Any] = {}
    for how in ("freed", "kept"):
        command = [sys.executable, __file__, "--here", how, "--only", name]
        environment = os.environ | (FREED if how == "freed" else {})
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        row |= json.loads(done.stdout.splitlines()[-1])
    return row | {"ratio": row["predicted"] / row["measured"]}


def table(results: Mapping[str, Any]) -> str:
    """The rows of docs/plan.md."""
    lines = [
        "| case | stage | family | micro-batch | response | turned | predicted MB | measured MB | ratio |"
        " kept MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["cases"]:
        turned = [name for name in ("checkpointing", "lora") if row[name]]
        off = abs(row["ratio"] - 1) > TARGET
        ratio = f"**{row['ratio']:.2f}**" if off else f"{row['ratio']:.2f}"
        lines.append(
            f"| `{row['name']}` | {row['stage']} | {row['family']} | {row['micro']} | {row['tokens']} |"
            f" {', '.join(turned)} | {row['predicted'] / 1e6:,.0f} | {row['measured'] / 1e6:,.0f} | {ratio} |"
            f" {row['kept'] / 1e6:,.0f} |"
        )
    machine = results["machine"]
    within = sum(abs(row["ratio"] - 1) <= TARGET for row in results["cases"])
    lines += [
        "",
        f"{within} of {len(results['cases'])} within {TARGET:.0%}. Measured on {machine['processor']}, torch"
        f" {machine['torch']}, transformers {machine['transformers']}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=list(CASES), help="one case")
    parser.add_argument("--write", action="store_true", help="keep the results, and fill in docs/plan.md")
    parser.add_argument("--make", type=Path, help="only make the model of the case, in this folder")
    parser.add_argument("--here", choices=["freed", "kept"], help="measure the case in this process")
    arguments = parser.parse_args()
    if arguments.make is not None:
        case = CASES[arguments.only]
        make_folder(shape_of(case), arguments.make, CONFIGS[case.family])
        return
    if arguments.here:
        print(json.dumps(measure(CASES[arguments.only], arguments.here == "kept")))
        return
    found = []
    for name in [arguments.only] if arguments.only else CASES:
        found.append(measured_apart(name))
        row = found[-1]
        print(
            f"{name}: predicted {row['predicted'] / 1e6:.0f} MB ({row['moment']}), measured"
            f" {row['measured'] / 1e6:.0f} MB, ratio {row['ratio']:.2f}; {row['kept'] / 1e6:.0f} MB kept",
            flush=True,
        )
    results = {"machine": this_machine(), "cases": found}
    if arguments.write:
        FILE.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        fill(PAGE, {"plan-memory": table(results)})


if __name__ == "__main__":
    main()
