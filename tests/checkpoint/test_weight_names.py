"""Three layouts of names mean one model."""

from __future__ import annotations

import pytest

from llavacot_mlx.checkpoint.weight_names import PATCH_EMBEDDING, canonical_name, is_channels_first

# Ours (which is that of MLX folders), hubs', and transformers' in memory since 4.52.
NAMES = [
    (
        "language_model.model.layers.3.cross_attn.q_norm.weight",
        "language_model.model.layers.3.cross_attn.q_norm.weight",
        "model.language_model.layers.3.cross_attn.q_norm.weight",
    ),
    (
        "language_model.model.embed_tokens.weight",
        "language_model.model.embed_tokens.weight",
        "model.language_model.embed_tokens.weight",
    ),
    ("language_model.lm_head.weight", "language_model.lm_head.weight", "lm_head.weight"),
    (
        "vision_tower.transformer.layers.0.self_attn.q_proj.weight",
        "vision_model.transformer.layers.0.self_attn.q_proj.weight",
        "model.vision_model.transformer.layers.0.self_attn.q_proj.weight",
    ),
    (
        "vision_tower.patch_embedding.weight",
        "vision_model.patch_embedding.weight",
        "model.vision_model.patch_embedding.weight",
    ),
    (
        "multi_modal_projector.bias",
        "multi_modal_projector.bias",
        "model.multi_modal_projector.bias",
    ),
]


@pytest.mark.parametrize(("ours", "hub", "nested"), NAMES)
def test_three_layouts_one_name(ours: str, hub: str, nested: str) -> None:
    assert canonical_name(ours) == canonical_name(hub) == canonical_name(nested) == ours


@pytest.mark.parametrize("ending", ["scales", "biases"])
def test_the_parts_of_a_quantized_weight_go_with_it(ending: str) -> None:
    assert canonical_name(f"lm_head.{ending}") == f"language_model.lm_head.{ending}"


@pytest.mark.parametrize(
    "name",
    [
        "model.language_model.layers.0.self_attn.rotary_emb.inv_freq",
        "vision_model.embeddings.position_ids",
    ],
)
def test_buffers_that_follow_from_the_configuration_are_dropped(name: str) -> None:
    assert canonical_name(name) is None


@pytest.mark.parametrize(
    "name", ["visual.proj", "model.layers.0.mlp.up_proj.weight", "lm_headache"]
)
def test_an_unknown_name_stays_itself(name: str) -> None:
    """So that the error about it says what is in the file."""
    assert canonical_name(name) == name


def test_the_name_tells_how_convolutions_are_laid_out() -> None:
    assert not is_channels_first(PATCH_EMBEDDING)
    for _, hub, nested in NAMES:
        if "patch_embedding" in hub:
            assert is_channels_first(hub)
            assert is_channels_first(nested)
            assert canonical_name(hub) == PATCH_EMBEDDING
