"""Decoding on a GPU through CUDA graphs: transformers' static cache, the model's forward pass compiled.

A small model on a GPU waits for its kernels to be launched; a captured graph launches them all at once.
`torch.compile(mode="reduce-overhead")` captures one graph for each shape, so shapes are few: a batch keeps
its number of rows, ended ones included, until half of them are gone, and is then cut in half.

Not measured and not run on a GPU: where this was written there was none. On a CPU the same code runs
without compiling, which is what the tests cover; tests marked `gpu` compile it. It is off by default.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from sdzero.errors import UserError
from sdzero.rollout.decode_step import ModelStep


class StaticRows(StaticCache):
    """A static cache with room for `columns` tokens a row; its last rows may be ended ones."""

    def __init__(self, config: Any, columns: int) -> None:
        super().__init__(config=config, max_cache_len=columns)
        self.columns = columns

    @property
    def rows(self) -> int:
        """How many rows the tensors have, ended ones included."""
        first: Any = self.layers[0]
        return len(first.keys)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Put the rows `indices` first, in that order; the tensors grow as needed and shrink by halves."""
        live, rows = len(indices), self.rows
        fewer = rows
        while fewer > 1 and live <= fewer // 2:
            fewer //= 2
        layers: Any = self.layers
        for layer in layers:
            if live > rows:
                self._replace(layer, layer.keys[indices], layer.values[indices])
                continue
            layer.keys[:live] = layer.keys[indices]
            layer.values[:live] = layer.values[indices]
            if fewer < rows:
                self._replace(layer, layer.keys[:fewer].clone(), layer.values[:fewer].clone())

    @staticmethod
    def _replace(layer: Any, keys: Tensor, values: Tensor) -> None:
        layer.keys, layer.values, layer.batch_size = keys, values, len(keys)
        torch._dynamo.mark_static_address(layer.keys)
        torch._dynamo.mark_static_address(layer.values)


class StaticStep(ModelStep):
    """The model's forward pass on `StaticRows`; on a GPU it is compiled and captured."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        kinds = getattr(model.config.get_text_config(), "layer_types", None) or []
        if set(kinds) - {"full_attention"}:
            raise UserError(
                "CUDA graphs are for models with full attention in every layer",
                where=type(model).__name__,
                todo="set rollout.cuda_graphs to false",
            )
        self._decode: Any = model
        if model.device.type == "cuda":
            self._decode = torch.compile(model, mode="reduce-overhead", fullgraph=True, dynamic=False)

    def __call__(
        self, tokens_L: Tensor, positions_L: Tensor, starts_L: Tensor | None, cache: StaticRows
    ) -> Tensor:
        live, rows = len(tokens_L), cache.rows
        spare = (0, rows - live)
        columns_C = torch.arange(cache.columns, device=tokens_L.device)
        # The new token's own column is that of the tokens seen so far, which the cache counts on the device.
        mask_C = columns_C <= cache.get_seq_length()
        mask_RC = mask_C.expand(rows, -1)
        if starts_L is not None:
            mask_RC = mask_C & (columns_C >= torch.nn.functional.pad(starts_L, spare)[:, None])
        if tokens_L.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        output = self._decode(
            input_ids=torch.nn.functional.pad(tokens_L, spare)[:, None],
            attention_mask=mask_RC[:, None, None].contiguous(),
            position_ids=torch.nn.functional.pad(positions_L, spare)[:, None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_LV: Tensor = output.logits[:live, -1]
        return logits_LV
