"""What a training will need in memory, worked out before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from mlx.utils import tree_flatten

from llavacot_mlx.model.kernels import kernels
from llavacot_mlx.model.mllama import Mllama

from .settings import TrainSettings

_LOGIT_ROWS = 128  # as many positions go through the output head at once


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes, in the parts that can be changed by different settings."""

    weights: int
    learning: int
    """The weights that learn once more, as gradients, and as the optimizer's state."""
    activations: int
    """Of one batch, at the longest sequence."""

    @property
    def total(self) -> int:
        return self.weights + self.learning + self.activations


def estimate(model: Mllama, settings: TrainSettings, tokens: int) -> MemoryEstimate:
    """For batches of rows of at most `tokens` tokens, each with a picture of four tiles.

    Counted are the arrays that the backward pass reads again: of a text layer nine rows as wide as
    the hidden state and four as wide as its MLP, and of every picture its features and their keys
    and values; with gradient checkpoints one row a layer, and one whole layer. Where attention is
    not fused (the CPU), one layer's scores come on top.
    """
    text, vision = model.config.text, model.config.vision
    learning = sum(array.size for _, array in tree_flatten(model.trainable_parameters()))
    states = {"sgd": 0, "muon": 1, "adafactor": 0}.get(settings.optimizer, 2)
    width = model.language_model.model.norm.weight.dtype.size
    hidden, kv = text.hidden_size, text.num_key_value_heads * text.head_dim

    layer = (9 * hidden + 4 * text.intermediate_size) * tokens
    seen = vision.max_num_tiles * vision.tokens_per_tile
    layers, crosses = text.num_hidden_layers, len(text.cross_attention_layers)
    if settings.grad_checkpoint:
        row = layers * hidden * tokens + layer + 2 * kv * seen
    else:
        row = layers * layer + crosses * 2 * kv * seen
    row += hidden * seen
    if not kernels().fused_attention:
        row += 2 * text.num_attention_heads * tokens * max(tokens, seen)
    logits = 3 * 4 * text.vocab_size * min(_LOGIT_ROWS, settings.batch_size * tokens)
    return MemoryEstimate(
        weights=sum(array.nbytes for _, array in tree_flatten(model.parameters())),
        learning=learning * 4 * (2 + states),
        activations=settings.batch_size * row * width + logits,
    )


def advice(settings: TrainSettings) -> str:
    """What to change when the memory does not suffice, the cheapest first."""
    options = []
    if settings.batch_size > 1:
        options.append(
            f"--batch-size {max(1, settings.batch_size // 2)} with "
            f"--grad-accumulation-steps {settings.grad_accumulation_steps * 2}"
        )
    if not settings.grad_checkpoint:
        options.append("--grad-checkpoint")
    options.append("a shorter --max-seq-length")
    options.append("a model in 4 bits (llavacot convert -q)")
    return ", ".join(options)
