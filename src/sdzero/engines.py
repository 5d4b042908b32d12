"""Rollout engines as a recipe asks for them: whoever samples gets one for its model."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sdzero import ranks
from sdzero.errors import UserError
from sdzero.method.roles import Roles
from sdzero.questions.question import Question
from sdzero.recipe import Recipe
from sdzero.rollout.engine import RolloutEngine
from sdzero.rollout.probe import TOLERANCES, Probe, probe_sequence
from sdzero.rollout.transformers_engine import TransformersEngine
from sdzero.rollout.vllm_engine import Backend, SharedVllm, VllmEngine
from sdzero.rollout.vllm_package import is_cpu_build, require_vllm, set_environment

EngineMaker = Callable[[PreTrainedModel, Roles], RolloutEngine]

PROBE_TOKENS = 192
"""Length of a probe's sequences where the context allows it: more than a block of vLLM's prefix cache."""

PROBE_QUESTION = Question("probe", "What is 17 + 25?", "42")


@contextmanager
def open_engines(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: Path, report: Callable[[str], None]
) -> Iterator[EngineMaker]:
    """The engines of a run; what they started is ended with it. `folder` is for their files.

    Raises UserError if the recipe's engine is not installed.
    """
    if recipe.rollout.engine == "transformers":
        yield transformers_engines(recipe, tokenizer)
        return
    if ranks.count() > 1 and recipe.rollout.vllm.mode == "colocated":
        raise UserError(
            f"vLLM runs colocated with one process, and there are {ranks.count()}",
            "rollout.vllm.mode",
            "set rollout.vllm.mode=server: the first process samples with it for all",
        )
    shared = shared_vllm(recipe, tokenizer, folder, report)
    try:
        yield vllm_engines(recipe, shared)
    finally:
        shared.close()


def transformers_engines(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> EngineMaker:
    """Engines that sample with the model itself, in this process."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def make(model: PreTrainedModel, roles: Roles) -> RolloutEngine:
        return TransformersEngine(
            model,
            end_token_ids=[roles.end_token_id],
            pad_token_id=int(pad),
            batch_size=recipe.rollout.batch_size,
            cache="static" if recipe.rollout.cuda_graphs else "growing",
        )

    return make


def vllm_engines(recipe: Recipe, shared: SharedVllm) -> EngineMaker:
    """Engines that sample with the run's one vLLM in turn."""

    def make(model: PreTrainedModel, roles: Roles) -> RolloutEngine:
        return VllmEngine(shared, model, [roles.end_token_id], _context(recipe, model))

    return make


def shared_vllm(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: Path, report: Callable[[str], None]
) -> SharedVllm:
    """The run's vLLM, as the recipe has it; nothing is started yet."""
    settings, batch_size = recipe.rollout.vllm, recipe.rollout.batch_size
    dtype = settings.dtype or recipe.model.dtype
    if settings.url is None:
        require_vllm()
        if settings.sleep and is_cpu_build():
            report("vLLM's CPU build cannot sleep: rollout.vllm.sleep has no effect, its memory stays taken")

    def start(model: PreTrainedModel) -> Backend:
        if settings.mode == "colocated":
            set_environment(os.environ)  # before vLLM is imported
            from sdzero.rollout.vllm_colocated import ColocatedVllm

            return ColocatedVllm(model, settings, folder, dtype, batch_size)
        from sdzero.rollout.vllm_client import start_server, use_server

        if settings.url is not None:
            return use_server(settings.url, model, settings, folder, dtype, batch_size)
        return start_server(model, settings, folder, dtype, batch_size)

    def make_probe(model: PreTrainedModel) -> Probe:
        roles = Roles(tokenizer, recipe.phrases, recipe.chat)
        prompt = roles.generator_prompt(PROBE_QUESTION)
        context = _context(recipe, model)
        length = PROBE_TOKENS if context is None else min(PROBE_TOKENS, context - 1)
        return Probe(
            [probe_sequence(prompt, roles.control_phrase_ids(reward), length) for reward in (0, 1)],
            settings.probe_tolerance or TOLERANCES[dtype],
            same_dtype=dtype == recipe.model.dtype,
        )

    return SharedVllm(start, make_probe, report, elsewhere=settings.mode == "server")


def _context(recipe: Recipe, model: PreTrainedModel) -> int | None:
    """The smaller of the model's context and the recipe's limit for vLLM, in tokens."""
    own: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [limit for limit in (own, recipe.rollout.vllm.max_model_len) if limit is not None]
    return min(limits, default=None)
