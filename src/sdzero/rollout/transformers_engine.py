"""Sampling with any transformers causal language model, in this process.

Three things make it faster than `model.generate` for many short responses: a finished row leaves the
batch at once (its place is taken by the last live row, so only what moves is copied), keys and values
are written into room set aside ahead instead of being concatenated at every step, and requests of like
prompt length share a batch.

Every request has random numbers of its own, drawn from its seed before the first step, and a token is
read off the cumulative distribution with the number of that step. A response therefore does not depend
on its neighbours, except where rounding (the model's own arithmetic differs in the last bits with the
shape of the batch) falls between two tokens. On a CPU with a fixed number of threads the same requests
and weights give the same responses bit for bit.

Left out: rows that finish do not make room for waiting requests (no continuous batching), and sliding
layers keep the keys of the whole sequence with `cache="growing"`. For long responses of
sliding models use `cache="dynamic"`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from sdzero.errors import UserError
from sdzero.rollout.engine import Request, Response, Sampling, check_requests

ROOM_AHEAD = 32
"""Columns (tokens) that are set aside beyond the current length, at least, when a cache grows."""

NUMBERS_AT_A_TIME = 1 << 24
"""Float64 probabilities that are held at once while tokens are drawn; larger batches go in slices."""


class TransformersEngine:
    """A `RolloutEngine` around a model object; the model may be trained in place between calls.

    `end_token_ids` stop a response (the one sampled is kept), `pad_token_id` fills the left of shorter
    prompts and is never attended to, `batch_size` is in sequences. `cache` is `growing` (the default,
    faster) or `dynamic` (transformers' own, where sliding layers hold their window only).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        end_token_ids: Sequence[int],
        pad_token_id: int,
        batch_size: int = 256,
        cache: Literal["growing", "dynamic"] = "growing",
    ) -> None:
        if not end_token_ids:
            raise UserError(
                "no end token is known, so no response would ever end",
                todo="give the tokenizer an end-of-turn token",
            )
        self._model = model
        self._end_token_ids = torch.tensor(sorted(set(end_token_ids)))
        self._pad_token_id = pad_token_id
        self._batch_size = batch_size
        self._cache = cache
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
        by_length = sorted(range(len(requests)), key=lambda index: len(requests[index].prompt_ids))
        was_training = self._model.training
        self._model.train(False)
        try:
            for start in range(0, len(by_length), self._batch_size):
                chosen = by_length[start : start + self._batch_size]
                for group in self._generate_batch([requests[index] for index in chosen], sampling):
                    yield [(chosen[row], response) for row, response in group]
        finally:
            self._model.train(was_training)

    @torch.inference_mode()
    def _generate_batch(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[list[tuple[int, Response]]]:
        """Sample for one batch: prompts on the left padded to one length, then a token a step.

        Yields (row, response) for the rows that ended in a step, and at the end for those that did not.
        """
        device = self._model.device
        rows, steps = len(requests), sampling.max_new_tokens
        lengths_B = torch.tensor([len(request.prompt_ids) for request in requests])
        width = int(lengths_B.max())
        prompts_BT = torch.full((rows, width), self._pad_token_id)
        for row, request in enumerate(requests):
            prompts_BT[row, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
        padding_B = (width - lengths_B).to(device)
        columns_T = torch.arange(width + steps, device=device)
        # Without padding no mask is needed, and attention takes its faster path.
        mask_BT = columns_T >= padding_B[:, None] if bool(padding_B.any()) else None
        numbers_BS = _random_numbers(requests, steps).to(device) if sampling.temperature > 0 else None
        ends = self._end_token_ids.to(device)

        sampled_BS = torch.zeros((rows, steps), dtype=torch.long, device=device)
        cache = self._new_cache()
        live_L = torch.arange(rows, device=device)  # which row of the batch each live row is
        inputs_LT = prompts_BT.to(device)
        positions_LT = (columns_T[:width] - padding_B[:, None]).clamp(min=0)
        for step in range(steps):
            output = self._model(
                input_ids=inputs_LT,
                attention_mask=None if mask_BT is None else mask_BT[:, : width + step],
                position_ids=positions_LT,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            numbers_L = None if numbers_BS is None else numbers_BS[live_L, step]
            tokens_L = draw_tokens(output.logits[:, -1], numbers_L, sampling)
            sampled_BS[live_L, step] = tokens_L
            positions_L = positions_LT[:, -1] + 1
            is_end_L = torch.isin(tokens_L, ends)
            if is_end_L.any():
                yield self._responses(live_L[is_end_L], sampled_BS[:, : step + 1], "end")
                order_L = _close_ranks(is_end_L)
                if len(order_L) == 0:
                    return
                live_L, tokens_L, positions_L = live_L[order_L], tokens_L[order_L], positions_L[order_L]
                mask_BT = None if mask_BT is None else mask_BT[order_L]
                cache.batch_select_indices(order_L)
            inputs_LT, positions_LT = tokens_L[:, None], positions_L[:, None]

        yield self._responses(live_L, sampled_BS, "length")

    def _responses(
        self, rows_L: Tensor, sampled_BS: Tensor, stop_reason: Literal["end", "length"]
    ) -> list[tuple[int, Response]]:
        """The responses of some rows, all of the length of `sampled_BS`."""
        sampled = zip(rows_L.tolist(), sampled_BS[rows_L].tolist(), strict=True)
        return [(row, Response(tuple(ids), stop_reason, self._weight_version)) for row, ids in sampled]

    def _new_cache(self) -> "_RowCache":
        config: Any = self._model.config.get_text_config()
        if self._cache == "dynamic":
            return DynamicCache(config=config)
        return Cache(layers=[GrowingLayer() for _ in range(config.num_hidden_layers)])


class _RowCache(Protocol):
    """What the decode loop needs of a cache; the model itself sees transformers' `Cache`."""

    def batch_select_indices(self, indices: Tensor) -> None: ...


class GrowingLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, `[rows, heads, tokens, head size]`, in buffers with room to spare.

    What `update` returns is a view of the live rows and of the tokens so far, so attention reads nothing
    that is not used. The buffers grow by half at a time, live rows only.
    """

    is_compileable = False
    is_sliding = False
    is_croppable = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length = 0
        self.rows = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room for the first tokens; the shapes are known only now."""
        self.rows = key_states.shape[0]
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = self._with_room(key_states[:, :, :0], key_states.shape[2])
        self.values = self._with_room(value_states[:, :, :0], value_states.shape[2])
        self.is_initialized = True

    @staticmethod
    def _with_room(states: Tensor, needed: int) -> Tensor:
        """Copy `states` into a buffer for `needed` tokens and some more."""
        rows, heads, length, size = states.shape
        grown = states.new_empty((rows, heads, needed + max(ROOM_AHEAD, needed // 2), size))
        grown[:, :, :length] = states
        return grown

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append the states of new tokens and return all states so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        new_length = self.length + key_states.shape[2]
        if new_length > self.keys.shape[2]:
            self.keys = self._with_room(self.keys[: self.rows, :, : self.length], new_length)
            self.values = self._with_room(self.values[: self.rows, :, : self.length], new_length)
        self.keys[: self.rows, :, self.length : new_length] = key_states
        self.values[: self.rows, :, self.length : new_length] = value_states
        self.length = new_length
        return self.keys[: self.rows, :, :new_length], self.values[: self.rows, :, :new_length]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, in that order; a row that stays where it is is not copied."""
        assert self.keys is not None
        assert self.values is not None
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
        for states in (self.keys, self.values):
            states[moved, :, : self.length] = states[indices[moved], :, : self.length]
        self.rows = len(indices)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that the mask must cover."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens held, padding included."""
        return self.length

    def get_max_length(self) -> int:
        """-1: there is no limit."""
        return -1


def _close_ranks(is_end_L: Tensor) -> Tensor:
    """Indices of the rows that go on, the last of them moved into the places of the ended ones.

    Rows that need not move keep their place: if rows 1 and 2 of six have ended, it is `[0, 4, 5, 3]`.
    """
    going_on = (~is_end_L).nonzero()[:, 0]
    order_L = torch.arange(len(going_on), device=is_end_L.device)
    order_L[is_end_L[: len(going_on)]] = going_on[going_on >= len(going_on)]
    return order_L


def _random_numbers(requests: Sequence[Request], steps: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 `[requests, steps]`; a row depends on its seed alone.

    Philox is counter-based: the first numbers of a row are the same whatever `steps` is.
    """
    rows = [np.random.Generator(np.random.Philox(key=request.seed)).random(steps) for request in requests]
    return torch.from_numpy(np.stack(rows))


def draw_tokens(logits_BV: Tensor, numbers_B: Tensor | None, sampling: Sampling) -> Tensor:
    """One token per row of logits: the argmax at temperature 0, else by inverse cumulative distribution.

    `numbers_B` are uniform in [0, 1), float64. The distribution is the softmax of the logits over the
    temperature, cut to the `top_k` likeliest tokens, then to the smallest set of likeliest tokens whose
    share reaches `top_p` (the order in which transformers applies them).
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    assert numbers_B is not None
    rows, size = len(logits_BV), max(1, NUMBERS_AT_A_TIME // logits_BV.shape[-1])
    slices = [slice(start, start + size) for start in range(0, rows, size)]
    return torch.cat([_draw_slice(logits_BV[part], numbers_B[part], sampling) for part in slices])


def _draw_slice(logits_SV: Tensor, numbers_S: Tensor, sampling: Sampling) -> Tensor:
    probabilities_SV = (logits_SV.double() / sampling.temperature).softmax(dim=-1)
    if sampling.top_k or sampling.top_p < 1:
        probabilities_SV = _cut_tail(probabilities_SV, sampling)
    cumulative_SV = probabilities_SV.cumsum(dim=-1)
    total_S1 = cumulative_SV[:, -1:]
    # Strictly below the total, so that the first token whose cumulative share exceeds the number exists;
    # its own probability is then above 0.
    targets_S1 = torch.minimum(numbers_S[:, None] * total_S1, total_S1.nextafter(torch.zeros_like(total_S1)))
    return torch.searchsorted(cumulative_SV, targets_S1, right=True)[:, 0]


def _cut_tail(probabilities_SV: Tensor, sampling: Sampling) -> Tensor:
    """Set the probabilities outside top_k and top_p to 0; what is left keeps the vocabulary's order."""
    sorted_SV, order_SV = probabilities_SV.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        sorted_SV[:, sampling.top_k :] = 0
    before_SV = sorted_SV.cumsum(dim=-1) - sorted_SV
    share_S1 = sorted_SV.sum(dim=-1, keepdim=True) * sampling.top_p
    if sampling.top_p < 1:
        sorted_SV = sorted_SV.masked_fill(before_SV >= share_S1, 0)
    return torch.zeros_like(probabilities_SV).scatter(-1, order_SV, sorted_SV)
