"""One step of decoding: the logits of the next token for rows that have a cache.

`FastStep` computes what the model's own forward pass computes, with a fifth of the calls: q, k, v in one
product, gate and up in one product, no masks built per layer, rotary angles from a table. It reads the
model's own weights and knows three architectures (Llama, Qwen3, Olmo3); anything else, and anything that
was wrapped, patched or quantised, goes through `ModelStep`, the model's forward pass.

On a CPU the fused products give the same bits as the separate ones (checked by a test), so both steps
sample the same responses. With `packed` the weights are copied into oneDNN's layout for few rows, which
reads them at the memory's speed; that sums in another order, so it only rounds differently.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    LlamaForCausalLM,
    LlamaModel,
    Olmo3ForCausalLM,
    Olmo3Model,
    PreTrainedModel,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from sdzero.packed_attention import PACKED_SDPA
from sdzero.rollout.row_cache import RowCache

KNOWN = {LlamaForCausalLM: LlamaModel, Qwen3ForCausalLM: Qwen3Model, Olmo3ForCausalLM: Olmo3Model}
STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
"""Kinds of rotary embedding whose angles depend on the position alone, not on the longest sequence."""

PACK_FROM = 5_000_000
"""Parameters from which `packed` is chosen by itself: smaller models fit the processor's caches."""

Linear = Callable[[Tensor], Tensor]


class Step(Protocol):
    """From the last tokens of some rows to the logits of the next, `[rows, V]`.

    `starts_L` are the columns of the cache where each row begins; None if all begin at the first.
    `packed` says whether it multiplies with packed weights.
    """

    packed: bool

    def __call__(
        self, tokens_L: Tensor, positions_L: Tensor, starts_L: Tensor | None, cache: Any
    ) -> Tensor: ...

    def prefill(
        self, inputs_RT: Tensor, positions_RT: Tensor, mask_RT: Tensor | None, cache: Any, row_of_L: Tensor
    ) -> Tensor:
        """The logits behind prompts padded on the left; `mask_RT` is False at padding.

        `row_of_L` says which prompt each row has that is to be sampled; the result is `[L, V]`.
        """
        ...


class ModelStep:
    """The step by the model's own forward pass, for any architecture and any cache."""

    packed = False

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __call__(self, tokens_L: Tensor, positions_L: Tensor, starts_L: Tensor | None, cache: Any) -> Tensor:
        columns = cache.get_seq_length() + 1
        mask = None
        if starts_L is not None:
            mask = torch.arange(columns, device=tokens_L.device) >= starts_L[:, None]
        return self._forward(tokens_L[:, None], positions_L[:, None], mask, cache)

    def prefill(
        self, inputs_RT: Tensor, positions_RT: Tensor, mask_RT: Tensor | None, cache: Any, row_of_L: Tensor
    ) -> Tensor:
        return self._forward(inputs_RT, positions_RT, mask_RT, cache)[row_of_L]

    def _forward(self, inputs_LT: Tensor, positions_LT: Tensor, mask_LT: Tensor | None, cache: Any) -> Tensor:
        output = self._model(
            input_ids=inputs_LT,
            attention_mask=mask_LT,
            position_ids=positions_LT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_LV: Tensor = output.logits[:, -1]
        return logits_LV


def fits(model: PreTrainedModel) -> bool:
    """Whether `FastStep` computes what this very model computes."""
    if KNOWN.get(type(model)) is not type(getattr(model, "model", None)):
        return False
    config: Any = model.config
    rope = model.model.rotary_emb.rope_type
    return (
        model.device.type == "cpu"
        and {parameter.dtype for parameter in model.parameters()} in ({torch.float32}, {torch.float64})
        and config._attn_implementation in ("sdpa", PACKED_SDPA)
        and config.hidden_act == "silu"
        and set(rope.values() if isinstance(rope, dict) else [rope]) <= STATIC_ROPE
        and not any(_is_changed(module) for module in model.modules())
    )


def _is_changed(module: nn.Module) -> bool:
    """Whether a module does not simply compute what its class says: adapters, quantised layers, hooks."""
    if any(name.endswith("_proj") or name == "lm_head" for name, _ in module.named_children()):
        children = dict(module.named_children()).items()
        if any(
            type(c) is not nn.Linear for name, c in children if name.endswith("_proj") or name == "lm_head"
        ):
            return True
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def can_pack(model: PreTrainedModel) -> bool:
    """Whether the weights can be packed: float32 on a CPU, and a build of PyTorch with oneDNN."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        and fits(model)
    )


def make_step(model: PreTrainedModel, rows: int, packed: bool | None = None) -> Step:
    """The fastest step for this model; `rows` is how many rows a step has at most.

    `packed` None packs the weights where that is possible and the model has `PACK_FROM` parameters.
    """
    if not fits(model):
        return ModelStep(model)
    if packed is None:
        packed = can_pack(model) and sum(p.numel() for p in model.parameters()) >= PACK_FROM
    return FastStep(model, rows, packed)


def _linear(weight: Tensor, bias: Tensor | None, pack_for: int | None) -> Linear:
    """`x -> x W^T + b`, with the weight copied into oneDNN's layout for `pack_for` rows."""
    if pack_for is None:
        return lambda x: functional.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, pack_for)
    multiply = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: multiply(x, packed, bias, "none", [], "")


