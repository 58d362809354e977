"""Answers and judges greedily with the model in torch, and measures both.

This is used during training; the published figures come from `evaluate`, with this project's
runtime.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from forward import Pictures
from rows import judge_prompt, prompt
from scoring import WELL_FORMED
from tiles import fit, normalized
from tokenizer import EOT, IMAGE, PAD
from tokenizers import Tokenizer
from torch import Tensor
from transformers import MllamaForConditionalGeneration

from llavacot_mlx.demo.world import (
    JudgeQuestion,
    Question,
    Scene,
    Split,
    draw,
    judge_question,
    questions,
    scene,
)
from llavacot_mlx.prompt.stages import Stage

MOST_TOKENS = 240


@dataclass(frozen=True)
class Asked:
    """A held-out question with its scene, and a judge question about it."""

    scene: Scene
    question: Question
    judged: JudgeQuestion


def held_out(split: Split, count: int, first: int = 0) -> list[Asked]:
    """One question per scene of the split, from scene number `first` on."""
    result = []
    for index in range(first, first + count):
        seed = split.seed(index)
        world, rng = scene(seed), random.Random(f"rows {seed}")
        question = questions(world, rng)[0]
        result.append(Asked(world, question, judge_question(world, question, rng)))
    return result


def pictures_of(worlds: list[Scene]) -> Pictures:
    fitted = [fit(draw(world)) for world in worlds]
    mask = np.stack([np.arange(4) < picture.rows * picture.columns for picture in fitted])
    return Pictures(
        tiles=torch.from_numpy(normalized(np.stack([p.tiles for p in fitted]), mask)),
        ratio_ids=torch.tensor([picture.ratio_id for picture in fitted]),
        tile_mask=torch.from_numpy(mask).long(),
    )


@torch.no_grad()
def answers(
    model: MllamaForConditionalGeneration, tokenizer: Tokenizer, asked: list[Asked]
) -> list[str]:
    """Greedy replies as text, including the end of the turn if it was reached."""
    inputs = _inputs(model, tokenizer, asked, [prompt(one.question.text) for one in asked])
    ids = model.generate(**inputs, max_new_tokens=MOST_TOKENS, do_sample=False)
    start = inputs["input_ids"].shape[1]
    pad = tokenizer.token_to_id(PAD)
    return [
        tokenizer.decode([i for i in row[start:].tolist() if i != pad], skip_special_tokens=False)
        for row in ids
    ]


@torch.no_grad()
def verdicts(
    model: MllamaForConditionalGeneration, tokenizer: Tokenizer, asked: list[Asked]
) -> list[float]:
    """The judge's probability of yes against no, for each judge question."""
    inputs = _inputs(model, tokenizer, asked, [judge_prompt(one.judged) for one in asked])
    logits = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
    both = logits[:, [tokenizer.token_to_id("yes"), tokenizer.token_to_id("no")]]
    return both.softmax(-1)[:, 0].tolist()


def _inputs(
    model: MllamaForConditionalGeneration,
    tokenizer: Tokenizer,
    asked: list[Asked],
    texts: list[str],
) -> dict[str, Tensor]:
    """transformers' inputs for one picture per row, padded on the left."""
    rows = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), tokenizer.token_to_id(PAD))
    for index, row in enumerate(rows):
        ids[index, length - len(row) :] = torch.tensor(row)
    pictures = pictures_of([one.scene for one in asked])
    after_image = (ids == model.config.image_token_index).cumsum(1)  # (rows, length)
    assert (after_image[:, -1] == 1).all(), f"every row has one {IMAGE}"
    return {
        "input_ids": ids,
        "attention_mask": (ids != tokenizer.token_to_id(PAD)).long(),
        "pixel_values": pictures.tiles[:, None],
        "aspect_ratio_ids": pictures.ratio_ids[:, None],
        "aspect_ratio_mask": pictures.tile_mask[:, None],
        "cross_attention_mask": after_image[:, :, None, None] * pictures.tile_mask[:, None, None],
    }


def score(
    model: MllamaForConditionalGeneration, tokenizer: Tokenizer, asked: list[Asked], batch: int
) -> dict[str, float]:
    """Fractions: well-formed, right (in all and by kind), each stage exact, judged correctly."""
    hits: dict[str, list[float]] = defaultdict(list)
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        for one, text in zip(part, answers(model, tokenizer, part), strict=True):
            found = WELL_FORMED.fullmatch(text.removesuffix(EOT)) if text.endswith(EOT) else None
            hits["well-formed"].append(found is not None)
            for stage in (Stage.SUMMARY, Stage.CAPTION, Stage.REASONING):
                exact = found is not None and found[stage.value] == one.question.stage_text(stage)
                hits[f"exact {stage.value}"].append(exact)
            right = found is not None and found[Stage.CONCLUSION.value] == one.question.answer
            hits["right"].append(right)
            hits[f"right {one.question.kind}"].append(right)
            hits[f"right {one.scene.layout.name}"].append(right)
        for one, yes in zip(part, verdicts(model, tokenizer, part), strict=True):
            agreed = (yes > 0.5) == (one.judged.answer == "yes")
            hits["judged"].append(agreed)
            hits[f"judged {one.judged.stage.value}"].append(agreed)
    return {name: sum(values) / len(values) for name, values in sorted(hits.items())}
