"""The code path of the GPU, run on the CPU, gives the same results as the CPU's."""

from __future__ import annotations

import shutil
import sys
from dataclasses import fields, replace

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from random_model import IMAGE_TOKEN_ID

from llavacot_mlx.assistant import Assistant
from llavacot_mlx.generate.prefill import prefill
from llavacot_mlx.model.kernels import CPU, GPU, Kernels, kernels, use
from llavacot_mlx.model.kv_cache import span_of_all
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.prompt.image_processor import Tiles
from llavacot_mlx.prompt.image_spans import Prompt
from llavacot_mlx.trace.record import Trace
from llavacot_mlx.usage import Timings, Usage

# mx.compile on a Linux CPU needs a C++ compiler at run time, which not every machine has.
COMPILER = sys.platform == "darwin" or shutil.which("g++") is not None
FORCED_GPU = GPU if COMPILER else replace(GPU, compiled_activations=False)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    image = Image.new("RGB", (50, 28), "blue")
    image.paste("yellow", (5, 5, 25, 20))
    return image


def trace_of(assistant: Assistant, image: Image.Image, search: str, chosen: Kernels) -> Trace:
    with use(chosen):
        return assistant.ask(image, "How many?", search=search, max_tokens=24, seed=3)


@pytest.mark.parametrize("search", ["greedy", "sample", "best-of-n", "stage-beam", "swires"])
def test_both_branches_write_the_same_tokens(
    assistant: Assistant, image: Image.Image, search: str
) -> None:
    ours, others = (trace_of(assistant, image, search, chosen) for chosen in (CPU, FORCED_GPU))
    assert len(ours.token_ids) > 1
    assert ours.token_ids == others.token_ids
    assert [node.text for node in ours.search.nodes] == [node.text for node in others.search.nodes]


def logits(model: Mllama, question: Prompt, chosen: Kernels) -> list[np.ndarray]:
    """Returns the logits after the prompt, and after one more token decoded from the cache."""
    with use(chosen):
        context = prefill(model, question, Usage(), Timings())
        spans = span_of_all(context.image_kv, 1)
        hidden = model.hidden(mx.array([[7]]), context.cache, spans)
        return [np.array(context.logits), np.array(model.logits(hidden[:, -1]))]


@pytest.mark.parametrize("tiles", [0, 1, 2])
def test_prefill_and_a_decode_step_have_the_same_logits(model: Mllama, tiles: int) -> None:
    """Comparing tokens would be too coarse: they stay the same when silu is off by 0.1 %."""
    pixels = np.random.default_rng(0).standard_normal((tiles, 8, 8, 3)).astype(np.float32)
    images = (Tiles(pixels, rows=1, columns=tiles, aspect_ratio_id=tiles),) if tiles else ()
    question = Prompt((*range(5), *[IMAGE_TOKEN_ID] * len(images), *range(20, 60)), images)
    pairs = zip(*(logits(model, question, each) for each in (CPU, FORCED_GPU)), strict=True)
    for ours, others in pairs:
        assert np.abs(ours - others).max() < 1e-4 * np.abs(ours).max()


def test_the_vision_tower_is_the_same_on_both_branches(assistant: Assistant) -> None:
    model = assistant._loaded.model
    size = model.config.vision.image_size
    pixels = mx.random.normal((1, size, size, 3), key=mx.random.key(0))
    features = []
    for chosen in (CPU, FORCED_GPU):
        with use(chosen):
            features.append(np.array(model.image_features(pixels, 1)))
    np.testing.assert_allclose(*features, rtol=1e-4, atol=1e-5)


def test_every_choice_but_the_sizes_differs_between_the_devices() -> None:
    """A choice that is equal on both devices does not depend on the device."""
    alike = {field.name for field in fields(Kernels)} - {"attention_scores_bytes"}
    assert all(getattr(CPU, name) != getattr(GPU, name) for name in alike)


def test_the_device_chooses_unless_told_otherwise() -> None:
    own = CPU if mx.default_device().type == mx.DeviceType.cpu else GPU
    other = GPU if own is CPU else CPU
    assert kernels() is own
    with use(other):
        assert kernels() is other
    assert kernels() is own


def test_an_error_inside_ends_the_choice() -> None:
    before = kernels()
    with pytest.raises(ZeroDivisionError), use(replace(before, attention_scores_bytes=1)):
        1 / 0  # noqa: B018
    assert kernels() is before
