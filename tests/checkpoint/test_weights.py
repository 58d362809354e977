"""From a folder to a model in memory: every weight in its place, in its type, read once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from random_model import CONFIG

from llavacot_mlx.checkpoint import weights
from llavacot_mlx.checkpoint.weights import load_model
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import ModelConfig, Quantization, QuantizationMap
from llavacot_mlx.model.mllama import Mllama

FILE = "model.safetensors"


@pytest.fixture
def of_config(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`of_config(config)`: every folder has this configuration from now on."""
    return lambda config: monkeypatch.setattr(weights, "load_config", lambda _: config)


def parameters(model: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def save(folder: Path, arrays: dict[str, mx.array]) -> Path:
    mx.save_safetensors(str(folder / FILE), arrays)
    return folder


def test_every_weight_finds_its_place(model: Mllama, tmp_path: Path, of_config: Any) -> None:
    of_config(CONFIG)
    save(tmp_path, parameters(model))
    loaded = parameters(load_model(tmp_path, "float32"))
    assert loaded.keys() == parameters(model).keys()
    for name, array in parameters(model).items():
        assert mx.array_equal(loaded[name], array), name


def test_the_convolution_is_turned_by_its_name(
    model: Mllama, tmp_path: Path, of_config: Any
) -> None:
    """PyTorch's (out, in, height, width) under a hub's name, MLX's under ours."""
    of_config(CONFIG)
    arrays = parameters(model)
    ours = arrays.pop("vision_tower.patch_embedding.weight")
    theirs = mx.contiguous(ours.transpose(0, 3, 1, 2))
    save(tmp_path, {**arrays, "vision_model.patch_embedding.weight": theirs})
    loaded = load_model(tmp_path, "float32")
    assert mx.array_equal(loaded.vision_tower.patch_embedding.weight, ours)


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [(mx.float32, "bfloat16"), (mx.bfloat16, "float32")],
)
def test_loading_takes_little_more_than_the_weights(
    stored: mx.Dtype, dtype: str, tmp_path: Path, of_config: Any
) -> None:
    """A cast never holds the folder twice: the peak is the weights in their new type and 20%.

    A 40 GB checkpoint in float32 has to fit where its 20 GB in bfloat16 do. What a cast replaces
    is held beside what it makes, so the largest weights have to come first.
    """
    text = replace(
        CONFIG.text,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=4,
        cross_attention_layers=(1,),
        vocab_size=12_000,  # two tensors of a third of all weights each
    )
    config = replace(CONFIG, text=text, image_token_id=12_000)
    of_config(config)
    shapes = {name: array.shape for name, array in parameters(Mllama(config)).items()}
    save(tmp_path, {name: mx.random.normal(shape).astype(stored) for name, shape in shapes.items()})
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    loaded = load_model(tmp_path, dtype)
    peak = mx.get_peak_memory() - before
    own = sum(array.nbytes for array in parameters(loaded).values())
    assert own == sum(np.prod(shape) for shape in shapes.values()) * (2 if "16" in dtype else 4)
    assert own > 25 * 2**20
    assert peak < 1.2 * own
    assert mx.get_active_memory() - before < 1.05 * own


def test_automatic_types(model: Mllama, tmp_path: Path, of_config: Any) -> None:
    """float32 on the CPU, whose 16-bit arithmetic is slow; 16 bits on a GPU."""
    of_config(CONFIG)
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    for stored, on_gpu in (
        (mx.float32, mx.bfloat16),
        (mx.bfloat16, mx.bfloat16),
        (mx.float16, mx.float16),
    ):
        arrays = {name: array.astype(stored) for name, array in parameters(model).items()}
        loaded = parameters(load_model(save(tmp_path, arrays)))
        assert {array.dtype for array in loaded.values()} == {mx.float32 if on_cpu else on_gpu}


def test_an_unknown_type(tmp_path: Path, model: Mllama, of_config: Any) -> None:
    of_config(CONFIG)
    with pytest.raises(UserError, match="'int4' is not a type of weights"):
        load_model(save(tmp_path, parameters(model)), "int4")


