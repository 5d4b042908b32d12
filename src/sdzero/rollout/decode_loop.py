"""The loop that samples: rows start with a prompt, get a token a step, and leave when they end.

Equal prompts are prefilled once, and the cache of that row is copied to every row that asks for it. An
ended row leaves the batch at once; its place is taken by the last live row, so only what moves is copied.
If there are more requests than slots, those that wait are prefilled into the places of ended rows once a
quarter of the slots is free (continuous batching).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sdzero.rollout.decode_step import Step
from sdzero.rollout.drawing import draw_tokens, random_numbers
from sdzero.rollout.engine import Request, Sampling
from sdzero.rollout.row_cache import RowCache

FREE_SHARE = 0.25
"""Share of the slots that must be free before waiting requests are prefilled into them."""

Ended = tuple[int, tuple[int, ...], Literal["end", "length"]]
"""Index of the request, the sampled token ids, why it stopped."""


@dataclass
class Rows:
    """The live rows: a cache, and tensors `[rows]`.

    `slots` is where a row's sampled tokens stand, `steps` how many there are, `tokens` the last of them,
    `positions` its position, `starts` the column of the cache where the prompt begins. `oldest` is the
    most steps of any row; `is_padded` says whether some prompt does not begin at the first column.
    """

    cache: Any
    slots: Tensor
    steps: Tensor
    tokens: Tensor
    positions: Tensor
    starts: Tensor
    oldest: int
    is_padded: bool

    def __len__(self) -> int:
        return len(self.slots)

    def keep(self, order: Tensor) -> None:
        """Keep the rows `order`, in that order."""
        self._keep_all_but_cache(order)
        self.cache.batch_select_indices(order)

    def _keep_all_but_cache(self, order: Tensor) -> None:
        self.slots, self.steps, self.tokens = self.slots[order], self.steps[order], self.tokens[order]
        self.positions, self.starts = self.positions[order], self.starts[order]

    def take_in(self, other: "Rows") -> None:
        """Add the rows of another group, which holds at most as many columns; their last ones align."""
        other.starts = other.starts + (self.cache.length - other.cache.length)
        self.cache.take_in(other.cache)
        self.slots, self.steps = torch.cat((self.slots, other.slots)), torch.cat((self.steps, other.steps))
        self.tokens = torch.cat((self.tokens, other.tokens))
        self.positions = torch.cat((self.positions, other.positions))
        self.starts = torch.cat((self.starts, other.starts))
        self.oldest, self.is_padded = max(self.oldest, other.oldest), True

    def forget_padding(self) -> None:
        """Drop the columns that are padding to every row, once they are a quarter of all."""
        count = int(self.starts.min())
        if count * 4 >= self.cache.length:
            self.cache.forget_columns(count)
            self.starts = self.starts - count


class DecodeLoop:
    """Samples for requests, the first ones first, at most `slots` of them at a time.

    `make_cache(rows)` makes an empty cache with room for so many rows. If there are more requests than
    slots, it must be a `RowCache`, and the prompts must come longest first: a new prompt then always fits
    under the columns that are held.
    """

    def __init__(
        self,
        step: Step,
        make_cache: Callable[[int], Any],
        end_token_ids: Tensor,
        pad_token_id: int,
        slots: int,
        requests: Sequence[Request],
        sampling: Sampling,
    ) -> None:
        self._step, self._make_cache, self._ends = step, make_cache, end_token_ids
        self._pad_token_id, self._capacity = pad_token_id, slots
        self._requests, self._sampling = requests, sampling
        self._next = 0  # the first request that waits
        shape = min(slots, len(requests)), sampling.max_new_tokens
        self._free_slots = list(range(shape[0]))
        self._request_of = [0] * shape[0]
        self._sampled = torch.zeros(shape, dtype=torch.long, device=end_token_ids.device)
        self._numbers = (
            torch.zeros(shape, dtype=torch.float64, device=end_token_ids.device)
            if sampling.temperature > 0
            else None
        )

    @torch.inference_mode()
    def run(self) -> Iterator[list[Ended]]:
        """The ended rows of each step, as they end; the index counts within the requests."""
        rows: Rows | None = None
        while True:
            if rows is not None and not len(rows):
                rows = None
            if self._should_admit(rows):
                new, logits_LV = self._prefill()
                yield from self._settle(new, logits_LV)
                if rows is None:
                    rows = new
                elif len(new):
                    rows.take_in(new)
                continue
            if rows is None:
                return
            starts_L = rows.starts if rows.is_padded else None
            logits_LV = self._step(rows.tokens, rows.positions, starts_L, rows.cache)
            yield from self._settle(rows, logits_LV)

    def _should_admit(self, rows: Rows | None) -> bool:
        if self._next == len(self._requests):
            return False
        return rows is None or len(self._free_slots) >= FREE_SHARE * len(self._request_of)

    def _prefill(self) -> tuple[Rows, Tensor]:
        """Rows for the next requests that wait, as many as there are free slots, and their first logits."""
        device = self._ends.device
        requests = self._requests[self._next : self._next + len(self._free_slots)]
        slots = [self._free_slots.pop(0) for _ in requests]
        for number, slot in enumerate(slots, start=self._next):
            self._request_of[slot] = number
        self._next += len(requests)
        slots_L = torch.tensor(slots, device=device)
        if self._numbers is not None:
            self._numbers[slots_L] = random_numbers(requests, self._sampling.max_new_tokens).to(device)

        distinct: dict[tuple[int, ...], int] = {}
        row_of = [distinct.setdefault(request.prompt_ids, len(distinct)) for request in requests]
        lengths_R = torch.tensor([len(prompt) for prompt in distinct])
        width = int(lengths_R.max())
        inputs_RT = torch.full((len(distinct), width), self._pad_token_id)
        for prompt, row in distinct.items():
            inputs_RT[row, width - len(prompt) :] = torch.tensor(prompt)
        starts_R = (width - lengths_R).to(device)
        columns_T = torch.arange(width, device=device)
        # Without padding no mask is needed, and attention takes its faster path.
        is_padded = bool(starts_R.any())
        mask_RT = columns_T >= starts_R[:, None] if is_padded else None
        positions_RT = (columns_T - starts_R[:, None]).clamp(min=0)
        cache = self._make_cache(self._capacity if len(distinct) == len(requests) else len(distinct))
        row_of_L = torch.tensor(row_of, device=device)
        logits_LV = self._step.prefill(inputs_RT.to(device), positions_RT, mask_RT, cache, row_of_L)
        if len(distinct) < len(requests):
            if isinstance(cache, RowCache):
                cache.spread(row_of_L, self._capacity)
            else:
                cache.batch_select_indices(row_of_L)
        steps_L = torch.zeros_like(slots_L)
        last_L = positions_RT[row_of_L, -1]
        return Rows(cache, slots_L, steps_L, steps_L, last_L, starts_R[row_of_L], 0, is_padded), logits_LV

    def _settle(self, rows: Rows, logits_LV: Tensor) -> Iterator[list[Ended]]:
        """Draw a token for every row, hand out the rows that are over, and keep the others."""
        numbers_L = None if self._numbers is None else self._numbers[rows.slots, rows.steps]
        rows.tokens = draw_tokens(logits_LV, numbers_L, self._sampling)
        self._sampled[rows.slots, rows.steps] = rows.tokens
        rows.steps, rows.positions, rows.oldest = rows.steps + 1, rows.positions + 1, rows.oldest + 1
        is_over_L = torch.isin(rows.tokens, self._ends)
        if is_over_L.any():
            yield self._ended(rows, is_over_L, "end")
        if rows.oldest == self._sampling.max_new_tokens:
            is_cut_L = (rows.steps == rows.oldest) & ~is_over_L
            if is_cut_L.any():
                yield self._ended(rows, is_cut_L, "length")
            is_over_L = is_over_L | is_cut_L
        if is_over_L.any():
            rows.keep(_close_ranks(is_over_L))
            if len(rows):
                rows.oldest = int(rows.steps.max())
                if self._next > len(self._request_of):  # rows of other ages have joined
                    rows.forget_padding()

    def _ended(self, rows: Rows, chosen_L: Tensor, reason: Literal["end", "length"]) -> list[Ended]:
        slots_E = rows.slots[chosen_L]
        slots, steps = slots_E.tolist(), rows.steps[chosen_L].tolist()
        sampled = self._sampled[slots_E, : max(steps)].tolist()
        self._free_slots += slots
        return [
            (self._request_of[slot], tuple(ids[:count]), reason)
            for slot, ids, count in zip(slots, sampled, steps, strict=True)
        ]


def _close_ranks(is_over_L: Tensor) -> Tensor:
    """Indices of the rows that go on, the last of them moved into the places of the ended ones.

    Rows that need not move keep their place: if rows 1 and 2 of six have ended, it is `[0, 4, 5, 3]`.
    """
    going_on = (~is_over_L).nonzero()[:, 0]
    order_L = torch.arange(len(going_on), device=is_over_L.device)
    order_L[is_over_L[: len(going_on)]] = going_on[going_on >= len(going_on)]
    return order_L
