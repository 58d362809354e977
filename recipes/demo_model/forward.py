"""The same forward pass as transformers' Mllama, written for training on a CPU.

transformers' own pass spends half of a training step in the backward of fused attention, which
is slow on CPUs at these sizes. Here attention is plain matrix products, and each block
is one function of its tensors, so that `torch.compile` compiles it once for all layers. Keys
and values stay in transformers' modules; `difference` measures the agreement with them.

Rows are laid out as in `rows`: every row's image token is at `IMAGE_AT`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from model import INTERMEDIATE, TILES, TOKENS, VISION_WIDTH
from torch import Tensor, nn
from transformers import MllamaForConditionalGeneration

IMAGE_AT = 5  # begin, header, "user", header end, blank line, then the image token
PADDED = -(-TOKENS // 8) * 8  # Mllama pads a tile's tokens to a multiple of eight
# The type of matrix products: without AMX, bfloat16 takes a CPU twenty times as long.
PRODUCTS = torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32
CLOSED = -1e9  # added to the score of a key that may not be seen


@dataclass(frozen=True)
class Pictures:
    """Pictures from the processor, one per row."""

    tiles: Tensor  # (pictures, tiles, 3, 64, 64) normalized
    ratio_ids: Tensor  # (pictures,) 1-based tile arrangement
    tile_mask: Tensor  # (pictures, tiles) 1 for real tiles


def features(model: MllamaForConditionalGeneration, pictures: Pictures) -> Tensor:
    """What the text model attends to: (pictures, tiles * tokens, text width), projected."""
    vision = model.model.vision_model
    count = len(pictures.tiles)
    patches = vision.patch_embedding(pictures.tiles.flatten(0, 1)).flatten(2).transpose(1, 2)
    x = patches.reshape(count, TILES, TOKENS - 1, VISION_WIDTH)
    ratio_ids = pictures.ratio_ids[:, None]
    x = vision.pre_tile_positional_embedding(x, ratio_ids)
    classes = vision.class_embedding.expand(count, TILES, 1, VISION_WIDTH)
    x = torch.cat([classes.to(x.dtype), x], dim=2)
    x = vision.layernorm_pre(vision.gated_positional_embedding(x, ratio_ids))
    x = F.pad(x, (0, 0, 0, PADDED - TOKENS)).reshape(count, TILES * PADDED, VISION_WIDTH)

    # Only padding is hidden from padding: Mllama's mask is an outer product.
    absent = torch.ones(count, TILES, PADDED, dtype=torch.bool)
    absent[:, :, :TOKENS] = pictures.tile_mask[:, :, None] == 0
    absent = absent.flatten(1)
    mask = CLOSED * (absent[:, :, None] & absent[:, None, :]).float()[:, None]

    open_gate = torch.ones(1)
    states = []
    for layer in vision.transformer.layers:
        x = vision_block(x, mask, open_gate, open_gate, _vision_weights(layer))
        states.append(x)
    x = vision.layernorm_post(x).reshape(count, TILES, PADDED, VISION_WIDTH)
    x = vision.post_tile_positional_embedding(x, ratio_ids).flatten(1, 2)
    for layer in vision.global_transformer.layers:
        x = vision_block(
            x, mask, layer.gate_attn.tanh(), layer.gate_ffn.tanh(), _vision_weights(layer)
        )
    # Mllama stacks the intermediate states in a new last dimension: they interleave.
    chosen = torch.stack([states[index] for index in INTERMEDIATE], dim=-1).flatten(2)
    seen = torch.cat([x, chosen], dim=-1).reshape(count, TILES, PADDED, -1)[:, :, :TOKENS]
    projector = model.model.multi_modal_projector
    return _linear(seen.flatten(1, 2), projector.weight) + projector.bias


def hidden_states(
    model: MllamaForConditionalGeneration,
    token_ids: Tensor,
    seen: Tensor | None = None,
    tile_mask: Tensor | None = None,
) -> Tensor:
    """The text model's last hidden states: (rows, tokens, width).

    `token_ids` is (rows, tokens), padded at the right; `seen` is (rows, tiles * tokens, width)
    and `tile_mask` (rows, tiles), or both are None and the cross-attention layers are skipped.
    """
    text = model.model.language_model
    length = token_ids.shape[1]
    x = text.embed_tokens(token_ids)
    cos, sin = text.rotary_emb(x, torch.arange(length)[None])
    causal = torch.full((length, length), CLOSED).triu(1)
    after_image = (torch.arange(length) >= IMAGE_AT).float()[:, None]  # (tokens, 1)
    if seen is not None and tile_mask is not None:
        hidden = CLOSED * (tile_mask == 0).float().repeat_interleave(TOKENS, dim=1)
        # Rows before the image see every key, absent tiles as well.
        mask = (hidden[:, None, :] * after_image)[:, None]
        seen = seen.to(PRODUCTS)
    for index, layer in enumerate(text.layers):
        if index not in model.config.text_config.cross_attention_layers:
            x = self_block(x, cos, sin, causal, _self_weights(layer))
        elif seen is not None:
            x = cross_block(
                x,
                seen,
                mask,
                after_image,
                layer.cross_attn_attn_gate.tanh(),
                layer.cross_attn_mlp_gate.tanh(),
                _cross_weights(layer),
            )
    return _rms(x, text.norm.weight)


def _vision_block(
    x: Tensor, mask: Tensor, attention_gate: Tensor, mlp_gate: Tensor, w: Sequence[Tensor]
) -> Tensor:
    norm, bias, q, k, v, o, norm_2, bias_2, up, up_bias, down, down_bias = w
    width = x.shape[-1]
    y = F.layer_norm(x, (width,), norm, bias, 1e-5).to(PRODUCTS)
    heads = 4
    out = _attend(_split(y @ q.T, heads), _split(y @ k.T, heads), _split(y @ v.T, heads), mask)
    x = x + attention_gate * (_merge(out) @ o.T)
    y = F.layer_norm(x, (width,), norm_2, bias_2, 1e-5).to(PRODUCTS)
    y = F.gelu(y @ up.T + up_bias).to(PRODUCTS)
    return x + mlp_gate * (y @ down.T + down_bias)


def _self_block(x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, w: Sequence[Tensor]) -> Tensor:
    norm, q, k, v, o, norm_2, gate, up, down = w
    y = _rms(x, norm).to(PRODUCTS)
    queries = _rotate(_split(y @ q.T, 6), cos, sin)
    keys = _rotate(_split(y @ k.T, 2), cos, sin)
    x = x + _merge(_attend_grouped(queries, keys, _split(y @ v.T, 2), mask)) @ o.T
    y = _rms(x, norm_2).to(PRODUCTS)
    return x + (F.silu(y @ gate.T) * (y @ up.T)) @ down.T


def _cross_block(
    x: Tensor,
    seen: Tensor,
    mask: Tensor,
    after_image: Tensor,
    attention_gate: Tensor,
    mlp_gate: Tensor,
    w: Sequence[Tensor],
) -> Tensor:
    norm, q, k, v, o, q_norm, k_norm, norm_2, gate, up, down = w
    y = _rms(x, norm).to(PRODUCTS)
    queries = _rms(_split(y @ q.T, 6).float(), q_norm).to(PRODUCTS)
    # A picture's keys and values are made once and shared by its rows.
    keys = _rms(_split(seen @ k.T, 2).float(), k_norm).to(PRODUCTS)
    values = _split(seen @ v.T, 2)
    shared = len(x) // len(seen)
    keys, values = keys.repeat_interleave(shared, 0), values.repeat_interleave(shared, 0)
    x = x + attention_gate * (_merge(_attend_grouped(queries, keys, values, mask)) @ o.T)
    y = _rms(x, norm_2).to(PRODUCTS)
    y = (F.silu(y @ gate.T) * (y @ up.T)) @ down.T
    return x + mlp_gate * (after_image * y)


vision_block, self_block, cross_block = _vision_block, _self_block, _cross_block


def compile_blocks() -> None:
    """Compiles the blocks; the first pass with each new length then takes some seconds."""
    global vision_block, self_block, cross_block
    torch._dynamo.config.cache_size_limit = 64
    vision_block = torch.compile(_vision_block, dynamic=False)
    self_block = torch.compile(_self_block, dynamic=False)
    cross_block = torch.compile(_cross_block, dynamic=False)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention over (rows, heads, tokens, head_dim); the softmax is in float32."""
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5 + mask
    scores = (scores - scores.amax(-1, keepdim=True).detach()).exp()
    return (scores.to(PRODUCTS) @ v) / scores.sum(-1, keepdim=True).to(PRODUCTS)


