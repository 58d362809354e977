"""The branch of the other device: what a GPU computes is run on the CPU, and says the same."""

from __future__ import annotations

import shutil
import sys
from dataclasses import fields, replace

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from llavacot_mlx.assistant import Assistant
from llavacot_mlx.model.kernels import CPU, GPU, Kernels, kernels, use
from llavacot_mlx.trace import Trace

# mx.compile on a Linux CPU needs a C++ compiler at run time, which not every machine has.
COMPILER = sys.platform == "darwin" or shutil.which("g++") is not None
FORCED_GPU = GPU if COMPILER else replace(GPU, compiled_activations=False)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    image = Image.new("RGB", (50, 28), "blue")
    image.paste("yellow", (5, 5, 25, 20))
    return image


def asked(assistant: Assistant, image: Image.Image, search: str, chosen: Kernels) -> Trace:
    with use(chosen):
        return assistant.ask(image, "How many?", search=search, max_tokens=24, seed=3)


@pytest.mark.parametrize("search", ["greedy", "sample", "best-of-n", "stage-beam", "swires"])
def test_both_branches_write_the_same_tokens(
    assistant: Assistant, image: Image.Image, search: str
) -> None:
    ours, others = (asked(assistant, image, search, chosen) for chosen in (CPU, FORCED_GPU))
    assert len(ours.token_ids) > 1
    assert ours.token_ids == others.token_ids
    assert [node.text for node in ours.search.nodes] == [node.text for node in others.search.nodes]


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
    """A choice that both devices make alike is no choice of the device."""
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
