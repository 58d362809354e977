"""What this port says to a prompt, in the shape of the oracle's answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from PIL import Image

from llavacot_mlx.checkpoint.weights import load_model
from llavacot_mlx.generate.decode import decode
from llavacot_mlx.generate.prefill import prefill
from llavacot_mlx.generate.sampling_params import Sampling
from llavacot_mlx.model.kv_cache import ImageSpan, KVCache
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.prompt.image_processor import ImageProcessor
from llavacot_mlx.prompt.image_spans import Prompt
from llavacot_mlx.usage import Timings, Usage
from parity.oracle import Answer, difference

# Of the largest value: what is left between two libraries that compute the same in float32.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Ours:
    """Our model and tile image_processor of one folder."""

    model: Mllama
    image_processor: ImageProcessor
    tokens_per_pass: int = 2048

    @classmethod
    def open(cls, folder: Path) -> "Ours":
        """Read `folder` in float32."""
        model = load_model(folder, dtype="float32")
        return cls(model, ImageProcessor.load(folder, model.config.vision))

    def memory(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """(images, max_tiles, tokens a tile, width): what the text sees of `pictures`."""
        vision = self.model.config.vision
        cuts = [self.image_processor(picture) for picture in pictures]
        seen = [self.model.image_features(mx.array(c.pixels), c.aspect_ratio_id) for c in cuts]
        shape = (len(seen), vision.max_num_tiles, vision.tokens_per_tile, -1)
        return np.array(mx.concatenate(seen)).reshape(shape)

    def complete(
        self, token_ids: Sequence[int], pictures: Sequence[Image.Image], new_tokens: int = 1
    ) -> tuple[np.ndarray, list[int]]:
        """Prefill and greedy decoding, nothing stopping it.

        Returns the logits of every row of the prefill, (prompt tokens, vocabulary), and the new
        tokens' ids.
        """
        prompt = Prompt(tuple(token_ids), tuple(self.image_processor(p) for p in pictures))
        watched = _Watched(self.model)
        usage = Usage()
        context = prefill(watched, prompt, usage, Timings(), tokens_per_pass=self.tokens_per_pass)
        rows = self.model.logits(mx.concatenate(watched.rows, axis=1))[0]
        assert usage.images_encoded == len(pictures)
        greedy = Sampling(temperature=0.0)
        run = decode(replace(context, model=self.model), greedy, 0, frozenset(), new_tokens)
        return np.array(rows), list(run)


class _Watched:
    """A model that keeps the hidden rows of every forward pass: prefill only returns the last."""

    def __init__(self, model: Mllama) -> None:
        self.config = model.config
        self.language_model = model.language_model
        self.image_features = model.image_features
        self.logits = model.logits
        self.rows: list[mx.array] = []  # each (1, rows of a pass, width)
        self._model = model

    def hidden(self, ids: mx.array, cache: KVCache, spans: Sequence[ImageSpan]) -> mx.array:
        rows = self._model.hidden(ids, cache, spans)
        self.rows.append(rows)
        return rows


def check_equal(ours: Ours, theirs: Answer, pictures: Sequence[Image.Image]) -> None:
    """Hold our run of the oracle's prompt against its answer: vision, every row, every token."""
    if theirs.memory is not None:
        assert difference(ours.memory(pictures), theirs.memory) <= TOLERANCE
    logits, generated = ours.complete(theirs.token_ids, pictures, len(theirs.generated))
    assert difference(logits, theirs.logits) <= TOLERANCE
    assert generated == theirs.generated
