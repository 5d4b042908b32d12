"""What a forward pass keeps for the backward pass, and what it takes while it runs: bytes, per token.

Counted from transformers' layers as they are (RMS norms in float32, rotary embeddings, `sdpa`, a gated part
with SiLU): a tensor is kept if a product of the backward pass reads it. `benchmarks/plan_memory.py` compares
the whole with measured peaks.
"""

from dataclasses import dataclass

from sdzero.onprem.model_shape import NORMS_AFTER, Linear, ModelShape

FLOAT = 4
"""Bytes of a float32, in which norms, adapters and log-probabilities are whatever the weights are in."""


@dataclass(frozen=True)
class Adapters:
    """LoRA as a recipe has it: the rank, and on which of a layer's linear layers (ends of names)."""

    rank: int
    names: tuple[str, ...] | None = None

    def on(self, shape: ModelShape) -> tuple[Linear, ...]:
        """The linear layers of a decoder layer that have an adapter; without names all."""
        if self.names is None:
            return shape.linears
        return tuple(linear for linear in shape.linears if linear.name.endswith(self.names))

    def parameters(self, shape: ModelShape) -> int:
        """Numbers in the adapters of the whole model."""
        return shape.layers * sum(self.rank * (linear.inner + linear.outer) for linear in self.on(shape))


def kept_by_layer(shape: ModelShape, size: int, adapters: Adapters | None, packed: bool) -> float:
    """Bytes that a decoder layer keeps of each token. `size` is that of a weight, `packed` says that several
    sequences may share a row."""
    queries, keys = shape.queries, shape.keys
    exact = max(size, FLOAT)
    normed = exact if shape.family in NORMS_AFTER else size
    of_norm = exact + (
        normed if adapters is None else 0
    )  # its input; what it multiplies a trained weight with
    kept = 2 * of_norm * shape.width
    if shape.norms is not None:
        kept += of_norm * (queries + keys)
    kept += size * (queries + 2 * keys) + size * queries + FLOAT * shape.heads  # attention: read, and put out
    if packed:
        kept += size * queries
    kept += 3 * size * shape.inner  # gate, SiLU of it, up
    return kept + _kept_for_linears(shape, size, adapters)


def _kept_for_linears(shape: ModelShape, size: int, adapters: Adapters | None) -> float:
    """The inputs of linear layers that are not kept for something else: of q, k and v (one), of gate and up
    (one), of down. A frozen layer needs none; an adapter needs it in float32, a copy each if that is
    longer."""
    groups = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("down_proj",))
    if adapters is None:
        return size * (2 * shape.width + shape.inner)
    on = adapters.on(shape)
    kept = float(FLOAT * adapters.rank * len(on))
    if size < FLOAT:
        return kept + FLOAT * sum(linear.inner for linear in on)
    for names in groups:
        kept += size * max((linear.inner for linear in on if linear.name in names), default=0)
    return kept


def kept_by_model(
    shape: ModelShape, size: int, adapters: Adapters | None, packed: bool, checkpointing: bool
) -> float:
    """Bytes that all layers and the last norm keep of each token; with gradient checkpointing the inputs of
    the layers alone."""
    if checkpointing:
        layers = float(shape.layers * size * shape.width)
    else:
        layers = shape.layers * kept_by_layer(shape, size, adapters, packed)
    of_norm = max(size, FLOAT) + (size if adapters is None else 0)
    angles = 2 * size * shape.head_width * len({window is None for window in shape.windows})
    return layers + of_norm * shape.width + angles


def forward_working(shape: ModelShape, size: int) -> float:
    """Bytes that a layer takes of each token while it runs, if nothing is kept: the more of its two
    halves."""
    exact = max(size, FLOAT)
    gated = size * (2 * shape.width + 3 * shape.inner)
    normed = 3 * exact * shape.queries if shape.norms else 0
    attention = size * (2 * shape.width + 2 * shape.queries + 2 * shape.keys) + normed
    return float(max(gated, attention))


def backward_working(shape: ModelShape, size: int) -> float:
    """Bytes that the backward pass of a layer takes of each token, beyond what is kept."""
    return float(size * (2 * shape.width + 2 * shape.inner))
