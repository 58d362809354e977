"""Mllama: the vision tower, the projector and the text model together."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from llavacot_mlx.model.config import ModelConfig
from llavacot_mlx.model.kv_cache import ImageSpan, SelfAttentionCache
from llavacot_mlx.model.linear import Linear
from llavacot_mlx.model.text import LanguageModel
from llavacot_mlx.model.vision import LayerRunner, VisionModel, call_layer


class Mllama(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = VisionModel(config.vision)
        self.language_model = LanguageModel(config.text)
        self.multi_modal_projector = Linear(
            config.vision.output_size, config.text.hidden_size, bias=True
        )

    def image_features(
        self, pixels: mx.array, aspect_ratio_id: int, run: LayerRunner = call_layer
    ) -> mx.array:
        """Encodes one image to the width of the text model: (1, all tiles' tokens, hidden).

        `pixels` is (real tiles, height, width, channels); features of real tiles come first. `run`
        calls a layer of the tower, see `VisionModel`.
        """
        return self.multi_modal_projector(self.vision_tower(pixels, aspect_ratio_id, run))[None]

    def hidden(
        self, ids: mx.array, cache: SelfAttentionCache, spans: Sequence[ImageSpan]
    ) -> mx.array:
        """(1, tokens) → the normed last hidden states, (1, tokens, hidden)."""
        return self.language_model.model(ids, cache, spans)

    def logits(self, hidden: mx.array) -> mx.array:
        """(…, hidden) → (…, vocab_size)."""
        return self.language_model.lm_head(hidden)
