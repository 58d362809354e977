"""The vision tower: tiles of one image in, features for cross-attention out.

Parameter names are transformers' (`MllamaVisionModel`); arrays have no batch axis, because images
are encoded one at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from llavacot_mlx.model.activations import gelu
from llavacot_mlx.model.attention import attend
from llavacot_mlx.model.config import VisionConfig
from llavacot_mlx.model.linear import Linear

Attention = Callable[[mx.array, mx.array, mx.array], mx.array]
"""Queries, keys, values → attention output, with the shapes of `attend`."""

_PADDING_MULTIPLE = 8
_LAYER_NORM_EPS = (
    1e-5  # torch's default, for the two norms outside the encoders; no config.json has it
)


class VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        size = config.hidden_size
        self.q_proj = Linear(size, size)
        self.k_proj = Linear(size, size)
        self.v_proj = Linear(size, size)
        self.o_proj = Linear(size, size)

    def __call__(self, x: mx.array, num_real: int, attention: Attention = attend) -> mx.array:
        """`x` is (tokens, hidden): the first `num_real` tokens are real, the rest are padding.

        transformers' mask is the outer product of "is padding" with itself, so real queries attend
        to all keys, and padding queries to the real keys only. Two calls without a mask compute
        the same.
        """
        queries, keys, values = (
            projection(x).reshape(1, len(x), self.num_heads, -1).swapaxes(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )  # (1, heads, tokens, head_dim)
        real_output = attention(queries[:, :, :num_real], keys, values)
        padding_output = attention(
            queries[:, :, num_real:], keys[:, :, :num_real], values[:, :, :num_real]
        )
        mixed = mx.concatenate([real_output, padding_output], axis=2)
        return self.o_proj(mixed.swapaxes(1, 2).reshape(x.shape))


class VisionMLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, bias=True)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, bias=True)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(gelu(self.fc1(x)))


class VisionLayer(nn.Module):
    def __init__(self, config: VisionConfig, is_gated: bool) -> None:
        super().__init__()
        self.self_attn = VisionAttention(config)
        self.mlp = VisionMLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.is_gated = is_gated
        if is_gated:
            self.gate_attn = mx.zeros((1,))
            self.gate_ffn = mx.zeros((1,))

    def __call__(self, x: mx.array, num_real: int, attention: Attention = attend) -> mx.array:
        update = self.self_attn(self.input_layernorm(x), num_real, attention)
        x = x + (mx.tanh(self.gate_attn) * update if self.is_gated else update)
        update = self.mlp(self.post_attention_layernorm(x))
        return x + (mx.tanh(self.gate_ffn) * update if self.is_gated else update)


class VisionEncoder(nn.Module):
    def __init__(self, config: VisionConfig, num_layers: int, is_gated: bool) -> None:
        super().__init__()
        self.layers = [VisionLayer(config, is_gated) for _ in range(num_layers)]


class TileEmbedding(nn.Module):
    """The position of a tile within its arrangement, behind a tanh gate."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_tiles = config.max_num_tiles
        self.embedding = nn.Embedding(
            config.num_aspect_ratios + 1, config.max_num_tiles * config.hidden_size
        )
        self.gate = mx.zeros((1,))

    def __call__(self, aspect_ratio_id: int) -> mx.array:
        """Returns (tiles, 1, hidden)."""
        row = self.embedding(mx.array([aspect_ratio_id]))
        return mx.tanh(self.gate) * row.reshape(self.num_tiles, 1, -1)


