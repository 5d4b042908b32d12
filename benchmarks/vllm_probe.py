"""How far vLLM's log-probs are from the model's: after a push of weights, and when a push is missed.

    python benchmarks/vllm_probe.py [--mode colocated|server] [--lora RANK]

On the embedded model, in each dtype: the largest difference over the probe's tokens after pushes between
which the weights were trained, and the difference that is seen when the weights were trained by one AdamW
step (on one sequence, at the learning rate named) and vLLM still has those before. It is what the default
tolerances and docs/rollouts.md rest on. Needs vLLM (its CPU build will do); prints a table. No time is
measured.

With `--lora` an adapter is trained, at ten times those rates, and vLLM is sent merged weights; the last
columns are what is seen when the adapter is off in the model, which vLLM has merged.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from sdzero.adapters import attach_adapter, lora_config
from sdzero.engines import shared_vllm, vllm_engines
from sdzero.errors import UserError
from sdzero.method.roles import Roles
from sdzero.models import load_model, load_tokenizer
from sdzero.questions.question import Question
from sdzero.recipe import Recipe
from sdzero.recipe_io import load_recipe
from sdzero.recipe_lora import LoraSettings
from sdzero.rollout.engine import Request, Sampling
from sdzero.rollout.probe import TOLERANCES

RECIPE = Path(__file__).parents[1] / "recipes" / "demo.yaml"
RATES = (1e-6, 1e-5, 1e-4)
STEPS = 4
LORA_RATE = 10.0
"""Rates for adapters are this many times those for all weights."""


def recipe_of(dtype: str, mode: str) -> Recipe:
    """The demo recipe, sampled with vLLM in this dtype."""
    vllm = [f"rollout.vllm.mode={mode}", "rollout.vllm.enforce_eager=true"]
    own = [f"model.dtype={dtype}", "model.device=cpu", "rollout.engine=vllm", "rollout.batch_size=16"]
    return load_recipe(RECIPE, [*own, *vllm, "rollout.vllm.kv_cache_gigabytes=0.125"])


def measure(
    dtype: str, mode: str, rank: int, folder: Path
) -> tuple[float, dict[float, float], dict[float, float]]:
    """The largest difference after any push, and by learning rate that of weights one step old; with LoRA
    also that of the adapter off, after all steps."""
    recipe = recipe_of(dtype, mode)
    tokenizer = load_tokenizer(recipe.model.path)
    roles = Roles(tokenizer, recipe.phrases, recipe.chat)
    shared = shared_vllm(recipe, tokenizer, folder, lambda line: None)
    requests = [Request(tuple(roles.generator_prompt(Question("q", "7 + 8", "15"))), 0)]
    pushed, stale, off = 0.0, {}, {}
    try:
        for rate in RATES:
            model = load_model(recipe.model.path, recipe.model)
            if rank:
                attach_adapter(
                    model, lora_config(LoraSettings(rank=rank, alpha=2 * rank)), seed=0, base="tiny"
                )
            engine = vllm_engines(recipe, shared)(model, roles)
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=rate * (LORA_RATE if rank else 1.0))
            for _ in range(STEPS):
                engine.take_weights(model)
                engine.generate(requests, Sampling(0.0, 8))
                pushed = max(pushed, shared.largest_difference)
                ids_1T = torch.tensor([requests[0].prompt_ids])
                model(input_ids=ids_1T, labels=ids_1T).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            stale[rate] = shared.difference_now(model)
            if rank:
                model.disable_adapters()
                off[rate] = shared.difference_now(model)
    finally:
        shared.close()
    return pushed, stale, off


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mode", choices=["colocated", "server"], default="colocated")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK")
    arguments = parser.parse_args()
    mode, rank = arguments.mode, arguments.lora
    rates = [rate * (LORA_RATE if rank else 1.0) for rate in RATES]
    columns = [f"one step behind, rate {rate:g}" for rate in rates]
    columns += [f"adapter off, rate {rate:g}" for rate in rates] if rank else []
    print(f"| dtype | tolerance | after a push | {' | '.join(columns)} |\n|{'---|' * (3 + len(columns))}")
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            try:
                pushed, stale, off = measure(dtype, mode, rank, Path(folder))
            except UserError as fault:
                raise SystemExit(str(fault)) from fault
        cells = " | ".join(f"{value:.2g}" for value in [*stale.values(), *off.values()])
        print(f"| {dtype} | {TOLERANCES[dtype]:g} | {pushed:.2g} | {cells} |")


if __name__ == "__main__":
    main()
