"""Time of a stage: products over what a device makes of its peak, bytes read to decode over its bandwidth.

How much of peak and bandwidth is reached is assumed, or measured (`sdzero.onprem.calibration`). Left out are
loading and saving, verifying (it runs while sampling goes on), the optimizer's step and the exchange of
gradients.
"""

import math
from dataclasses import dataclass

from sdzero.onprem.hardware import GB, GIBIBYTE
from sdzero.onprem.model_shape import ModelShape
from sdzero.onprem.plan_sampling import SERVER_SHARE, packs_weights, vllm_bytes
from sdzero.onprem.plan_setting import Setting
from sdzero.onprem.plan_tokens import Sample, StageWork, Train, micro_batch

HOST_BANDWIDTH = 25 * GB
"""From the host's memory to a device: 80% of PCIe 4.0 x16, assumed."""


@dataclass(frozen=True)
class Efficiency:
    """What is reached. `products`: share of the peak, in training, prefill and the teacher's pass, recomputed
    products counted. `bandwidth`: share of it, while decoding. `layer_seconds`: what a layer's kernels take
    to be started, for each token of a batch. `decoding`: the factor of measured to assumed time of
    sampling."""

    products: float
    bandwidth: float
    layer_seconds: float
    source: str
    decoding: float = 1.0


OF_THE_PEAK = (
    "assumed: 30% of the peak, recomputing counted (torchtitan's docs/performance.md: 33% for Llama 3.1 8B on"
    " H100 without torch.compile; prime-rl: 21.7% for Qwen3-4B with LoRA, recomputing not counted)"
)
GPU = {
    "transformers": Efficiency(
        0.30,
        0.6,
        6e-4,
        f"{OF_THE_PEAK}; 60% of the bandwidth, at least 0.6 ms a layer and token (arXiv 2605.30571: an H100"
        " reaches 27% of the bandwidth with a model of 7B and 28 layers in bfloat16)",
    ),
    "compiled": Efficiency(
        0.30,
        0.7,
        5e-5,
        f"{OF_THE_PEAK}; 70% of the bandwidth (PyTorch on gpt-fast: 107 tokens/s of a 7B model on an"
        " A100, 72%), and at least 0.05 ms a layer and token",
    ),
}
CPU = Efficiency(
    0.42,
    0.5,
    2e-4,
    "assumed: 42% of the peak, half of the bandwidth, at least 0.2 ms a layer and token (the kept results of"
    " benchmarks/bench.py, 24m, on two cores)",
)


def assumed_efficiency(setting: Setting) -> Efficiency:
    """What is assumed for a device and an engine."""
    if setting.kind == "cpu":
        return CPU
    own = setting.recipe.rollout
    return GPU["compiled" if own.engine == "vllm" or own.cuda_graphs else "transformers"]


@dataclass(frozen=True)
class StageTime:
    """Seconds by the clock, all devices at work."""

    sampling: float
    training: float

    @property
    def seconds(self) -> float:
        """Both."""
        return self.sampling + self.training


def forward_operations(shape: ModelShape, tokens: float) -> tuple[float, float]:
    """Multiplications and additions of a sequence in all layers: of linear layers, and of attention."""
    seen = shape.seen_keys(max(1, round(tokens)))
    return 2.0 * shape.layers * shape.layer_products * tokens, 4.0 * shape.queries * seen * tokens


def operations(setting: Setting, train: Train) -> float:
    """Of one sequence: the student's passes, what checkpointing makes again, and the teacher's pass."""
    shape, adapters = setting.shape, setting.adapters
    linear, attention = forward_operations(shape, train.tokens)
    head = 2.0 * shape.head * train.targets
    frozen = adapters is not None  # no gradients of weights
    own = (2 if frozen else 3) * (linear + head) + 3 * attention
    if setting.recipe.model.gradient_checkpointing:
        own += linear + attention
    teacher = sum(sum(forward_operations(shape, read)) for read in train.teacher_reads)
    return own + teacher + (head if train.teacher_reads else 0.0)


