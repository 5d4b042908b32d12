"""Several sequences in one row without padding: attention sees each alone, all other layers the long row.

Where the sequences begin reaches the attention layers by the arguments of transformers' variable-length
attention; FlashAttention takes those as they are. For `sdpa` an attention function is registered here
that runs PyTorch's own on one sequence after the other; without sequences it is transformers' `sdpa`. No
mask is made for the row, so no memory grows with the square of its length.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sdzero.errors import UserError

PACKED_SDPA = "sdzero_packed_sdpa"
FLASH = ("flash_attention_2", "flash_attention_3")

_sdpa: Any = sdpa_attention_forward

LAYER_TYPES = ("full_attention", "sliding_attention")
"""Layers that read nothing but attention's window of the sequence: others would see the neighbours."""

PROBE_LENGTHS = (5, 1, 9)


def packed_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    segment_lengths: Sequence[int] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each of the sequences of these lengths; without lengths, `sdpa`.

    Queries are [1, heads, N, size], the output is [1, N, heads, size]. Raises ValueError if the lengths do
    not sum up to N.
    """
    if segment_lengths is None:
        whole: tuple[Tensor, None] = _sdpa(
            module, query, key, value, attention_mask, sliding_window=sliding_window, **kwargs
        )
        return whole
    lengths = list(segment_lengths)
    if query.shape[0] != 1 or query.shape[2] != sum(lengths):
        raise ValueError(f"sequences of {sum(lengths)} tokens in a batch of shape {tuple(query.shape)}")
    outputs = []
    for start, length in zip(accumulate(lengths, initial=0), lengths, strict=False):
        own = slice(start, start + length)
        q, k, v = query[:, :, own], key[:, :, own], value[:, :, own]
        outputs.append(_sdpa(module, q, k, v, _window_mask(q, sliding_window), **kwargs)[0])
    return torch.cat(outputs, dim=1), None


def _window_mask(query: Tensor, sliding_window: int | None) -> Tensor | None:
    """[1, 1, T, T], or None where causality is all there is to it."""
    length = query.shape[2]
    if sliding_window is None or length <= sliding_window:
        return None
    position_T = torch.arange(length, device=query.device)
    distance_TT = position_T[:, None] - position_T[None, :]
    return ((distance_TT >= 0) & (distance_TT < sliding_window))[None, None]


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)


def enable_packing(model: PreTrainedModel) -> None:
    """Let a model with `sdpa` attention read packed rows; what it computes of other batches stays as it is.

    Raises UserError for attention without variable lengths, and what `check_packing` raises.
    """
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(PACKED_SDPA)
    if not packs_rows(model):
        raise UserError(
            f"attention `{model.config._attn_implementation}` cannot read packed sequences",
            "model.packing",
            "set model.packing=off, or model.attention to sdpa or flash_attention_2",
        )
    check_packing(model)


def packs_rows(model: PreTrainedModel) -> bool:
    """Whether the model's attention takes packed rows: the trainers then pack."""
    return model.config._attn_implementation in (*FLASH, PACKED_SDPA)


def check_packing(model: PreTrainedModel, device: torch.device | None = None) -> None:
    """Raise UserError for a model with layers of other kinds, or that mixes the sequences of a row.

    The latter is tried on a few tokens, on `device` if the model computes elsewhere than its weights lie.
    """
    others = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - set(LAYER_TYPES)
    if others or not _keeps_apart(model, device or model.device):
        why = f"it has layers of {', '.join(sorted(others))}" if others else "they see one another"
        raise UserError(
            f"{type(model).__name__} cannot read packed sequences: {why}",
            "model.packing",
            "set model.packing=off and model.attention=sdpa",
        )


def packed_arguments(
    lengths: Sequence[int], model: PreTrainedModel, device: torch.device | None = None
) -> dict[str, Any]:
    """What the decoder is to be called with, beside the row of ids [1, N], for sequences of these lengths.

    `device` is where it computes, by default where its weights lie.
    """
    device = device or model.device
    ends = list(accumulate(lengths, initial=0))
    boundaries = torch.tensor(ends, dtype=torch.int32, device=device)
    positions_1N = torch.cat([torch.arange(length) for length in lengths])[None].to(device)
    arguments: dict[str, Any] = {"position_ids": positions_1N}
    if model.config._attn_implementation == PACKED_SDPA:
        # A mask of four dimensions is handed on as it is; it is not looked at.
        return arguments | {
            "segment_lengths": list(lengths),
            "attention_mask": torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device),
        }
    return arguments | {
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def _keeps_apart(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether some short sequences give the same in one row as alone."""
    decoder = model.get_decoder()  # type: ignore[no-untyped-call]
    ids = [torch.arange(length, device=device)[None] for length in PROBE_LENGTHS]
    was_training = model.training
    model.train(False)
    with torch.no_grad():
        alone = [decoder(input_ids=own, use_cache=False).last_hidden_state for own in ids]
        packed = decoder(
            input_ids=torch.cat(ids, dim=1),
            use_cache=False,
            **packed_arguments(PROBE_LENGTHS, model, device),
        ).last_hidden_state
    model.train(was_training)
    expected = torch.cat(alone, dim=1)
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 5e-2
    return torch.allclose(packed, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