def _fused(parts: list[nn.Linear], pack_for: int | None) -> Linear:
    """Several linear maps of one input as one; the outputs stand side by side."""
    if len(parts) == 1:
        return _linear(parts[0].weight, parts[0].bias, pack_for)
    bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
    fused = _linear(torch.cat([part.weight for part in parts]), bias, pack_for)
    if pack_for is not None:
        return fused

    def multiply(x: Tensor) -> Tensor:
        # A single row is multiplied as a vector, whose sums run in an order that depends on the width.
        if len(x) > 1:
            return fused(x)
        return torch.cat([functional.linear(x, part.weight, part.bias) for part in parts], dim=-1)

    return multiply


def _norm(module: Any) -> Linear:
    """The module's RMS norm: in float32 PyTorch's own, which gives the same bits in one call."""
    weight, eps = module.weight, module.variance_epsilon
    if weight.dtype != torch.float32:
        return lambda x: module(x)
    return lambda x: functional.rms_norm(x, weight.shape, weight, eps)


class FastStep:
    """The step over the weights of a model that `fits`; they are read when it is made.

    So it must be made again after the weights have changed: `rows` and `packed` as in `make_step`.
    """

    def __init__(self, model: PreTrainedModel, rows: int, packed: bool) -> None:
        base: Any = model.model
        config: Any = model.config
        pack_for = min(rows, 8) if packed else None
        self._model, self._base, self.packed, self._rows = model, base, packed, rows
        self._kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(base.layers)
        self._window = config.sliding_window if "sliding_attention" in self._kinds else None
        self._head = _fused([model.lm_head], pack_for)
        self._final_norm = _norm(base.norm)
        self._layers = [FastLayer(layer, pack_for) for layer in base.layers]
        self._angles: dict[str, tuple[Tensor, Tensor]] = {}

    def prefill(
        self, inputs_RT: Tensor, positions_RT: Tensor, mask_RT: Tensor | None, cache: Any, row_of_L: Tensor
    ) -> Tensor:
        self._make_tables(int(positions_RT.max()) + 1)
        output = self._base(
            input_ids=inputs_RT,
            attention_mask=mask_RT,
            position_ids=positions_RT,
            past_key_values=cache,
            use_cache=True,
        )
        hidden_RTD: Tensor = output.last_hidden_state
        if self.packed:
            return self._head(hidden_RTD[:, -1].contiguous())[row_of_L]
        # Shape and strides are those of a prefill of every row by the model's forward pass, and so are the
        # bits; only the last column is ever touched.
        hidden_LTD = hidden_RTD.new_empty((len(row_of_L), *hidden_RTD.shape[1:]))
        hidden_LTD[:, -1] = hidden_RTD[row_of_L, -1]
        return self._head(hidden_LTD[:, -1:])[:, 0]

    def _make_tables(self, positions: int) -> None:
        """Cosines and signed sines of all positions up to twice the given number, `[P, head size]`."""
        if self._angles and len(next(iter(self._angles.values()))[0]) >= positions:
            return
        weight = self._base.embed_tokens.weight
        positions_1P = torch.arange(max(128, 2 * positions))[None]
        for kind in set(self._kinds):
            by_kind = [kind] if isinstance(self._base, Olmo3Model) else []
            cosines, sines = self._base.rotary_emb(weight, positions_1P, *by_kind)
            # The half turn of rotary embeddings is [-b, a]: a roll, with the sign in the sines.
            half = sines.shape[-1] // 2
            self._angles[kind] = cosines[0], torch.cat((-sines[0, :, :half], sines[0, :, half:]), dim=-1)

    def __call__(
        self, tokens_L: Tensor, positions_L: Tensor, starts_L: Tensor | None, cache: RowCache
    ) -> Tensor:
        live = len(tokens_L)
        self._make_tables(cache.length + 2)
        spare = self._spare_rows(live)
        if spare:
            tokens_L = functional.pad(tokens_L, (0, spare))
            positions_L = functional.pad(positions_L, (0, spare))
            starts_L = None if starts_L is None else functional.pad(starts_L, (0, spare))
        columns = cache.length + 1
        mask = mask_in_window = None
        if starts_L is not None:
            mask = torch.zeros((len(tokens_L), columns), dtype=self._base.embed_tokens.weight.dtype)
            mask.masked_fill_(torch.arange(columns) < starts_L[:, None], float("-inf"))
            mask = mask[:, None, None]
            mask_in_window = mask if self._window is None else mask[..., -self._window :]
        angles = {
            kind: (cosines[positions_L][:, None], sines[positions_L][:, None])
            for kind, (cosines, sines) in self._angles.items()
        }
        # One token a row, and an axis for it: a matrix of a single row would be multiplied another way.
        hidden_L1D = functional.embedding(tokens_L[:, None], self._base.embed_tokens.weight)
        for layer, growing, kind in zip(self._layers, cache.growing, self._kinds, strict=True):
            if kind == "sliding_attention":
                hidden_L1D = layer(hidden_L1D, angles[kind], mask_in_window, growing, self._window)
            else:
                hidden_L1D = layer(hidden_L1D, angles[kind], mask, growing, None)
        return self._head(self._final_norm(hidden_L1D))[:live, 0]

    def _spare_rows(self, live: int) -> int:
        """Rows to add: oneDNN makes code for every number of rows anew, so packed steps use few numbers."""
        if not self.packed or live <= 8:
            return 0
        unit = 8 if live <= 64 else 32
        return min(-(-live // unit) * unit, self._rows) - live


class FastLayer:
    """One decoder layer for one new token a row; the residual stream goes in and comes out."""

    def __init__(self, layer: Any, pack_for: int | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._size: int = attention.head_dim
        self._scale: float = attention.scaling
        self._heads: int = attention.q_proj.out_features // self._size
        self._key_heads: int = attention.k_proj.out_features // self._size
        self._qkv = _fused([attention.q_proj, attention.k_proj, attention.v_proj], pack_for)
        self._out = _fused([attention.o_proj], pack_for)
        self._gate_up = _fused([mlp.gate_proj, mlp.up_proj], pack_for)
        self._down = _fused([mlp.down_proj], pack_for)
        # Olmo3 norms what a block puts out, and all of q and of k; Qwen3 norms each head of q and of k.
        norms_after = hasattr(layer, "post_feedforward_layernorm")
        self._before = (
            None if norms_after else (_norm(layer.input_layernorm), _norm(layer.post_attention_layernorm))
        )
        self._after = (
            (_norm(layer.post_attention_layernorm), _norm(layer.post_feedforward_layernorm))
            if norms_after
            else None
        )
        self._qk_norms = (
            (_norm(attention.q_norm), _norm(attention.k_norm)) if hasattr(attention, "q_norm") else None
        )
        self._head_norm: tuple[Tensor, float] | None = None
        if self._qk_norms and not norms_after and attention.q_norm.weight.dtype == torch.float32:
            weights = [attention.q_norm.weight] * self._heads + [attention.k_norm.weight] * self._key_heads
            self._head_norm = torch.stack(weights), attention.q_norm.variance_epsilon

    def __call__(
        self,
        hidden_L1D: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Any,
        window: int | None,
    ) -> Tensor:
        attended_L1D = self._attend(
            self._before[0](hidden_L1D) if self._before else hidden_L1D, angles, mask, cache, window
        )
        hidden_L1D = hidden_L1D + (self._after[0](attended_L1D) if self._after else attended_L1D)
        gate, up = self._gate_up(self._before[1](hidden_L1D) if self._before else hidden_L1D).chunk(2, dim=-1)
        out_L1D = self._down(functional.silu(gate) * up)
        return hidden_L1D + (self._after[1](out_L1D) if self._after else out_L1D)

    def _attend(
        self,
        normed_L1D: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Any,
        window: int | None,
    ) -> Tensor:
        rows, heads, key_heads, size = len(normed_L1D), self._heads, self._key_heads, self._size
        states = self._qkv(normed_L1D).view(rows, heads + 2 * key_heads, size)
        turned, values = states[:, : heads + key_heads], states[:, heads + key_heads :]
        if self._qk_norms:
            turned = self._norm_queries_and_keys(turned)
        cosines, sines = angles
        turned = turned * cosines + turned.roll(size // 2, -1) * sines
        all_keys, all_values = cache.append(turned[:, heads:], values)
        if window is not None:
            all_keys, all_values = all_keys[:, :, -window:], all_values[:, :, -window:]
        # The query heads of one key head are so many queries to it: one token a row needs no causal mask.
        queries = turned[:, :heads].reshape(rows, key_heads, heads // key_heads, size)
        out = functional.scaled_dot_product_attention(
            queries, all_keys, all_values, attn_mask=mask, scale=self._scale
        )
        return self._out(out.reshape(rows, 1, heads * size))

    def _norm_queries_and_keys(self, turned: Tensor) -> Tensor:
        if self._head_norm is not None:  # Qwen3: each head by itself, so queries and keys together
            weight, eps = self._head_norm
            return functional.rms_norm(turned, turned.shape[-1:], None, eps) * weight
        assert self._qk_norms is not None
        norm_queries, norm_keys = self._qk_norms
        queries, keys = turned[:, : self._heads], turned[:, self._heads :]
        if self._after:  # Olmo3: over all heads together
            queries = norm_queries(queries.flatten(1)).view_as(queries)
            keys = norm_keys(keys.flatten(1)).view_as(keys)
        else:
            queries, keys = norm_queries(queries), norm_keys(keys)
        return torch.cat((queries, keys), dim=1)
