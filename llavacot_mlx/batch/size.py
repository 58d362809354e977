"""How many rows fit into memory at once, and how much K/V a request can take."""

from __future__ import annotations

from dataclasses import dataclass

from mlx.utils import tree_flatten

from llavacot_mlx.answer import LoadedModel
from llavacot_mlx.errors import UserError
from llavacot_mlx.generate.device import available_memory
from llavacot_mlx.model.kv_cache import capacity_for
from llavacot_mlx.prompt.tokenizer import Turn
from llavacot_mlx.request import Request

MAX_BATCH_SIZE = 32
"""The largest batch that is chosen by default: beyond it, a step of the demo model on a CPU costs
in proportion to its rows."""
_SHARE = 0.75
"""Share of the memory beside the weights that K/V may take; the rest is for everything else."""
_PROMPT_STEP, _PATH_STEP = 256, 64
"""Tokens by which the buffers of a prompt's and of a path's K/V grow."""


@dataclass(frozen=True)
class KVBound:
    """The most bytes of K/V that a request can take at one time."""

    images: int
    prompt: int
    """The prompt's text, from which all paths start."""
    path: int
    """One path's text: the prompt and an answer of the greatest length."""
    paths: int
    """Paths that are in memory together: those in decoding, and those kept by a search."""

    @property
    def total(self) -> int:
        return self.images + self.prompt + self.paths * self.path


def kv_bound(loaded: LoadedModel, request: Request) -> KVBound:
    """Returns the bound of a request. Of an image that nobody has opened, all tiles are counted."""
    config, language_model = loaded.model.config, loaded.model.language_model
    images = int(request.image is not None)
    prompt = loaded.tokenizer.prompt([Turn("user", request.question, images=images)])
    tokens = min(len(prompt) + request.max_tokens, config.text.max_position_embeddings)
    plan = request.plan
    kept = 0 if plan.is_single_path else 1 + sum(step.keep for step in plan.steps)
    image_tokens = images * config.vision.max_num_tiles * config.vision.tokens_per_tile
    try:
        image_bytes = language_model.image_kv_bytes(image_tokens, request.limits.bits)
    except UserError:  # K/V that cannot be quantized; the request fails when it is read
        image_bytes = language_model.image_kv_bytes(image_tokens, None)
    return KVBound(
        images=image_bytes,
        prompt=language_model.text_kv_bytes(capacity_for(len(prompt), _PROMPT_STEP)),
        path=language_model.text_kv_bytes(capacity_for(tokens + 1, _PATH_STEP)),
        paths=plan.max_candidates + kept,
    )


def default_batch_size(loaded: LoadedModel, request: Request, kv_budget: int | None = None) -> int:
    """Returns how many rows like this request's fit into memory at once: 1 to MAX_BATCH_SIZE.

    A row's K/V are counted with an answer of the greatest length, and within `kv_budget` if there
    is one.
    """
    weights = sum(array.nbytes for _, array in tree_flatten(loaded.model.parameters()))
    memory, _ = available_memory()
    room = int(_SHARE * (memory - weights))
    if kv_budget is not None:
        room = min(room, kv_budget)
    bound = kv_bound(loaded, request)
    rows = request.plan.max_candidates * room // bound.total
    return max(1, min(rows, MAX_BATCH_SIZE))
