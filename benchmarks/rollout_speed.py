"""Speed of sampling: the transformers engine against `model.generate`, the same work for both.

    python benchmarks/rollout_speed.py                        # the three shapes of `SHAPES`
    python benchmarks/rollout_speed.py --only 24M --runs 7
    python benchmarks/rollout_speed.py --batching             # compacting against refilling

The models are random. In `tiny` the end token has a fixed logit, so that responses have mixed lengths; in
the others it is never sampled, and every response runs to the full length on both sides. The baseline is
`model.generate(do_sample=True, temperature=1.0, top_k=0)` in its default settings, on the same model,
prompts and lengths. The two take turns in one process; a ratio is that of the median times.

`--batching` measures why the engine fills batches as it does: at mixed lengths, the loop that only drops
ended rows (`refill=False`) against the one that refills them, on the tiny and on the 70M model.
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from sdzero.rollout.engine import Request, Sampling
from sdzero.rollout.transformers_engine import TransformersEngine

PAD, END = 0, 1


@dataclass(frozen=True)
class Shape:
    """A model and a load: `mean_new_tokens` None lets every response run to `new_tokens`."""

    name: str
    target: float
    architecture: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    requests: int
    batch_size: int
    prompt_tokens: int
    new_tokens: int
    mean_new_tokens: int | None = None


SHAPES = [
    Shape("tiny", 3.0, "llama", 352, 128, 384, 4, 4, 512, 256, 17, 96, 30),
    Shape("24M", 3.0, "qwen3", 32_000, 384, 1152, 6, 6, 8, 8, 32, 128),
    Shape("70M", 2.0, "qwen3", 152_000, 384, 1152, 6, 6, 8, 8, 32, 256),
]


def make_model(shape: Shape) -> PreTrainedModel:
    torch.manual_seed(0)
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[shape.architecture]
    config = config_class(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.hidden // shape.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
    )
    model = model_class(config).eval()
    # The end token's share of the rest is what responses of this mean length need, or nothing.
    others, mean = shape.vocabulary - 1, shape.mean_new_tokens
    end = torch.tensor(others / (mean - 1)).log() if mean is not None else torch.tensor(-1e4)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(shape.vocabulary))
    with torch.no_grad():
        model.lm_head.bias[END] = end
    return model


def make_requests(shape: Shape) -> list[Request]:
    rng = random.Random(0)
    lengths = [shape.prompt_tokens + rng.randint(-3, 3) for _ in range(shape.requests)]
    return [
        Request(tuple(rng.randrange(2, shape.vocabulary) for _ in range(length)), seed=index)
        for index, length in enumerate(lengths)
    ]


def with_engine(model: PreTrainedModel, requests: list[Request], shape: Shape, **options: Any) -> int:
    """Sample with the engine; returns the number of tokens sampled."""
    engine = TransformersEngine(model, [END], PAD, batch_size=shape.batch_size, **options)
    sampling = Sampling(temperature=1.0, max_new_tokens=shape.new_tokens)
    return sum(len(response.token_ids) for response in engine.generate(requests, sampling))


def with_generate(model: PreTrainedModel, requests: list[Request], shape: Shape) -> int:
    """Sample with `model.generate`; tokens behind a response's end are not counted."""
    count = 0
    for start in range(0, len(requests), shape.batch_size):
        prompts = [request.prompt_ids for request in requests[start : start + shape.batch_size]]
        width = max(map(len, prompts))
        ids_BT = torch.tensor([[PAD] * (width - len(ids)) + list(ids) for ids in prompts])
        keep_BT = torch.arange(width) >= torch.tensor([width - len(ids) for ids in prompts])[:, None]
        sampled_BT = model.generate(
            ids_BT,
            attention_mask=keep_BT.long(),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            max_new_tokens=shape.new_tokens,
        )[:, width:]
        ended_before_BT = (sampled_BT == END).cumsum(-1) - (sampled_BT == END).long() > 0
        count += int((~ended_before_BT).sum())
    return count


def seconds_a_token(contestants: dict[str, Callable[[], int]], runs: int) -> dict[str, list[float]]:
    """Seconds for each sampled token, of the contestants in turn, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in range(runs + 1):
        for name, sample in contestants.items():
            started = time.perf_counter()
            tokens = sample()
            if run:
                seconds[name].append((time.perf_counter() - started) / tokens)
    return seconds


def against_generate(shape: Shape, runs: int) -> dict[str, Any]:
    """One entry: how many times as fast as `model.generate` the engine samples a token."""
    model, requests = make_model(shape), make_requests(shape)
    seconds = seconds_a_token(
        {
            "engine": lambda: with_engine(model, requests, shape),
            "generate": lambda: with_generate(model, requests, shape),
        },
        runs,
    )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "name": f"rollouts against model.generate, {shape.name}",
        "ratio": round(medians["generate"] / medians["engine"], 2),
        "target": shape.target,
        "better": "higher",
        "runs": runs,
        "machine": machine(),
        "tokens_per_second": {name: round(1 / median) for name, median in medians.items()},
    }


def batching(runs: int) -> list[dict[str, Any]]:
    """Entries of compacting time over refilling time at mixed lengths; above 1, refilling is faster."""
    found = []
    for name, model_shape, batch_size in (
        ("tiny", SHAPES[0], 256),
        ("tiny", SHAPES[0], 32),
        ("70M", SHAPES[2], 8),
    ):
        shape = Shape(
            **{
                **vars(model_shape),
                "requests": 4 * batch_size,
                "batch_size": batch_size,
                "new_tokens": 96,
                "mean_new_tokens": 30,
            }
        )
        model, requests = make_model(shape), make_requests(shape)
        seconds = seconds_a_token(
            {
                "compacting": lambda m=model, r=requests, s=shape: with_engine(m, r, s, refill=False),
                "refilling": lambda m=model, r=requests, s=shape: with_engine(m, r, s, refill=True),
            },
            runs,
        )
        medians = {way: statistics.median(values) for way, values in seconds.items()}
        found.append(
            {
                "name": f"refilling against compacting, {name}, batch {batch_size}",
                "ratio": round(medians["compacting"] / medians["refilling"], 2),
                "runs": runs,
                "machine": machine(),
            }
        )
    return found


def machine() -> str:
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()},"
        f" torch {torch.__version__}, transformers {transformers.__version__}"
    )


def entries(runs: int = 5, only: str | None = None) -> list[dict[str, Any]]:
    """The figures of this benchmark, one for each shape (or for the one named `only`)."""
    return [against_generate(shape, runs) for shape in SHAPES if only in (None, shape.name)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", choices=[shape.name for shape in SHAPES])
    parser.add_argument("--batching", action="store_true", help="compacting against refilling instead")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = batching(arguments.runs) if arguments.batching else entries(arguments.runs, arguments.only)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
