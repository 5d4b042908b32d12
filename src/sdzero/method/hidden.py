"""From token ids to the hidden states that predict the targets, and the head that reads them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from sdzero.errors import UserError
from sdzero.packed_attention import packed_arguments

PROBE_TOKENS = 4


def output_head(model: PreTrainedModel) -> torch.nn.Linear:
    """The linear layer from hidden states to logits. Raises UserError if there is none."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, torch.nn.Linear):
        raise UserError(
            f"{type(model).__name__} has no linear output head",
            "model.path",
            "use a causal language model (AutoModelForCausalLM) with an output head",
        )
    return head


def logits_of(head: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """The head's logits, [..., V] of [..., D].

    By its weights and not by a call of the layer: wrappers that gather weights around each layer's forward
    want the same layers called in every process, and a process without tokens may have none for the head.
    """
    return functional.linear(hidden, head.weight, head.bias)


def hidden_states(
    model: PreTrainedModel,
    ids_BT: torch.Tensor,
    positions_N: torch.Tensor,
    lengths: Sequence[int] | None = None,
) -> torch.Tensor:
    """Last hidden states [N, D] at positions of the flattened [B * T] input.

    Rows are padded on the right and attention is causal, so no attention mask is needed. With `lengths` the
    input is one row [1, T] of sequences of these lengths (`sdzero.packed_attention`).
    """
    decoder = model.get_decoder()  # type: ignore[no-untyped-call]
    packed = {} if lengths is None else packed_arguments(lengths, model, ids_BT.device)
    hidden_BTD: torch.Tensor = decoder(input_ids=ids_BT, use_cache=False, **packed).last_hidden_state
    return hidden_BTD.reshape(-1, hidden_BTD.shape[-1])[positions_N.to(hidden_BTD.device)]


@contextmanager
def evaluating(*models: PreTrainedModel) -> Iterator[None]:
    """Eval mode and no gradients for what the block does; then each model is in the mode it was in."""
    modes = [model.training for model in models]
    for model in models:
        model.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


def check_output_head(model: PreTrainedModel) -> None:
    """Assert that logits are the output head applied to the last hidden state, and nothing more.

    Some architectures scale or cap their logits; the divergence on hidden states would then be that
    of another model. Raises UserError for those.
    """
    ids_BT = probe_ids(model.device)
    with evaluating(model):
        expected = model(input_ids=ids_BT, use_cache=False).logits[0]
        hidden_TD = hidden_states(model, ids_BT, torch.arange(PROBE_TOKENS))
        actual = logits_of(output_head(model), hidden_TD)
    check_logits(model, actual, expected)


def probe_ids(device: torch.device) -> torch.Tensor:
    """A row [1, T] of a few tokens, to try a model on."""
    return torch.arange(PROBE_TOKENS, device=device)[None]


def check_logits(model: PreTrainedModel, of_head_TV: torch.Tensor, expected_TV: torch.Tensor) -> None:
    """Raise UserError if the head's products with the hidden states are not the model's logits."""
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 5e-2
    if not torch.allclose(of_head_TV, expected_TV, rtol=tolerance, atol=tolerance):
        raise UserError(
            f"{type(model).__name__} changes its logits after the output head (scaling or capping)",
            "model.path",
            "this architecture is not supported by the divergence on hidden states",
        )
