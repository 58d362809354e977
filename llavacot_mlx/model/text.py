"""The text model: Llama layers, and cross-attention layers that read the images.

Parameter names are transformers' (`MllamaTextModel`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from llavacot_mlx.model.activations import silu
from llavacot_mlx.model.config import Llama3Scaling, TextConfig
from llavacot_mlx.model.kv_budget import KVBudget
from llavacot_mlx.model.kv_cache import ImageKV, ImageSpan, KVCache, SelfAttentionCache
from llavacot_mlx.model.linear import Linear
from llavacot_mlx.model.quantized_kv import kv_bytes
from llavacot_mlx.model.rope import Rotation


class SelfAttention(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        size = config.hidden_size
        self.q_proj = Linear(size, self.num_heads * self.head_dim)
        self.k_proj = Linear(size, self.num_kv_heads * self.head_dim)
        self.v_proj = Linear(size, self.num_kv_heads * self.head_dim)
        self.o_proj = Linear(self.num_heads * self.head_dim, size)

    def __call__(
        self, x: mx.array, rotation: Rotation, cache: SelfAttentionCache, layer: int
    ) -> mx.array:
        # One call rotates queries and keys.
        projected = mx.concatenate([self.q_proj(x), self.k_proj(x)], axis=-1)
        rotated = rotation(_split_heads(projected, self.num_heads + self.num_kv_heads))
        queries, keys = rotated[:, : self.num_heads], rotated[:, self.num_heads :]
        values = _split_heads(self.v_proj(x), self.num_kv_heads)
        return self.o_proj(_merge_heads(cache.attend(layer, queries, keys, values)))


class CrossAttention(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        head_dim, size = config.head_dim, config.hidden_size
        self.q_proj = Linear(size, self.num_heads * head_dim)
        self.k_proj = Linear(size, self.num_kv_heads * head_dim)
        self.v_proj = Linear(size, self.num_kv_heads * head_dim)
        self.o_proj = Linear(self.num_heads * head_dim, size)
        self.q_norm = nn.RMSNorm(head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(head_dim, eps=config.rms_norm_eps)

    def project(self, features: mx.array) -> tuple[mx.array, mx.array]:
        """K/V of image features: (1, tokens, hidden) → two of (1, kv heads, tokens, head_dim)."""
        keys = self.k_norm(_split_heads(self.k_proj(features), self.num_kv_heads))
        # Laid out by heads once, so that no later step copies them again.
        return mx.contiguous(keys), mx.contiguous(
            _split_heads(self.v_proj(features), self.num_kv_heads)
        )

    def __call__(self, x: mx.array, cross_attend: Callable[[mx.array], mx.array]) -> mx.array:
        """`cross_attend` maps queries (batch, heads, tokens, head_dim) to attention outputs."""
        queries = self.q_norm(_split_heads(self.q_proj(x), self.num_heads))
        return self.o_proj(_merge_heads(cross_attend(queries)))


class TextMLP(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class SelfAttentionLayer(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.mlp = TextMLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(
        self, x: mx.array, rotation: Rotation, cache: SelfAttentionCache, layer: int
    ) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), rotation, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class CrossAttentionLayer(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.cross_attn = CrossAttention(config)
        self.mlp = TextMLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.cross_attn_attn_gate = mx.zeros((1,))
        self.cross_attn_mlp_gate = mx.zeros((1,))

    def __call__(
        self,
        x: mx.array,
        cross_attend: Callable[[mx.array], mx.array],
        after_image: mx.array | None,
    ) -> mx.array:
        """`cross_attend` is the attention to images. `after_image`, (batch, tokens, 1), is false
        at positions before the first image and in rows without one, whose attention is zero as
        well, so that the layer leaves them as they are; None means true everywhere."""
        update = self.cross_attn(self.input_layernorm(x), cross_attend)
        x = x + mx.tanh(self.cross_attn_attn_gate) * update
        update = self.mlp(self.post_attention_layernorm(x))
        if after_image is not None:
            update = mx.where(after_image, update, mx.zeros_like(update))
        return x + mx.tanh(self.cross_attn_mlp_gate) * update


class TextModel(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        # Eight more embeddings than the output head has: the first of them is `<|image|>`.
        self.embed_tokens = nn.Embedding(config.embedding_rows, config.hidden_size)
        self.layers = [
            CrossAttentionLayer(config)
            if index in config.cross_attention_layers
            else SelfAttentionLayer(config)
            for index in range(config.num_hidden_layers)
        ]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self._wavelengths = rope_wavelengths(config)  # underscored: follows from config, no weight

    @property
    def cross_layers(self) -> list[CrossAttentionLayer]:
        return [layer for layer in self.layers if isinstance(layer, CrossAttentionLayer)]

    def rotation(self, offset: int | mx.array, tokens: int) -> Rotation:
        """The rotation of `tokens` positions from `offset` on: one number, or (batch,)."""
        return Rotation(self._wavelengths, offset, tokens)

    def __call__(
        self, ids: mx.array, cache: SelfAttentionCache, spans: Sequence[ImageSpan]
    ) -> mx.array:
        """(batch, tokens) → (batch, tokens, hidden), and appends the tokens' K/V to `cache`.

        Without spans there is no image, and the cross-attention layers are skipped.
        """
        x = self.embed_tokens(ids)
        rotation = self.rotation(cache.offset, ids.shape[1])
        after_image = _after_image(spans, ids.shape[1])
        self_index = cross_index = 0
        for layer in self.layers:
            if isinstance(layer, CrossAttentionLayer):
                if spans:
                    x = layer(x, partial(_attend_to_images, spans, cross_index), after_image)
                cross_index += 1
            else:
                x = layer(x, rotation, cache, self_index)
                self_index += 1
        cache.advance(ids.shape[1])
        return self.norm(x)


class LanguageModel(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.model = TextModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def new_cache(self, budget: KVBudget | None = None) -> KVCache:
        return KVCache(len(self.model.layers) - len(self.model.cross_layers), budget)

    def image_kv_bytes(self, tokens: int, bits: int | None) -> int:
        """Returns the bytes of K/V of `tokens` image tokens, in `bits` or as computed."""
        config, layers = self.model.config, len(self.model.cross_layers)
        elements = 2 * layers * config.num_key_value_heads * config.head_dim * tokens
        return kv_bytes(elements, config.head_dim, self.model.norm.weight.dtype, bits)

    def text_kv_bytes(self, tokens: int) -> int:
        """Returns the bytes of K/V of `tokens` text tokens of one path, as computed."""
        config = self.model.config
        layers = len(self.model.layers) - len(self.model.cross_layers)
        elements = 2 * layers * config.num_key_value_heads * config.head_dim * tokens
        return elements * self.model.norm.weight.dtype.size

    def project_image_kv(self, features: mx.array, image_lengths: tuple[int, ...]) -> ImageKV:
        """Projects image features (1, tokens, hidden) to the K/V of every cross layer."""
        pairs = [layer.cross_attn.project(features) for layer in self.model.cross_layers]
        return ImageKV(
            tuple(keys for keys, _ in pairs), tuple(values for _, values in pairs), image_lengths
        )


def _split_heads(x: mx.array, heads: int) -> mx.array:
    """(batch, tokens, heads * head_dim) → (batch, heads, tokens, head_dim)."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _attend_to_images(spans: Sequence[ImageSpan], index: int, queries: mx.array) -> mx.array:
    """Attention of each span to its images; `index` counts the cross-attention layers."""
    outputs = [span.image_kv.attend(index, queries[:, :, span.start : span.stop]) for span in spans]
    return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=2)


