"""The update of phase 2 at the shapes of Qwen3-4B and Olmo-3-7B: tokens a second, MFU, peak memory.

    python benchmarks/gpu.py --model qwen3-4b --into benchmarks/results/gpu-qwen3-4b.json
    python benchmarks/gpu.py --model olmo3-7b --gradient-checkpointing
    python benchmarks/gpu.py --size small --device cpu      the same at a size for any machine: a test

Random weights in bfloat16, in the architectures of the real checkpoints' configurations, recorded responses,
our own trainer. Weights, gradients and both moments of AdamW are bfloat16 too: 10 bytes a parameter with the
teacher's weights, 40 GB for the 4B model and 73 GB for the 7B one, to which activations come.

MFU is the operations of `floor.py` (what is recomputed does not count) over what the device could have made
in the same time; its peak is the maker's figure for dense bfloat16 products, or `unknown`.
"""

import argparse
import json
import os
import statistics
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from entries import this_machine
from floor import lengths_of, operations, sizes_of, update_products
from memory import forget_peak, resident
from shapes import Shape, questions_of, recorded_responses, roles_of
from step import our_step
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

MODELS = ("qwen3-4b", "olmo3-7b")

PEAK_TFLOPS = {
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H200": 989.0,
}
"""Dense bfloat16, in 10^12 operations a second, by the device's whole name.

Sources, NVIDIA's data sheets: "A100 Tensor Core GPU" (1758950-r4; 312), "H100 Tensor Core GPU" and "H200
Tensor Core GPU" (SXM: 1,979 with sparsity, which is twice the dense figure).
"""


def peak_tflops(device_name: str) -> float | None:
    """The device's peak; None if it is not in the table."""
    return PEAK_TFLOPS.get(device_name)


def config_at(model: str, size: str) -> Any:
    """The real checkpoint's configuration, or `small`: few layers of the same kinds, narrow."""
    config = AutoConfig.from_pretrained(Path(str(files("sdzero"))) / "architectures" / model)
    if size == "small":
        config.hidden_size, config.intermediate_size, config.head_dim = 64, 96, 16
        config.num_attention_heads, config.num_key_value_heads = 4, 2
        config.vocab_size = 1024
        config.num_hidden_layers, config.layer_types = 4, config.layer_types[:4]
        if getattr(config, "max_window_layers", None):
            config.max_window_layers = 4
    return config


def make_folder(model: str, config: Any, device: str, folder: Path) -> Path:
    """Random weights of this configuration, and the small tokenizer of its family."""
    tokenizer = AutoTokenizer.from_pretrained(Path(str(files("sdzero"))) / "architectures" / model)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config.bos_token_id = None
    torch.manual_seed(0)
    with torch.device(device):
        made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything, as it is written."""
    config = config_at(arguments.model, arguments.size)
    sizes = sizes_of(config)
    shape = Shape(
        arguments.model,
        sizes.layers,
        sizes.width,
        sizes.heads,
        sizes.vocabulary,
        arguments.tokens,
        arguments.batch,
    )
    on_gpu = arguments.device == "cuda"
    with tempfile.TemporaryDirectory() as place:
        workplace = Path(place)
        folder = make_folder(arguments.model, config, arguments.device, workplace / "model")
        roles = roles_of(AutoTokenizer.from_pretrained(folder))
        questions = questions_of(shape, roles)
        recorded = recorded_responses(shape, roles, questions)
        settings = {"micro_batch_size": arguments.micro_batch}
        model = {
            "dtype": "bfloat16",
            "device": arguments.device,
            "gradient_checkpointing": arguments.gradient_checkpointing,
        }
        with our_step(shape, folder, workplace, settings=settings, model=model, recorded=recorded) as step:
            step.turn()
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            else:
                forget_peak()
            turns = [step.turn()["update"] for _ in range(arguments.runs)]
            peak_bytes = torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM")
            parameters = sum(p.numel() for p in step.model.parameters())
    prompts = [len(roles.generator_prompt(question)) for question in questions]
    lengths = lengths_of(prompts, len(roles.control_phrase_ids(0)), [shape.response_tokens] * shape.batch)
    needed, seconds = operations(update_products(sizes, lengths)), statistics.median(turns)
    device_name = torch.cuda.get_device_name() if on_gpu else "CPU"
    peak = peak_tflops(device_name)
    return {
        "model": arguments.model,
        "size": arguments.size,
        "parameters": parameters,
        "device": device_name,
        "batch": shape.batch,
        "micro_batch": arguments.micro_batch,
        "response_tokens": shape.response_tokens,
        "gradient_checkpointing": arguments.gradient_checkpointing,
        "seconds": seconds,
        "runs": len(turns),
        "response_tokens_per_second": sum(lengths.responses) / seconds,
        "read_tokens_per_second": (sum(lengths.student) + sum(lengths.teacher)) / seconds,
        "tflops": needed / seconds / 1e12,
        "peak_tflops": "unknown" if peak is None else peak,
        "mfu": "unknown" if peak is None else needed / seconds / 1e12 / peak,
        "peak_memory_gb": peak_bytes / 2**30,
        "machine": this_machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--size", choices=["full", "small"], default="full")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--batch", type=int, default=8, help="questions of a step (default: 8)")
    parser.add_argument("--micro-batch", type=int, default=1, help="of them at one time (default: 1)")
    parser.add_argument("--tokens", type=int, default=4096, help="of each response (default: 4096)")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--runs", type=int, default=5, help="timed steps (default: 5)")
    parser.add_argument("--into", type=Path, default=None, help="write the result to this file too")
    arguments = parser.parse_args()
    text = json.dumps(measure(arguments), indent=2)
    print(text)
    if arguments.into:
        arguments.into.write_text(text + "\n")


if __name__ == "__main__":
    main()