PROJECTOR = "multi_modal_projector.bias"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop(PROJECTOR), f"{PROJECTOR} is missing"),
        (lambda w: w.update({"extra": mx.zeros(2)}), "the weight extra in .* belongs to no part"),
        (lambda w: w.update({PROJECTOR: w[PROJECTOR][:-1]}), r"shape \[47\].*\[48\]"),
        (lambda w: w.update({PROJECTOR: w[PROJECTOR][None]}), r"shape \[1, 48\]"),
        (lambda w: w.update({PROJECTOR: w[PROJECTOR].astype(mx.int8)}), "stored as I8"),
        (lambda w: w.update({PROJECTOR: w[PROJECTOR].view(mx.uint32)}), "stored as U32"),
        (lambda w: w.update({"model." + PROJECTOR: w[PROJECTOR]}), "are the same"),
    ],
    ids=["missing", "left over", "shape", "axes", "whole numbers", "bits", "twice"],
)
def test_weights_that_do_not_fit(
    change: Any, says: str, model: Mllama, tmp_path: Path, of_config: Any
) -> None:
    """Each names the weight. Whole numbers were once read as if they were a weight's values."""
    of_config(CONFIG)
    arrays = parameters(model)
    change(arrays)
    with pytest.raises(UserError, match=says) as caught:
        load_model(save(tmp_path, arrays))
    assert str(tmp_path) in str(caught.value)


def quantized_config() -> ModelConfig:
    """Widths that groups of 32 divide; the head is quantized otherwise than the rest."""
    return replace(
        CONFIG,
        text=replace(
            CONFIG.text,
            hidden_size=64,
            intermediate_size=96,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
        quantization=QuantizationMap(
            Quantization(32, 4), {"language_model.lm_head": Quantization(64, 8)}
        ),
    )


def test_a_folder_with_an_override(tmp_path: Path, of_config: Any) -> None:
    """One module with other bits and another group, its neighbour not quantized at all."""
    config = quantized_config()
    of_config(config)
    model = Mllama(config)
    model.language_model.lm_head = model.language_model.lm_head.to_quantized(64, 8)
    layer = model.language_model.model.layers[0].cross_attn
    layer.k_proj = layer.k_proj.to_quantized(32, 4)
    loaded = load_model(save(tmp_path, parameters(model)), "float32")
    head = loaded.language_model.lm_head
    assert isinstance(head, nn.QuantizedLinear)
    assert (head.group_size, head.bits, head.mode) == (64, 8, "affine")
    read = loaded.language_model.model.layers[0].cross_attn
    assert isinstance(read.k_proj, nn.QuantizedLinear)
    assert (read.k_proj.group_size, read.k_proj.bits) == (32, 4)
    assert not isinstance(read.v_proj, nn.QuantizedLinear)
    x = mx.random.normal((3, 64))
    assert mx.allclose(head(x), model.language_model.lm_head(x), atol=1e-5)
    assert mx.allclose(read.k_proj(x), layer.k_proj(x), atol=1e-5)


@pytest.mark.parametrize(
    "quantization", [Quantization(32, 7), Quantization(48, 4), Quantization(32, 4, "fp3")]
)
def test_a_quantization_that_mlx_does_not_know(
    quantization: Quantization, tmp_path: Path, of_config: Any
) -> None:
    config = quantized_config()
    of_config(replace(config, quantization=QuantizationMap(quantization, {})))
    model = Mllama(config)
    model.language_model.lm_head = model.language_model.lm_head.to_quantized(32, 4)
    with pytest.raises(UserError, match="quantization cannot be run"):
        load_model(save(tmp_path, parameters(model)))


def test_the_shards_of_an_index(model: Mllama, tmp_path: Path, of_config: Any) -> None:
    of_config(CONFIG)
    arrays = list(parameters(model).items())
    files = [f"model-{n}.safetensors" for n in range(3)]
    for n, file in enumerate(files):
        mx.save_safetensors(str(tmp_path / file), dict(arrays[n::3]))
    places = {name: files[i % 3] for i, (name, _) in enumerate(arrays)}
    index = {"metadata": {}, "weight_map": places}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = parameters(load_model(tmp_path, "float32"))
    assert all(mx.array_equal(loaded[name], array) for name, array in arrays)


@pytest.mark.parametrize(
    ("section", "values", "says"),
    [
        ("text_config", {"hidden_size": 6 * 2**28}, "norm"),
        ("vision_config", {"hidden_size": 3 * 2**28, "vision_output_dim": None}, "class_embedding"),
        ("vision_config", {"image_size": 14 * 2**24}, "positional_embedding"),
    ],
)
def test_sizes_of_a_config_that_no_machine_has(
    section: str, values: dict[str, Any], says: str, folder: Path
) -> None:
    """The model was constructed first, which took minutes and gigabytes."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config[section] |= values
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"the weight .*{says}.* has the shape .* asks for"):
        load_model(folder)
