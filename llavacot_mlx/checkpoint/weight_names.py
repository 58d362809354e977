"""Maps the names of weights between checkpoint layouts.

Three layouts are read (`../tests/parity` opens each of them):

- on the hub and from `save_pretrained`: `language_model.model.*`, `language_model.lm_head.*`,
  `vision_model.*`, `multi_modal_projector.*`;
- in transformers' models since 4.52, and in some files saved from them:
  `model.language_model.*`, `model.vision_model.*`, `model.multi_modal_projector.*`, `lm_head.*`;
- in MLX folders: `language_model.*`, `vision_tower.*`, `multi_modal_projector.*`.

The last one is also ours (the canonical one), so that our folders open in mlx-vlm and its folders
open here.
"""

from __future__ import annotations

_IN_MEMORY = (
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.", "language_model.model."),
    ("model.vision_model.", "vision_tower."),
    ("lm_head.", "language_model.lm_head."),
)

# The longest prefixes come first, so that `model.language_model.` matches before a shorter one.
_PREFIXES = (
    *_IN_MEMORY,
    ("language_model.model.", "language_model.model."),
    ("language_model.lm_head.", "language_model.lm_head."),
    ("multi_modal_projector.", "multi_modal_projector."),
    ("vision_model.", "vision_tower."),
    ("vision_tower.", "vision_tower."),
)

# Buffers that old versions of transformers saved; the configuration determines them.
_DROPPED_ENDINGS = ("rotary_emb.inv_freq", "position_ids")

EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
NORM = "language_model.model.norm.weight"
PATCH_EMBEDDING = "vision_tower.patch_embedding.weight"
CLASS_EMBEDDING = "vision_tower.class_embedding"
POSITIONS = "vision_tower.gated_positional_embedding.embedding"
TILES = "vision_tower.pre_tile_positional_embedding.embedding.weight"


def canonical_name(name: str) -> str | None:
    """The name of a tensor in our layout; None for a buffer that is not needed.

    A name of an unknown layout is returned unchanged; `weights.check_tree` reports it.
    """
    if name.endswith(_DROPPED_ENDINGS):
        return None
    for theirs, ours in _PREFIXES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def hub_name(name: str) -> str:
    """The name on the hub, as `save_pretrained` writes it, for our name of a tensor."""
    if name.startswith("vision_tower."):
        return "vision_model." + name.removeprefix("vision_tower.")
    return name


def name_in_memory(name: str) -> str:
    """The name in transformers' model (4.52 and later) for our name of a tensor."""
    for theirs, ours in _IN_MEMORY:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"{name} is not a canonical name")


def is_channels_first(name: str) -> bool:
    """Whether the layout of `name` stores convolutions in PyTorch's order of axes.

    PyTorch: (out, in, height, width); MLX: (out, height, width, in). The name decides, because the
    shape is ambiguous when a patch is as many pixels wide as there are channels.
    """
    return not name.startswith("vision_tower.")
