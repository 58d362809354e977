"""What transformers says: the reference side of the parity tests, in float32 on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    BatchFeature,
    MllamaForConditionalGeneration,
    MllamaProcessor,
)

from parity.checkpoints import Geometry

# A message's parts in order: a text, or a picture.
Part = str | Image.Image


@dataclass(frozen=True)
class Answer:
    """What transformers computed for one prompt."""

    token_ids: list[int]  # the prompt's
    memory: np.ndarray | None  # (images, max_tiles, tokens a tile, width): after the projector
    logits: np.ndarray  # (prompt tokens, vocabulary): of every row of the prefill
    generated: list[int]  # greedy continuation, exactly as many as asked for
    margin: float  # least distance of best and second logit on the way, by the largest logit


@dataclass(frozen=True)
class Oracle:
    """transformers' model and processor of one folder."""

    model: MllamaForConditionalGeneration
    processor: MllamaProcessor

    @classmethod
    def open(cls, folder: Path) -> "Oracle":
        """Read `folder` as a user of transformers would, weights upcast to float32."""
        torch.set_num_threads(1)
        model = MllamaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        model.generation_config.eos_token_id = None  # so that a run has the length asked for
        # By its class: mlx-vlm, once imported, puts its own processor behind `AutoProcessor`.
        return cls(model.eval(), MllamaProcessor.from_pretrained(folder))

    def prompt(self, parts: Sequence[Part]) -> str:
        """The templated text of one user turn made of `parts`, up to the assistant's header."""
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
            for part in parts
        ]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )

    def inputs(self, prompt: str, pictures: Sequence[Image.Image]) -> BatchFeature:
        """What the official processor makes of a templated text with its pictures."""
        return self.processor(
            text=prompt,
            images=list(pictures) or None,
            add_special_tokens=False,  # the template has them
            return_tensors="pt",
        )

    def answer(self, parts: Sequence[Part], new_tokens: int = 1) -> Answer:
        """Run one user turn through processor and model, with `new_tokens` greedy tokens."""
        pictures = [part for part in parts if isinstance(part, Image.Image)]
        return self.complete(self.prompt(parts), pictures, new_tokens)

    def complete(self, prompt: str, pictures: Sequence[Image.Image], new_tokens: int = 1) -> Answer:
        """Run a templated text with its pictures, with `new_tokens` greedy tokens."""
        inputs = self.inputs(prompt, pictures)
        with torch.inference_mode():
            memory = None
            if pictures:
                seen = self.model.model.vision_model(
                    inputs["pixel_values"], inputs["aspect_ratio_ids"], inputs["aspect_ratio_mask"]
                ).last_hidden_state
                memory = self.model.model.multi_modal_projector(seen)[0].numpy()
            logits = self.model(**inputs).logits[0].numpy()
            run = self.model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=new_tokens,
                return_dict_in_generate=True,
                output_logits=True,
            )
        steps = torch.stack(run.logits)[:, 0]  # (new tokens, vocabulary)
        best = steps.topk(2).values
        ids = inputs["input_ids"][0].tolist()
        return Answer(
            token_ids=ids,
            memory=memory,
            logits=logits,
            generated=run.sequences[0, len(ids) :].tolist(),
            margin=((best[:, 0] - best[:, 1]).min() / steps.abs().max()).item(),
        )


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A picture of `width` × `height` pixels: coarse coloured blocks and fine noise, by `seed`."""
    values = np.random.default_rng([seed, width, height])
    blocks = values.integers(0, 256, (3, 3, 3), dtype=np.uint8)
    base = Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
    noise = values.integers(0, 64, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(np.asarray(base) ^ noise).convert(mode)


def picture_of(geometry: Geometry, rows: int, columns: int, seed: int = 0) -> Image.Image:
    """A picture of odd size that `geometry` cuts into `rows` × `columns` tiles, unfilled."""
    return picture(
        columns * geometry.tile - geometry.tile // 3,
        rows * geometry.tile - geometry.tile // 4,
        seed,
    )


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of two arrays of one shape, as a share of theirs' largest value."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
