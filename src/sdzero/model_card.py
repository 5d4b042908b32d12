"""The model card (README.md) of a trained model: what it is, how it was made, what was measured."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sdzero.recipe import Recipe

DESCRIPTIONS = {
    "sdzero": "SD-Zero: self-revision training, then on-policy self-distillation from the model as its own"
    " reviser (arXiv 2604.12002)",
    "srt": "SRT: self-revision training, the first phase of SD-Zero (arXiv 2604.12002)",
    "rft": "RFT: fine-tuning on own verified-correct responses, a baseline of SD-Zero",
    "sft": "SFT: fine-tuning on given demonstrations, a baseline of SD-Zero",
    "grpo": "GRPO (arXiv 2402.03300), a baseline of SD-Zero",
    "sdft": "SDFT: self-distillation from a reference (arXiv 2601.19897), a baseline of SD-Zero",
    "negative": "a control of SD-Zero: policy gradient with a constant negative advantage",
}
"""By the name under which a run scores a model."""

SHOWN = {
    "collect": ("initial_per_question", "target_initial", "revisions_per_initial", "temperature", "rounds"),
    "srt": ("learning_rate", "schedule", "epochs", "batch_size", "schedule_of_losses"),
    "distill": ("learning_rate", "schedule", "epochs", "batch_size", "divergence", "sync", "teacher_decay"),
}
"""Settings that the card shows; the whole recipe is in the folder beside it."""


def model_card(
    recipe: Recipe,
    model: str,
    results: Mapping[str, Any] | None,
    manifest: Mapping[str, Any],
    license_id: str | None = None,
    adapter_base: str | None = None,
) -> str:
    """The text of README.md. `results` is the object of results.json; `adapter_base` is given for an adapter
    alone. A base model in a local folder is named by its last part: a machine's paths mean nothing elsewhere.
    """
    base = base_name(recipe.model.path)
    front: dict[str, Any] = {"library_name": "transformers" if adapter_base is None else "peft"}
    if is_hub_id(recipe.model.path):
        front["base_model"] = recipe.model.path
    if license_id is not None:
        front["license"] = license_id
    front |= {"pipeline_tag": "text-generation", "tags": ["sd-zero", "self-distillation"]}
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {recipe.name}: {model}",
        "",
        f"{base} after {DESCRIPTIONS[model]}. Made by sdzero {manifest['versions'].get('sdzero')}.",
        "",
    ]
    if adapter_base is not None:
        lines += [f"This folder is a LoRA adapter; its base model is `{base_name(adapter_base)}`.", ""]
    lines += ["## Results", "", *_results(model, results), "", "## Training", "", *_training(recipe), ""]
    seen = recipe.labels.is_majority
    lines += [
        "Rewards came from agreement among the model's own responses (label-free)."
        if seen
        else f"Rewards came from the verifier `{recipe.verifier.name}` on `{recipe.data.source}` questions.",
        "The whole recipe is `recipe.yaml`.",
        "",
        "## Base model and licence",
        "",
        f"The weights are derived from {base}: its licence holds for them too"
        + (f" (`{license_id}`)." if license_id else ". Read it before you pass them on."),
        "",
        "## Versions",
        "",
        *(f"- {name} {version}" for name, version in manifest["versions"].items() if version),
        f"- recipe {str(manifest['recipe_sha256'])[:16]}, seed {manifest['seed']}",
    ]
    return "\n".join(lines) + "\n"


def _results(model: str, results: Mapping[str, Any] | None) -> list[str]:
    scored = {} if results is None else dict(results["evaluations"])
    if results is None or model not in scored:
        return ["This model was not scored in its run."]
    shown = [name for name in ("base", "srt", model) if name in scored]
    k = scored[model]["k"]
    lines = [
        f"On the recipe's {results['on']} questions ({scored[model]['questions']} distinct ones), {k}"
        " responses each; s.e. is the standard error over questions.",
        "",
        f"| model | avg@{k} | s.e. | pass@{k} | mean tokens |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(shown):
        own = scored[name]
        lines.append(
            f"| {name} | {own['avg']:.1%} | {own['se']:.1%} | {own['pass_at_k']:.1%} |"
            f" {own['mean_tokens']:.1f} |"
        )
    return lines


def _training(recipe: Recipe) -> list[str]:
    lines = []
    for section, keys in SHOWN.items():
        values = getattr(recipe, section)
        shown = ", ".join(f"{key} {getattr(values, key)}" for key in keys if getattr(values, key) is not None)
        lines.append(f"- {section}: {shown}")
    if recipe.lora is not None:
        lora, four = recipe.lora, recipe.model.quantization
        lines.append(
            f"- LoRA: rank {lora.rank}, alpha {lora.alpha}, dropout {lora.dropout:g}, on"
            f" {lora.target_modules}" + (", on weights in 4 bits" if four else "")
        )
    lines.append(f"- weights: {recipe.model.dtype}; questions: {recipe.data.n1} and {recipe.data.n2}")
    return lines


def is_hub_id(path: str) -> bool:
    """Whether a model's path is a hub id, and no folder here."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None and not Path(path).exists()


def base_name(path: str) -> str:
    """A hub id as it is; of a folder its own name."""
    return path if is_hub_id(path) else Path(path).name


def license_of(folder: Path) -> str | None:
    """The licence that a model folder's README.md names in its header, if there is one."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    header = re.match(r"---\n(.*?)\n---\n", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        values = yaml.safe_load(header[1]) if header else None
    except yaml.YAMLError:
        values = None
    found = values.get("license") if isinstance(values, dict) else None
    return found if isinstance(found, str) else None
