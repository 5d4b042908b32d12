"""vLLM in this process: weights are handed over in memory, and the engine is stepped as responses end.

With a tensor parallel size above 1 vLLM's workers are processes of their own, and weights go to them by a
folder. The probe and the stamps are the same.
"""

import gc
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from sdzero.errors import UserError
from sdzero.recipe_rollout import VllmSettings
from sdzero.rollout.engine import Request, Sampling
from sdzero.rollout.named_weights import named_weights, write_config, write_weights
from sdzero.rollout.probe import Score
from sdzero.rollout.vllm_arguments import DTYPES, can_sleep, engine_arguments
from sdzero.rollout.vllm_engine import Sampled

START_FAULTS = (ValueError, RuntimeError, AssertionError, ImportError, OSError, NotImplementedError)
"""What vLLM raises when it cannot start: settings, memory, an unknown architecture, a broken install."""


class ColocatedVllm:
    """`vllm.LLM` in this process. `folder` is for its files, `dtype` what it computes in.

    Raises UserError if it cannot start.
    """

    where = "vLLM in this process (rollout.vllm)"

    def __init__(
        self, model: PreTrainedModel, settings: VllmSettings, folder: Path, dtype: str, batch_size: int
    ) -> None:
        # In one process there is nothing between `step` and the engine, and tensors need not be copied.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self._in_memory = settings.tensor_parallel_size == 1
        self._dtype = DTYPES[dtype]
        self._sleeps = can_sleep(settings)
        self._folder = folder / "weights"
        write_config(model, self._folder)
        if not self._in_memory:
            write_weights(model, self._folder, self._dtype)
        with _random_numbers_untouched():
            try:
                from vllm import LLM

                self._llm: Any = LLM(
                    model=str(self._folder),
                    # Random weights, until the first push: nothing is read twice.
                    load_format="dummy" if self._in_memory else "auto",
                    skip_tokenizer_init=True,
                    **engine_arguments(settings, dtype, batch_size),
                )
            except START_FAULTS as fault:
                raise UserError(
                    f"vLLM does not start: {first_line(fault)}",
                    "rollout.vllm",
                    "check its memory (rollout.vllm.kv_cache_gigabytes or gpu_memory_utilization, and"
                    " max_model_len), and that it knows the model; --debug shows all of it",
                ) from fault
        self._requests = 0

    def push(self, model: PreTrainedModel, stamp: str) -> None:
        """Load the model's weights, empty the prefix cache, and stamp responses with `stamp`."""
        if self._in_memory:
            arguments: dict[str, Any] = {"weights_iterator": named_weights(model)}
        else:
            write_weights(model, self._folder, self._dtype)
            arguments = {"weights_path": str(self._folder)}
        self._llm.collective_rpc("reload_weights", kwargs=arguments)
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not empty its prefix cache, though no request is running")
        self._llm.llm_engine.set_weight_version(stamp)

    def stream(
        self, requests: Sequence[Request], sampling: Sampling, end_token_ids: Sequence[int]
    ) -> Iterator[list[tuple[int, Sampled]]]:
        """Sampled responses in groups, one group a step in which some end."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        def parameters(request: Request) -> Any:
            return SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_new_tokens,
                seed=request.seed,
                stop_token_ids=list(end_token_ids),
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )

        for group in self._run([(r.prompt_ids, parameters(r)) for r in requests]):
            yield [(index, _sampled(output)) for index, output in group]

    def score(self, sequences: Sequence[Sequence[int]]) -> list[Score]:
        """Log-probs of each sequence, and its likeliest next token: see `Scorer`."""
        from vllm import SamplingParams

        cached = SamplingParams(temperature=0, max_tokens=1, logprobs=0, ignore_eos=True, detokenize=False)
        whole = SamplingParams(
            temperature=0, max_tokens=1, prompt_logprobs=0, ignore_eos=True, detokenize=False
        )
        nexts, all_ = (
            dict(pair for group in self._run([(ids, own) for ids in sequences]) for pair in group)
            for own in (cached, whole)
        )
        scores = []
        for index, ids in enumerate(sequences):
            output = nexts[index].outputs[0]
            token = int(output.token_ids[0])
            log_probs = tuple(
                at[token_id].logprob
                for at, token_id in zip(all_[index].prompt_logprobs[1:], ids[1:], strict=True)
            )
            scores.append(Score(log_probs, token, output.logprobs[0][token].logprob))
        return scores

    def _run(self, prompts: Sequence[tuple[Sequence[int], Any]]) -> Iterator[list[tuple[int, Any]]]:
        """Step the engine until every prompt is answered; what was not is taken back."""
        from vllm.inputs.engine import tokens_input

        engine = self._llm.llm_engine
        waiting: dict[str, int] = {}
        internal: list[str] = []
        try:
            for index, (ids, parameters) in enumerate(prompts):
                name = f"sdzero-{self._requests}"
                self._requests += 1
                internal.append(engine.add_request(name, tokens_input(list(ids)), parameters))
                waiting[name] = index
            while waiting:
                ended = [output for output in engine.step() if output.finished]
                if ended:
                    yield [(waiting.pop(output.request_id), output) for output in ended]
        finally:
            if waiting:
                engine.abort_request(internal, internal=True)

    def sleep(self) -> bool:
        """Give the device's memory back, weights and cache, where the build can."""
        if self._sleeps:
            self._llm.sleep(level=2)  # weights need not be kept: the next ones are pushed
        return self._sleeps

    def wake(self) -> None:
        """Take the memory again."""
        self._llm.wake_up()

    def close(self) -> None:
        """End the engine, and give back what it holds: another one can be started after it."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()  # what is left of it would tear down the process groups of the next one
        cleanup_dist_env_and_memory()
        shutil.rmtree(self._folder, ignore_errors=True)


def _sampled(output: Any) -> Sampled:
    found = output.outputs[0]
    return Sampled(tuple(found.token_ids), tuple(span.version for span in found.weight_versions or ()))


def first_line(fault: BaseException) -> str:
    """The first line of an error's text, or its kind."""
    return str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__


@contextmanager
def _random_numbers_untouched() -> Iterator[None]:
    """vLLM seeds every generator of the process when it starts; a training that goes on must not notice."""
    python, numpy, default = random.getstate(), np.random.get_state(), torch.get_default_dtype()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_default_dtype(default)
