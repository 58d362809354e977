"""Defines the demo model's geometry and its initial weights, in transformers' Mllama."""

from __future__ import annotations

import math

import torch
from tokenizer import BOS, END, EOM, EOT, IMAGE, PAD
from tokenizers import Tokenizer
from transformers import GenerationConfig, MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

TILE = 64  # pixels
PATCH = 8  # pixels
SIDE = TILE // PATCH  # patches along a tile's side
TOKENS = SIDE * SIDE + 1  # a tile's patches and its class token
TILES = 4
VISION_WIDTH = 128
INTERMEDIATE = (1, 3)  # vision layers whose output the text sees beside the last one's
TEXT_WIDTH = 192
CROSS_LAYERS = (2, 5)
POSITION_STRENGTH = 0.35  # of the sine and cosine position, against patches of about 0.7
GATE = 1.0  # tanh 0.76: the gates are open from the start


def configuration(tokenizer: Tokenizer) -> MllamaConfig:
    """Mllama's configuration for this vocabulary."""
    vision = MllamaVisionConfig(
        hidden_size=VISION_WIDTH,
        num_hidden_layers=4,
        num_global_layers=2,
        attention_heads=4,
        intermediate_size=4 * VISION_WIDTH,
        vision_output_dim=VISION_WIDTH * (1 + len(INTERMEDIATE)),
        image_size=TILE,
        patch_size=PATCH,
        max_num_tiles=TILES,
        intermediate_layers_indices=list(INTERMEDIATE),
        initializer_range=0.05,
    )
    text = MllamaTextConfig(
        vocab_size=tokenizer.token_to_id(IMAGE),
        hidden_size=TEXT_WIDTH,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=512,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
        max_position_embeddings=4096,
        cross_attention_layers=list(CROSS_LAYERS),
        initializer_range=0.04,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOT),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    return MllamaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.token_to_id(IMAGE)
    )


def generation_configuration(tokenizer: Tokenizer) -> GenerationConfig:
    """Greedy decoding, and the three tokens that end a turn, as in Llama 3.2."""
    return GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=[tokenizer.token_to_id(token) for token in (EOT, END, EOM)],
        pad_token_id=tokenizer.token_to_id(PAD),
    )


def new_model(tokenizer: Tokenizer, seed: int) -> MllamaForConditionalGeneration:
    """An untrained model: positions are sines and cosines, and all gates are open.

    The text can refer to a place only by the position of its patches, so positions are there from
    the start. Gates are zero in a new Mllama, so that a picture would not be seen at all.
    """
    torch.manual_seed(seed)
    config = configuration(tokenizer)
    config._attn_implementation = "sdpa"
    model = MllamaForConditionalGeneration(config)
    model.generation_config = generation_configuration(tokenizer)
    vision = model.model.vision_model
    with torch.no_grad():
        positions = canvas_positions(config.vision_config.supported_aspect_ratios)
        strength = POSITION_STRENGTH / math.tanh(GATE)
        vision.gated_positional_embedding.tile_embedding.weight.copy_(
            strength * positions.reshape(len(positions), -1)
        )
        vision.gated_positional_embedding.embedding.zero_()
        for embedding in (
            vision.pre_tile_positional_embedding,
            vision.post_tile_positional_embedding,
        ):
            # A tile's own position: the mean over its patches.
            tiles = positions[:, :, 1:].mean(dim=2)
            embedding.embedding.weight.copy_(0.5 * strength * tiles.reshape(len(tiles), -1))
            embedding.gate.fill_(GATE)
        vision.gated_positional_embedding.gate.fill_(GATE)
        for layer in vision.global_transformer.layers:
            layer.gate_attn.fill_(GATE)
            layer.gate_ffn.fill_(GATE)
        for index in CROSS_LAYERS:
            layer = model.model.language_model.layers[index]
            layer.cross_attn_attn_gate.fill_(GATE)
            layer.cross_attn_mlp_gate.fill_(0.5)
    return model


def canvas_positions(aspect_ratios: list[list[int]]) -> torch.Tensor:
    """The position of each patch on its canvas, as sines and cosines.

    Shape (1 + arrangements, tiles, tokens, width); row 0 (no picture) and absent tiles are zero.
    A quarter of the width each encodes x and y relative to the canvas, for the names of places,
    and x and y in patches, for neighbors. The class token has the position of the tile's middle.
    """
    result = torch.zeros(1 + len(aspect_ratios), TILES, TOKENS, VISION_WIDTH)
    for index, (rows, columns) in enumerate(aspect_ratios):
        for tile in range(rows * columns):
            tile_row, tile_column = divmod(tile, columns)
            steps = torch.arange(SIDE) + 0.5
            y = (tile_row * SIDE + steps)[:, None].expand(SIDE, SIDE).reshape(-1)
            x = (tile_column * SIDE + steps)[None, :].expand(SIDE, SIDE).reshape(-1)
            x = torch.cat([x.mean()[None], x])
            y = torch.cat([y.mean()[None], y])
            quarter = VISION_WIDTH // 4
            result[1 + index, tile] = torch.cat(
                [
                    _waves(x / (columns * SIDE), quarter, shortest=0.25, longest=4.0),
                    _waves(y / (rows * SIDE), quarter, shortest=0.25, longest=4.0),
                    _waves(x, quarter, shortest=3.0, longest=80.0),
                    _waves(y, quarter, shortest=3.0, longest=80.0),
                ],
                dim=-1,
            )
    return result


def _waves(values: torch.Tensor, width: int, shortest: float, longest: float) -> torch.Tensor:
    """Sines and cosines of the values, wavelengths spaced evenly on a log scale."""
    lengths = shortest * (longest / shortest) ** torch.linspace(0, 1, width // 2)
    phases = 2 * math.pi * values[:, None] / lengths
    return torch.cat([phases.sin(), phases.cos()], dim=-1)
