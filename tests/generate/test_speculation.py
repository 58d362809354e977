"""Speculation on the demo model, whose answers repeat themselves: same tokens in fewer passes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from PIL import Image

from llavacot_mlx import demo
from llavacot_mlx.assistant import Assistant
from llavacot_mlx.demo.world import VALIDATION, draw, questions, scene
from llavacot_mlx.generate.ngram_draft import DraftMemory, PassCost
from llavacot_mlx.model.kernels import GPU, use
from llavacot_mlx.model.kv_budget import KVLimits
from llavacot_mlx.request import AskOptions

QUESTIONS = 8
OPTIONS: dict[str, AskOptions] = {
    "greedy": {},
    "sampled": {"temperature": 0.6, "top_p": 0.9},
    "8-bit K/V": {"limits": KVLimits(8)},
}


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return Assistant.load(demo.model_path(), dtype="float32")


@pytest.fixture
def steady(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> Assistant:
    """The assistant without a memory of answers, and with a cost that no clock changes."""
    monkeypatch.setattr(PassCost, "measure", lambda *_: None)
    return Assistant(replace(assistant._loaded, draft_memory=DraftMemory()))


def asked(index: int) -> tuple[Image.Image, str]:
    seed = VALIDATION.seed(index)
    world = scene(seed)
    question = questions(world, random.Random(f"rows {seed}"))[0].text
    return draw(world), f"{question} Look at the whole picture from left to right, row by row."


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_the_same_answer_in_fewer_passes(options: str, steady: Assistant) -> None:
    tokens = passes = 0
    for index in range(QUESTIONS):
        picture, question = asked(index)
        fast = steady.ask(picture, question, **OPTIONS[options])
        slow = steady.ask(picture, question, **OPTIONS[options], speculation=False)
        assert fast.token_ids == slow.token_ids
        assert slow.usage.forward_passes >= len(slow.token_ids) - 1
        assert slow.usage.drafted_tokens == slow.usage.accepted_tokens == 0
        assert fast.usage.decoded_tokens == slow.usage.decoded_tokens
        tokens += len(fast.token_ids)
        passes += fast.usage.forward_passes
    assert passes <= 0.75 * tokens  # benchmarks/speculation.py asks more questions


def test_on_a_gpu_as_well(steady: Assistant) -> None:
    """The GPU's kernels, run on the CPU."""
    picture, question = asked(QUESTIONS)
    with use(replace(GPU, float32_weights=True)):
        fast = steady.ask(picture, question)
        slow = steady.ask(picture, question, speculation=False)
    assert fast.token_ids == slow.token_ids
    assert fast.usage.accepted_tokens > 0


def test_later_answers_are_guessed_from_earlier_ones(steady: Assistant) -> None:
    """And in a text that says the same again, nearly everything is."""
    picture, question = asked(0)
    first = steady.ask(picture, question)
    again = steady.ask(picture, question)
    assert again.token_ids == first.token_ids
    assert again.usage.forward_passes < 0.6 * first.usage.forward_passes