class PositionEmbedding(nn.Module):
    """The position of a patch in its tile and in the whole arrangement, mixed by a gate."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.shape = (config.max_num_tiles, config.tokens_per_tile, config.hidden_size)
        tiles, tokens, size = self.shape
        self.embedding = mx.zeros((tokens, size))
        self.tile_embedding = nn.Embedding(config.num_aspect_ratios + 1, tiles * tokens * size)
        self.gate = mx.zeros((1,))

    def __call__(self, aspect_ratio_id: int) -> mx.array:
        """Returns (tiles, tokens of a tile, hidden)."""
        gate = mx.tanh(self.gate)
        across = self.tile_embedding(mx.array([aspect_ratio_id])).reshape(self.shape)
        return (1 - gate) * self.embedding + gate * across


class PatchEmbedding(nn.Module):
    """The convolution that turns each patch into a vector, written as one matrix product."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch = config.patch_size
        self.weight = mx.zeros(
            (config.hidden_size, config.patch_size, config.patch_size, config.num_channels)
        )

    def __call__(self, pixels: mx.array) -> mx.array:
        """(tiles, height, width, channels) → (tiles, patches, hidden), row by row."""
        tiles, height, width, channels = pixels.shape
        grid = (tiles, height // self.patch, self.patch, width // self.patch, self.patch, channels)
        patches = pixels.reshape(grid).transpose(0, 1, 3, 2, 4, 5)
        flat = patches.reshape(tiles, -1, self.patch * self.patch * channels)
        return flat @ self.weight.reshape(len(self.weight), -1).T


LayerRunner = Callable[[VisionLayer, mx.array, int], mx.array]
"""Layer, input and number of real tokens → output."""


def call_layer(layer: VisionLayer, x: mx.array, num_real: int) -> mx.array:
    return layer(x, num_real)


class VisionModel(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = PatchEmbedding(config)
        self.class_embedding = mx.zeros((config.hidden_size,))
        self.gated_positional_embedding = PositionEmbedding(config)
        self.pre_tile_positional_embedding = TileEmbedding(config)
        self.post_tile_positional_embedding = TileEmbedding(config)
        self.layernorm_pre = nn.LayerNorm(config.hidden_size, eps=_LAYER_NORM_EPS)
        self.layernorm_post = nn.LayerNorm(config.hidden_size, eps=_LAYER_NORM_EPS)
        self.transformer = VisionEncoder(config, config.num_hidden_layers, is_gated=False)
        self.global_transformer = VisionEncoder(config, config.num_global_layers, is_gated=True)

    def __call__(
        self, pixels: mx.array, aspect_ratio_id: int, run: LayerRunner = call_layer
    ) -> mx.array:
        """Encodes one image.

        `pixels` is (real tiles, height, width, channels); `aspect_ratio_id` counts from 1. The
        result is (max_num_tiles * tokens_per_tile, output_size): the tokens of the real tiles, then
        those of the absent tiles, which are all-zero images that take part in every layer. `run`
        calls a layer with its input and the number of real tokens.
        """
        config = self.config
        tiles, tokens = config.max_num_tiles, config.tokens_per_tile
        num_real = len(pixels) * tokens
        padding = -tokens % _PADDING_MULTIPLE  # tokens that fill a tile up to a multiple of 8

        x = self._embed(pixels, aspect_ratio_id)  # (tiles * tokens, hidden)
        # The padding of all tiles goes to the end, so that real and padding tokens are two slices.
        x = mx.concatenate([x, mx.zeros((tiles * padding, x.shape[-1]), x.dtype)])

        intermediate = {}
        for index, layer in enumerate(self.transformer.layers):
            x = run(layer, x, num_real)
            if index in config.intermediate_layers_indices:
                intermediate[index] = x[: tiles * tokens]
        x = self.layernorm_post(x)
        position = self.post_tile_positional_embedding(aspect_ratio_id)
        x = x + mx.concatenate(
            [
                mx.broadcast_to(position, (tiles, count, position.shape[-1])).reshape(
                    tiles * count, position.shape[-1]
                )
                for count in (tokens, padding)
            ]
        )
        for layer in self.global_transformer.layers:
            x = run(layer, x, num_real)
        # The intermediate features are interleaved: (tokens, hidden, layer), flattened.
        stacked = mx.stack([intermediate[i] for i in config.intermediate_layers_indices], axis=-1)
        return mx.concatenate([x[: tiles * tokens], stacked.reshape(tiles * tokens, -1)], axis=-1)

    def _embed(self, pixels: mx.array, aspect_ratio_id: int) -> mx.array:
        config = self.config
        absent = config.max_num_tiles - len(pixels)
        patches = self.patch_embedding(pixels.astype(self.patch_embedding.weight.dtype))
        patches = mx.pad(patches, [(0, absent), (0, 0), (0, 0)])
        patches = patches + self.pre_tile_positional_embedding(aspect_ratio_id)
        class_tokens = mx.broadcast_to(
            self.class_embedding, (config.max_num_tiles, 1, config.hidden_size)
        )
        x = mx.concatenate([class_tokens, patches], axis=1)
        x = x + self.gated_positional_embedding(aspect_ratio_id)
        return self.layernorm_pre(x).reshape(-1, config.hidden_size)
