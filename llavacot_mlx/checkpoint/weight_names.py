"""Names of weights: the layouts in the wild, and the one that this program keeps.

Three layouts are read (`../tests/parity` opens each of them):

- on hubs and from `save_pretrained`: `language_model.model.*`, `language_model.lm_head.*`,
  `vision_model.*`, `multi_modal_projector.*`;
- in memory since transformers 4.52, and in some files saved from there:
  `model.language_model.*`, `model.vision_model.*`, `model.multi_modal_projector.*`, `lm_head.*`;
- in MLX folders: `language_model.*`, `vision_tower.*`, `multi_modal_projector.*`.

The last is ours too, so that a folder of ours opens in mlx-vlm and one of theirs in ours.
"""

from __future__ import annotations

_IN_MEMORY = (
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.", "language_model.model."),
    ("model.vision_model.", "vision_tower."),
    ("lm_head.", "language_model.lm_head."),
)

# Longest first: `model.language_model.` must not be taken for anything shorter.
_PREFIXES = (
    *_IN_MEMORY,
    ("language_model.model.", "language_model.model."),
    ("language_model.lm_head.", "language_model.lm_head."),
    ("multi_modal_projector.", "multi_modal_projector."),
    ("vision_model.", "vision_tower."),
    ("vision_tower.", "vision_tower."),
)

# Buffers that old versions saved and that follow from the configuration.
_DROPPED_ENDINGS = ("rotary_emb.inv_freq", "position_ids")

PATCH_EMBEDDING = "vision_tower.patch_embedding.weight"


def canonical_name(name: str) -> str | None:
    """The name of a tensor in our layout; None for a buffer that is dropped on purpose.

    A name in no known layout is returned as it is: whoever compares names with the model's own
    tree reports it.
    """
    if name.endswith(_DROPPED_ENDINGS):
        return None
    for theirs, ours in _PREFIXES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def hub_name(name: str) -> str:
    """Our name of a tensor as hubs have it, and `save_pretrained` writes it."""
    if name.startswith("vision_tower."):
        return "vision_model." + name.removeprefix("vision_tower.")
    return name


def name_in_memory(name: str) -> str:
    """Our name of a tensor as it is in transformers' model (4.52 and later)."""
    for theirs, ours in _IN_MEMORY:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"{name} is no name of ours")


def is_channels_first(name: str) -> bool:
    """Whether the layout that `name` belongs to stores convolutions as PyTorch does.

    PyTorch: (out, in, height, width); MLX: (out, height, width, in). The name decides, not the
    shape, which says nothing where patches are as many pixels wide as there are channels.
    """
    return not name.startswith("vision_tower.")