def _attend_grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Like `attention`, with several query heads per key head."""
    rows, heads, length, head_dim = q.shape
    groups = k.shape[1]
    share = heads // groups
    stacked = q.reshape(rows, groups, share * length, head_dim)
    tall = mask.repeat(*(1 for _ in mask.shape[:-2]), share, 1)
    return _attend(stacked, k, v, tall).reshape(rows, heads, length, head_dim)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x * cos[:, None] + turned * sin[:, None]).to(PRODUCTS)


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight


def _split(x: Tensor, heads: int) -> Tensor:
    rows, length, width = x.shape
    return x.view(rows, length, heads, width // heads).transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return x.to(PRODUCTS) @ weight.to(PRODUCTS).T


def _cast(*weights: nn.Parameter) -> list[Tensor]:
    """Casts matrices to the type of products; norms and biases stay in float32."""
    return [w.to(PRODUCTS) if w.ndim == 2 else w for w in weights]


def _vision_weights(layer: nn.Module) -> list[Tensor]:
    a, m = layer.self_attn, layer.mlp
    one, two = layer.input_layernorm, layer.post_attention_layernorm
    return _cast(
        *(one.weight, one.bias, a.q_proj.weight, a.k_proj.weight, a.v_proj.weight),
        *(a.o_proj.weight, two.weight, two.bias),
        *(m.fc1.weight, m.fc1.bias, m.fc2.weight, m.fc2.bias),
    )


def _self_weights(layer: nn.Module) -> list[Tensor]:
    a, m = layer.self_attn, layer.mlp
    return _cast(
        *(layer.input_layernorm.weight, a.q_proj.weight, a.k_proj.weight, a.v_proj.weight),
        *(a.o_proj.weight, layer.post_attention_layernorm.weight),
        *(m.gate_proj.weight, m.up_proj.weight, m.down_proj.weight),
    )


def _cross_weights(layer: nn.Module) -> list[Tensor]:
    a, m = layer.cross_attn, layer.mlp
    return _cast(
        *(layer.input_layernorm.weight, a.q_proj.weight, a.k_proj.weight, a.v_proj.weight),
        *(a.o_proj.weight, a.q_norm.weight, a.k_norm.weight),
        *(layer.post_attention_layernorm.weight,),
        *(m.gate_proj.weight, m.up_proj.weight, m.down_proj.weight),
    )


@torch.no_grad()
def difference(
    model: MllamaForConditionalGeneration, pictures: Pictures, token_ids: Tensor
) -> float:
    """The largest difference from transformers' logits, relative to their spread."""
    length = token_ids.shape[1]
    cross_mask = pictures.tile_mask[:, None, None, :].repeat(1, length, 1, 1)
    cross_mask[:, :IMAGE_AT] = 0
    reference = model(
        input_ids=token_ids,
        pixel_values=pictures.tiles[:, None],
        aspect_ratio_ids=pictures.ratio_ids[:, None],
        aspect_ratio_mask=pictures.tile_mask[:, None],
        cross_attention_mask=cross_mask,
        use_cache=False,
    ).logits
    seen = features(model, pictures)
    ours = hidden_states(model, token_ids, seen, pictures.tile_mask) @ model.lm_head.weight.T
    return ((ours - reference).abs().max() / reference.std()).item()
