"""Keys and values of the rows that are sampled together, with room for what is still to come.

Rows end, change places and are joined by others; all share one axis of columns (tokens), padded on the
left. transformers' own caches concatenate at every step, which copies everything that is held; here a
step writes one column.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

ROOM_AHEAD = 32
"""Columns (tokens) that are set aside beyond the current length, at least, when a cache grows."""


class GrowingLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, `[rows, heads, tokens, head size]`, in buffers with room to spare.

    What `update` returns is a view of the live rows and of the columns held, so attention reads nothing
    that is not used. The buffers grow by half at a time. `rows_ahead` is how many rows they have room for,
    if it is more than there are at first.
    """

    is_compileable = False
    is_sliding = False
    is_croppable = False

    def __init__(self, rows_ahead: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length = 0
        self.rows = 0
        self._first = 0  # column of the buffers at which the first column held stands
        self._rows_ahead = rows_ahead

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room for the first tokens; the shapes are known only now."""
        self.rows = key_states.shape[0]
        self.dtype, self.device = key_states.dtype, key_states.device
        self._rows_ahead = max(self._rows_ahead, self.rows)
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self._make_room(key_states.shape[2])
        self.is_initialized = True

    def _make_room(self, columns: int) -> None:
        """See to it that `columns` more columns fit behind those held."""
        assert self.keys is not None
        needed = self.length + columns
        if self._first + needed <= self.keys.shape[2]:
            return
        grown = []
        for states in self.held(self.rows):
            rows, heads, length, size = states.shape
            room = needed + max(ROOM_AHEAD, needed // 2)
            buffer = states.new_empty((max(self._rows_ahead, rows), heads, room, size))
            buffer[:rows, :, :length] = states
            grown.append(buffer)
        self.keys, self.values = grown
        self._first = 0

    def held(self, rows: int) -> tuple[Tensor, Tensor]:
        """Views of the keys and values of the first `rows` rows."""
        assert self.keys is not None
        assert self.values is not None
        columns = slice(self._first, self._first + self.length)
        return self.keys[:rows, :, columns], self.values[:rows, :, columns]

    def append(self, keys_LHD: Tensor, values_LHD: Tensor) -> tuple[Tensor, Tensor]:
        """Write one column, for as many rows as are given, and return views of what those rows hold.

        More rows than are live may be given (padding of the batch); what they hold means nothing.
        """
        self._make_room(1)
        assert self.keys is not None
        assert self.values is not None
        rows, column = len(keys_LHD), self._first + self.length
        self.keys[:rows, :, column] = keys_LHD
        self.values[:rows, :, column] = values_LHD
        self.length += 1
        return self.held(rows)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append the states of new tokens and return all states so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._make_room(key_states.shape[2])
        assert self.keys is not None
        assert self.values is not None
        end = self._first + self.length
        self.length += key_states.shape[2]
        self.keys[: self.rows, :, end : self._first + self.length] = key_states
        self.values[: self.rows, :, end : self._first + self.length] = value_states
        return self.held(self.rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, in that order; a row that stays where it is is not copied."""
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
        if len(moved):
            for states in self.held(self.rows):
                states[moved] = states[indices[moved]]
        self.rows = len(indices)

    def spread(self, indices: Tensor, rows_ahead: int) -> None:
        """Copy rows: row i of the result is row `indices[i]`; there is room for `rows_ahead` rows then."""
        held = self.held(self.rows)
        self.rows = len(indices)
        self._rows_ahead = max(rows_ahead, self.rows)
        grown = []
        for states in held:
            _, heads, length, size = states.shape
            room = length + max(ROOM_AHEAD, length // 2)
            buffer = states.new_empty((self._rows_ahead, heads, room, size))
            buffer[: self.rows, :, :length] = states[indices]
            grown.append(buffer)
        self.keys, self.values = grown
        self._first = 0

    def take_in(self, other: "GrowingLayer") -> None:
        """Add the rows of another layer, their last columns under the last ones held here.

        The other layer may hold fewer columns; what stands left of them is padding to its rows.
        """
        new_rows, padding = self.rows + other.rows, self.length - other.length
        for states, others in zip(self.held(new_rows), other.held(other.rows), strict=True):
            assert len(states) == new_rows, "no room was set aside for these rows"
            # The values of padding are multiplied by a probability of 0: they must be finite.
            states[self.rows :, :, :padding] = 0
            states[self.rows :, :, padding:] = others
        self.rows = new_rows

    def forget_columns(self, count: int) -> None:
        """Drop the first `count` columns, which are padding to every row."""
        self._first += count
        self.length -= count

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that the mask must cover."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Columns held, padding included."""
        return self.length

    def get_max_length(self) -> int:
        """-1: there is no limit."""
        return -1


class RowCache(Cache):
    """A `GrowingLayer` for each layer of the model, and what is done to all of them alike."""

    def __init__(self, layer_count: int, rows_ahead: int = 0) -> None:
        self.growing: Sequence[GrowingLayer] = [GrowingLayer(rows_ahead) for _ in range(layer_count)]
        super().__init__(layers=list(self.growing))

    @property
    def length(self) -> int:
        """Columns held, padding included."""
        return self.growing[0].length

    def spread(self, indices: Tensor, rows_ahead: int) -> None:
        """Copy rows: row i of the result is row `indices[i]`; there is room for `rows_ahead` rows then."""
        for layer in self.growing:
            layer.spread(indices, rows_ahead)

    def take_in(self, other: "RowCache") -> None:
        """Add the rows of another cache that holds at most as many columns as this one."""
        for layer, others in zip(self.growing, other.growing, strict=True):
            layer.take_in(others)

    def forget_columns(self, count: int) -> None:
        """Drop the first `count` columns, which are padding to every row."""
        for layer in self.growing:
            layer.forget_columns(count)
