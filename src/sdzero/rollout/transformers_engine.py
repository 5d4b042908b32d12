"""Sampling with any transformers causal language model, in this process.

What makes it faster than `model.generate` for many short responses: equal prompts are prefilled once, a
finished row leaves the batch at once, and where there are more requests than fit, waiting ones can take
the places of ended rows (`decode_loop.py`); keys and values are written into room set aside ahead
(`row_cache.py`); the step itself is ours for the architectures that it knows (`decode_step.py`); requests
of like prompt length share a batch.

Every request has random numbers of its own, drawn from its seed before the first step, and a token is
read off the cumulative distribution with the number of that step. A response therefore does not depend
on its neighbours, except where rounding (the model's own arithmetic differs in the last bits with the
shape of the batch) falls between two tokens. On a CPU with a fixed number of threads the same requests
and weights give the same responses bit for bit.

Left out: with `cache="growing"` sliding layers keep the keys of the whole sequence. For long responses of
sliding models use `cache="dynamic"`.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from sdzero.errors import UserError
from sdzero.rollout.decode_loop import DecodeLoop
from sdzero.rollout.decode_step import ModelStep, Step, can_pack, make_step
from sdzero.rollout.engine import Request, Response, Sampling, check_requests
from sdzero.rollout.row_cache import RowCache
from sdzero.rollout.static_step import StaticRows, StaticStep


class TransformersEngine:
    """A `RolloutEngine` around a model object; the model may be trained in place between calls.

    `end_token_ids` stop a response (the one sampled is kept), `pad_token_id` fills the left of shorter
    prompts and is never attended to, `batch_size` is in sequences. `cache` is `growing` (the default,
    faster), `dynamic` (transformers' own, where sliding layers hold their window only), or `static`
    (CUDA graphs on a GPU, see `static_step.py`).

    `packed` copies the weights, for the length of a call, into a layout that few rows read two to three
    times as fast; it rounds differently. None does so for models of `decode_step.PACK_FROM` parameters
    where it can be done. `refill` lets waiting requests take the places of ended rows; batches then mix
    other requests, which also rounds differently. None does so wherever the weights are packed: a step of
    a large model costs nearly the same for few rows as for many, one of a tiny model does not
    (`benchmarks/rollout_speed.py --batching` measures both).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        end_token_ids: Sequence[int],
        pad_token_id: int,
        batch_size: int = 256,
        cache: Literal["growing", "dynamic", "static"] = "growing",
        packed: bool | None = None,
        refill: bool | None = None,
    ) -> None:
        if not end_token_ids:
            raise UserError(
                "no end token is known, so no response would ever end",
                todo="give the tokenizer an end-of-turn token",
            )
        if packed and not (cache == "growing" and can_pack(model)):
            raise UserError(
                "the weights cannot be packed",
                where=type(model).__name__,
                todo="leave `packed` out: it needs an unwrapped float32 Llama, Qwen3 or Olmo3 model on a CPU,"
                " with sdpa attention and the growing cache",
            )
        if refill and cache != "growing":
            raise UserError(
                f"rows cannot be refilled with cache={cache!r}",
                todo="use the growing cache, or leave refill out",
            )
        self._model = model
        self._end_token_ids = torch.tensor(sorted(set(end_token_ids)))
        self._pad_token_id = pad_token_id
        self._batch_size = batch_size
        self._cache = cache
        self._packed = packed
        self._refill = refill
        self._weight_version = 0

    @property
    def model(self) -> PreTrainedModel:
        """The model that is sampled from."""
        return self._model

    @property
    def weight_version(self) -> int:
        """How many times the weights were changed since the engine was made."""
        return self._weight_version

    @property
    def max_context(self) -> int | None:
        """The model's context in tokens, where its configuration names one."""
        found: int | None = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        return found

    @property
    def samples_elsewhere(self) -> bool:
        """No: the model that is sampled from is the very one that is trained."""
        return False

    def read_weights(self) -> None:
        """Nothing to do: the model's weights are the ones that sample."""

    def take_weights(self, model: PreTrainedModel, steps: int = 1) -> None:
        """Count the steps; the weights are there already. Raises ValueError for another model."""
        if model is not self._model:
            raise ValueError("the rollout engine samples from another model than the student")
        self._weight_version += steps

    def rest(self) -> None:
        """Nothing: between calls the engine holds no memory of its own."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """Sample one response per request, in the order of the requests.

        Raises UserError, before anything is sampled, for impossible settings, for an empty prompt, and
        for a prompt that together with `max_new_tokens` does not fit the model's context.
        """
        responses = dict(pair for group in self.stream(requests, sampling) for pair in group)
        return [responses[index] for index in range(len(requests))]

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[tuple[int, Response]]]:
        """What `generate` returns, as responses end: groups of (index of the request, response)."""
        check_requests(requests, sampling, self.max_context)
        was_training = self._model.training
        self._model.train(False)
        try:
            yield from self._stream(requests, sampling)
        finally:
            self._model.train(was_training)

    def _stream(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[list[tuple[int, Response]]]:
        slots = min(self._batch_size, len(requests))
        step = self._make_step(slots)
        refill = step.packed if self._refill is None else self._refill
        order = sorted(range(len(requests)), key=lambda index: len(requests[index].prompt_ids))
        if refill and len(requests) > slots:
            chunks = [order[::-1]]  # longest first, as the loop needs it
        else:
            chunks = [order[start : start + slots] for start in range(0, len(order), max(1, slots))]
        for chunk in chunks:
            chosen = [requests[index] for index in chunk]
            ends = self._end_token_ids.to(self._model.device)
            columns = max(len(request.prompt_ids) for request in chosen) + sampling.max_new_tokens
            make_cache = partial(self._new_cache, columns)
            loop = DecodeLoop(step, make_cache, ends, self._pad_token_id, slots, chosen, sampling)
            for ended in loop.run():
                yield [
                    (chunk[number], Response(ids, reason, self._weight_version))
                    for number, ids, reason in ended
                ]

    @torch.inference_mode()
    def _make_step(self, rows: int) -> Step:
        """The step for one call: it may hold copies of the weights, so it is made anew for each."""
        if self._cache == "dynamic":
            return ModelStep(self._model)
        if self._cache == "static":
            return StaticStep(self._model)
        return make_step(self._model, rows, self._packed)

    def _new_cache(self, columns: int, rows: int) -> Cache:
        config: Any = self._model.config.get_text_config()
        if self._cache == "dynamic":
            return DynamicCache(config=config)
        if self._cache == "static":
            return StaticRows(config, columns)
        return RowCache(config.num_hidden_layers, rows)
