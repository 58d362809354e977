"""An estimate of the memory that a training needs."""

from __future__ import annotations

from dataclasses import dataclass

from mlx.utils import tree_flatten

from llavacot_mlx.model.kernels import kernels
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.train.settings import TrainSettings

_LOGIT_ROWS = 128  # positions that go through the output head at once


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes, split into parts that different settings change."""

    weights: int
    learning: int
    """A second copy of the trained weights, their gradients, and the optimizer state."""
    activations: int
    """Activations of one batch at the maximum sequence length."""

    @property
    def total(self) -> int:
        return self.weights + self.learning + self.activations


def estimate(model: Mllama, settings: TrainSettings, tokens: int) -> MemoryEstimate:
    """The estimate for rows of at most `tokens` tokens, each with an image of four tiles.

    It counts the arrays that the backward pass reads again: per token and text layer, nine vectors
    of the hidden size and four of the MLP's size; per image, its features and their keys and
    values. With gradient checkpointing, it is one hidden state per layer and one whole layer. Where
    attention is not fused (on the CPU), the scores of one layer are added.
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
    """What to change when memory is short, the cheapest change first."""
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