def training_operations(setting: Setting, work: StageWork) -> float:
    """Of a whole stage."""
    return sum(train.sequences * operations(setting, train) for train in work.trains)


def peak_of(setting: Setting) -> float:
    """Operations a second of one device, in the model's dtype."""
    device = setting.hardware.device
    return device.peak if setting.recipe.model.dtype == "bfloat16" else device.peak_float32


def engines(setting: Setting) -> tuple[int, int]:
    """How many engines sample at the same time, and how many devices each has."""
    own = setting.recipe.rollout
    if own.engine == "transformers":
        return setting.devices, 1
    return own.vllm.data_parallel_size, own.vllm.tensor_parallel_size


def rows_at_once(setting: Setting, sample: Sample) -> int:
    """Responses that one engine samples at one time."""
    own, (replicas, width) = setting.recipe.rollout, engines(setting)
    rows = min(own.batch_size, math.ceil(sample.unit / replicas), math.ceil(sample.responses / replicas))
    if own.engine == "vllm":
        whole = vllm_bytes(setting, True) or SERVER_SHARE * setting.hardware.device.memory
        room = width * whole - setting.weights
        if own.vllm.kv_cache_gigabytes is not None:
            room = own.vllm.kv_cache_gigabytes * GIBIBYTE
        held = 2 * setting.shape.layers * setting.shape.keys * setting.size
        rows = min(rows, int(room // (held * (sample.prompt + sample.response))))
    return max(1, rows)


def sampling_seconds(setting: Setting, sample: Sample, efficiency: Efficiency) -> float:
    """A token is a step of all rows: weights and the rows' keys and values are read, or the products made, or
    the kernels started, whatever takes longest. Without refilling a batch lasts as long as its longest
    response."""
    shape, (replicas, width) = setting.shape, engines(setting)
    rows = rows_at_once(setting, sample)
    each = sample.responses / replicas
    # With packed weights the transformers engine too lets waiting requests take the places of ended rows.
    if setting.recipe.rollout.engine == "vllm" or packs_weights(setting):
        steps, live = max(float(sample.longest), each * sample.response / rows), float(rows)
        steps = min(steps, each * sample.response)
    else:
        steps, live = math.ceil(each / rows) * float(sample.longest), rows * sample.response / sample.longest
    held = shape.held_keys(sample.prompt + sample.response / 2)
    read = setting.weights + live * 2 * shape.keys * setting.size * held
    made = live * (2 * (shape.layers * shape.layer_products + shape.head) + 4 * shape.queries * held)
    peak, bandwidth = width * peak_of(setting), width * setting.hardware.device.bandwidth
    step = max(
        read / (bandwidth * efficiency.bandwidth),
        made / (peak * efficiency.products),
        shape.layers * efficiency.layer_seconds,
    )
    prefill = sample.prompts * sum(forward_operations(shape, sample.prompt))
    return efficiency.decoding * (steps * step + prefill / (replicas * peak * efficiency.products))


def stage_time(setting: Setting, work: StageWork, efficiency: Efficiency) -> StageTime:
    """Seconds of a stage."""
    made = training_operations(setting, work)
    return StageTime(
        sampling=sum(sampling_seconds(setting, sample, efficiency) for sample in work.samples),
        training=made / (setting.devices * peak_of(setting) * efficiency.products)
        + streaming_seconds(setting, work),
    )


def streaming_seconds(setting: Setting, work: StageWork) -> float:
    """What a teacher in the host's memory takes to come to the device, for each micro-batch of phase 2."""
    if work.name != "distill" or setting.teacher_placement != "cpu" or setting.kind == "cpu":
        return 0.0
    at_once = setting.devices * micro_batch(setting.recipe.distill, setting.devices)
    passes = sum(train.sequences * len(train.teacher_reads) for train in work.trains) / at_once
    return passes * setting.weights / HOST_BANDWIDTH
