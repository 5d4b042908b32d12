"""Memory of sampling: the key-value cache, the prefill of the prompts, and the engine's own copies."""

import math
from typing import Literal

from sdzero.onprem.hardware import GIBIBYTE
from sdzero.onprem.plan_activations import forward_working
from sdzero.onprem.plan_setting import Setting
from sdzero.onprem.plan_tokens import PHRASE_TOKENS

ROOM_AHEAD = 32
"""Columns that the cache is made larger by at least (`row_cache.ROOM_AHEAD`)."""
COLOCATED_SHARE, SERVER_SHARE = 0.3, 0.85
"""vLLM's share of a device where the recipe sets none: in this process, of a server (`vllm_arguments`)."""
PACK_FROM = 5_000_000
"""Parameters from which the transformers engine copies weights on a CPU (`decode_step.PACK_FROM`)."""
DRAWN_AT_A_TIME = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Probabilities that are drawn from at once, in float64 (`drawing.NUMBERS_AT_A_TIME`)."""

Phase = Literal["initial", "revise", "student", "evaluate", "evaluate: revise"]


def sampled_at_once(setting: Setting, phase: Phase) -> tuple[int, int, float, int]:
    """Rows that one process samples at one time, distinct prompts among them, the longest prompt, and the
    longest response."""
    recipe, prompt = setting.recipe, setting.prompt
    collect, evaluate = recipe.collect, recipe.evaluate
    sizes = {
        "initial": (collect.batch_size, 1, prompt, collect.max_new_tokens),
        "revise": (
            collect.batch_size,
            collect.revisions_per_initial,
            prompt + collect.max_new_tokens + PHRASE_TOKENS,
            collect.max_new_tokens,
        ),
        "student": (recipe.distill.batch_size, 1, prompt, recipe.distill.max_new_tokens),
        "evaluate": (evaluate.batch_size, evaluate.k, prompt, evaluate.max_new_tokens),
        "evaluate: revise": (
            evaluate.batch_size,
            1,
            prompt + evaluate.max_new_tokens + PHRASE_TOKENS,
            evaluate.max_new_tokens,
        ),
    }
    unit, alike, longest, new = sizes[phase]
    if phase == "revise" and collect.max_context is not None:
        longest = max(prompt, min(longest, collect.max_context - new))
    rows = min(recipe.rollout.batch_size, math.ceil(unit / setting.devices))
    return rows, math.ceil(rows / alike), longest, new


def sampling_parts(setting: Setting, phase: Phase) -> dict[str, float]:
    """The parts that sampling adds to the weights."""
    if setting.recipe.rollout.engine == "vllm":
        return {"vllm": vllm_bytes(setting, sampling=True)}
    rows, prompts, prompt, new = sampled_at_once(setting, phase)
    shape, size = setting.shape, setting.size
    column = 2 * shape.keys * size * rows  # of one layer
    columns = cache_columns(math.ceil(prompt), new)
    cache = column * (shape.layers * columns[-1] + (columns[-2] if len(columns) > 1 else 0))
    numbers = 16 * rows * new + 3 * 8 * min(rows * shape.vocabulary, DRAWN_AT_A_TIME[setting.kind])
    prefill = prompts * prompt * (forward_working(shape, size) + 2 * shape.width * size)
    if prompts > 1:  # padded: a mask, with which `sdpa` reads keys and values spread to all heads
        prefill += prompts * prompt**2
        if shape.heads != shape.key_heads:
            prefill += 2 * prompts * prompt * shape.queries * size
    first = column * shape.layers * columns[0]
    decoding = rows * (forward_working(shape, size) + 2 * size * shape.vocabulary) + numbers
    if prefill + first > cache + decoding:
        return {"cache": first, "working": prefill, "sampler": copied_weights(setting)}
    return {"cache": cache, "working": decoding, "sampler": copied_weights(setting)}


def cache_columns(prompt: int, new: int) -> list[int]:
    """Columns that the cache has room for, each time that it grows, until prompt and response are held."""
    room = prompt + max(ROOM_AHEAD, prompt // 2)
    found = [room]
    while room < prompt + new:
        needed = room + 1
        room = needed + max(ROOM_AHEAD, needed // 2)
        found.append(room)
    return found


def packs_weights(setting: Setting) -> bool:
    """Whether the transformers engine decodes with packed copies of all weights, as it does on a CPU."""
    is_float32_on_cpu = setting.kind == "cpu" and setting.size == 4
    return is_float32_on_cpu and setting.recipe.lora is None and setting.shape.parameters >= PACK_FROM


def copied_weights(setting: Setting) -> float:
    """What the transformers engine copies of the weights for the time of a call, on a CPU alone."""
    shape = setting.shape
    if setting.kind != "cpu" or setting.size < 4 or setting.recipe.lora is not None:
        return 0.0
    if packs_weights(setting):
        return float(setting.size * (shape.layers * shape.layer_products + shape.head))
    fused = shape.width * (shape.queries + 2 * shape.keys + 2 * shape.inner)
    return float(setting.size * shape.layers * fused)


def vllm_bytes(setting: Setting, sampling: bool) -> float:
    """What vLLM takes of a device: in this process, or as the run's own server on the same devices. A server
    of the user's (`url`) is elsewhere."""
    own = setting.recipe.rollout
    if own.engine != "vllm" or own.vllm.url is not None:
        return 0.0
    if not sampling and own.vllm.sleep and setting.kind == "cuda":
        return 0.0
    if own.vllm.kv_cache_gigabytes is not None:
        return setting.weights + own.vllm.kv_cache_gigabytes * GIBIBYTE
    if setting.kind == "cpu":
        return setting.weights + GIBIBYTE
    share = COLOCATED_SHARE if own.vllm.mode == "colocated" else SERVER_SHARE
    return (own.vllm.gpu_memory_utilization or share) * setting.hardware.device.memory