def _after_image(spans: Sequence[ImageSpan], tokens: int) -> mx.array | None:
    """Returns the mask of `CrossAttentionLayer`; None where it would be true everywhere."""
    if not spans:
        return None
    before = sum(span.stop - span.start for span in spans if not span.after_image)
    # Positions before the first image come first.
    positions = mx.arange(tokens)[None, :, None] >= before if before else None
    rows = spans[-1].image_kv.rows_with_image
    if positions is None or rows is None:
        return rows if positions is None else positions
    return positions & rows


def _merge_heads(x: mx.array) -> mx.array:
    """(batch, heads, tokens, head_dim) → (batch, tokens, heads * head_dim)."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def rope_wavelengths(config: TextConfig) -> mx.array:
    """Tokens per radian for each pair of dimensions, (head_dim / 2,), in float32.

    The scaling is Llama 3.1's (`rope_type: llama3`): long wavelengths are stretched by `factor`,
    short ones are kept, and those between are interpolated.
    """
    size = config.head_dim
    frequencies = [config.rope_theta ** (-2 * i / size) for i in range(size // 2)]
    if config.rope_scaling is not None:
        frequencies = [_scaled(frequency, config.rope_scaling) for frequency in frequencies]
    return mx.array([1 / frequency for frequency in frequencies], dtype=mx.float32)


def _scaled(frequency: float, scaling: Llama3Scaling) -> float:
    context = scaling.original_max_position_embeddings
    turns = context * frequency / (2 * math.pi)  # full turns within the original context
    if turns < scaling.low_freq_factor:
        return frequency / scaling.factor
    if turns > scaling.high_freq_factor:
        return frequency
    smooth = (turns - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency
