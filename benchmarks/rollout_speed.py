"""Speed of sampling: the transformers engine against `model.generate`, the same work for both.

    python benchmarks/rollout_speed.py --batch-size 256 --repeats 5

The model is a random Llama of the embedded model's size whose end token has a fixed logit, so that
responses have the wanted mean length. The two take turns in one process; the medians are printed as
JSON, in sampled tokens per second (tokens after a response's end are not counted).
"""

import argparse
import json
import platform
import random
import statistics
import time

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from sdzero.rollout.engine import Request, Sampling
from sdzero.rollout.transformers_engine import TransformersEngine

PAD, END = 0, 1


def make_model(arguments: argparse.Namespace) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        intermediate_size=3 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 32,
        num_key_value_heads=arguments.hidden // 32,
        max_position_embeddings=1024,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def set_mean_length(model: LlamaForCausalLM, mean_length: int) -> None:
    """Make the end token about as likely at each step as responses of this mean length need."""
    others = model.config.vocab_size - 1
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(others + 1))
    with torch.no_grad():
        model.lm_head.bias[END] = torch.tensor(others / (mean_length - 1)).log()


def with_engine(model: LlamaForCausalLM, requests: list[Request], sampling: Sampling, batch_size: int) -> int:
    engine = TransformersEngine(model, [END], PAD, batch_size=batch_size)
    return sum(len(response.token_ids) for response in engine.generate(requests, sampling))


def with_generate(
    model: LlamaForCausalLM, requests: list[Request], sampling: Sampling, batch_size: int
) -> int:
    count = 0
    for start in range(0, len(requests), batch_size):
        prompts = [request.prompt_ids for request in requests[start : start + batch_size]]
        width = max(map(len, prompts))
        ids_BT = torch.tensor([[PAD] * (width - len(ids)) + list(ids) for ids in prompts])
        keep_BT = torch.arange(width) >= torch.tensor([width - len(ids) for ids in prompts])[:, None]
        sampled_BT = model.generate(
            ids_BT,
            attention_mask=keep_BT.long(),
            do_sample=True,
            temperature=sampling.temperature,
            top_k=0,
            max_new_tokens=sampling.max_new_tokens,
        )[:, width:]
        ended_before_BT = (sampled_BT == END).cumsum(-1) - (sampled_BT == END).long() > 0
        count += int((~ended_before_BT).sum())
    return count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--prompt-tokens", type=int, default=17)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--mean-new-tokens", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=352)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = make_model(arguments)
    set_mean_length(model, arguments.mean_new_tokens)
    rng = random.Random(0)
    requests = [
        Request(
            tuple(
                rng.randrange(2, arguments.vocabulary)
                for _ in range(arguments.prompt_tokens + rng.randint(-3, 3))
            ),
            seed=index,
        )
        for index in range(arguments.requests)
    ]
    sampling = Sampling(temperature=1.0, max_new_tokens=arguments.max_new_tokens)
    contestants = {"engine": with_engine, "model.generate": with_generate}
    for sample in contestants.values():
        sample(model, requests[:8], sampling, 8)
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.repeats):
        for name, sample in contestants.items():
            started = time.perf_counter()
            tokens = sample(model, requests, sampling, arguments.batch_size)
            speeds[name].append(tokens / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    result = {
        "unit": "sampled tokens per second",
        "median": {name: round(value) for name, value in medians.items()},
        "all": {name: [round(value) for value in values] for name, values in speeds.items()},
        "ratio": round(medians["engine"] / medians["model.generate"], 2),
        "settings": vars(arguments),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
