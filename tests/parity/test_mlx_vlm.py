"""Folders shared with mlx-vlm: ours open there and theirs here, with the same logits.

Only prefills are compared. In decoding mlx-vlm loses the cross-attention mask, so it is no
reference there; and its vision tower takes `norm_eps` for two norms that transformers leaves at
1e-5.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from parity.checkpoints import (
    GEOMETRIES,
    read_json,
    respell,
    tensor_names,
    write_checkpoint,
    write_json,
)
from parity.oracle import Oracle, difference, picture_of
from parity.ours import TOLERANCE, Ours
from PIL import Image

from llavacot_mlx.convert.convert import convert
from llavacot_mlx.convert.recipes import RECIPES, Recipe, with_vision
from llavacot_mlx.model.config import Quantization

QUESTION = "How many red circles are there?"
# Widths that every group size divides; quantization takes groups along a weight's rows.
GEOMETRY = replace(
    GEOMETRIES["llama3-rope"],
    width=128,
    heads=4,
    kv_heads=2,
    mlp=256,
    vision_width=64,
    vision_heads=4,
    vision_mlp=128,
    vision_eps=1e-5,
)
PICTURES = [picture_of(GEOMETRY, *arrangement) for arrangement in ((1, 1), (1, 2), (2, 2))]


@dataclass(frozen=True)
class MlxVlm:
    """What is used of mlx-vlm: its own loader and its own converter."""

    load: Callable[[str], tuple[Any, Any]]
    convert: Callable[..., None]


@pytest.fixture(scope="module")
def mlx_vlm() -> MlxVlm:
    """mlx-vlm, imported by the first test that needs it: it takes seconds."""
    from mlx_vlm.convert import convert as their_convert
    from mlx_vlm.utils import load

    return MlxVlm(load, their_convert)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as transformers 5 writes it."""
    return write_checkpoint(tmp_path_factory.mktemp("hf"), GEOMETRY)


@pytest.fixture(scope="module")
def old_source(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the old spelling, the only one that mlx-vlm reads."""
    return respell(source, tmp_path_factory.mktemp("old") / "hf")


@pytest.fixture(scope="module")
def oracle_of_it(source: Path) -> Oracle:
    return Oracle.open(source)


def their_logits(mlx_vlm: MlxVlm, folder: Path, prompt: str, image: Image.Image) -> np.ndarray:
    """What mlx-vlm makes of a templated prompt: the prefill's logits, (tokens, vocabulary)."""
    model, processor = mlx_vlm.load(str(folder))
    inputs = processor(text=prompt, images=[image], add_special_tokens=False)
    names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask")
    out = model(mx.array(inputs["input_ids"]), **{name: mx.array(inputs[name]) for name in names})
    return np.array(out.logits[0].astype(mx.float32))


def check_folder(mlx_vlm: MlxVlm, hf: Oracle, folder: Path) -> list[np.ndarray]:
    """Compare both programs on `folder`, and return our logits of each picture."""
    port = Ours.open(folder)
    logits = []
    for image in PICTURES:
        prompt = hf.prompt([image, QUESTION])
        ids = hf.inputs(prompt, [image])["input_ids"][0].tolist()
        mine, _ = port.complete(ids, [image])
        theirs = their_logits(mlx_vlm, folder, prompt, image)
        assert difference(mine, theirs) <= TOLERANCE
        logits.append(mine)
    return logits


def check_against_transformers(hf: Oracle, logits: list[np.ndarray]) -> None:
    """Hold unquantized logits of each picture against transformers as well."""
    for image, mine in zip(PICTURES, logits, strict=True):
        assert difference(mine, hf.answer([image, QUESTION]).logits) <= TOLERANCE


def test_our_folder_opens_in_mlx_vlm(
    mlx_vlm: MlxVlm, source: Path, oracle_of_it: Oracle, tmp_path: Path
) -> None:
    """From the new spelling, which mlx-vlm misreads without a word, our convert writes the old."""
    folder = tmp_path / "ours"
    convert(source, folder)
    check_against_transformers(oracle_of_it, check_folder(mlx_vlm, oracle_of_it, folder))


QUANTIZATIONS = [
    Quantization(group_size=64, bits=4),
    Quantization(group_size=32, bits=8),
    Quantization(group_size=128, bits=3),
    Quantization(group_size=32, bits=4, mode="mxfp4"),
    Quantization(group_size=16, bits=4, mode="nvfp4"),
    Quantization(group_size=32, bits=8, mode="mxfp8"),
]


@pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=str)
def test_our_quantized_folder_opens_in_mlx_vlm(
    quantization: Quantization,
    mlx_vlm: MlxVlm,
    source: Path,
    oracle_of_it: Oracle,
    tmp_path: Path,
) -> None:
    """Each mode: the same logits from the same folder, and near those of the full weights."""
    folder = tmp_path / "ours"
    convert(source, folder, quantization=quantization)
    logits = check_folder(mlx_vlm, oracle_of_it, folder)
    if quantization.bits == 8 and quantization.mode == "affine":
        for image, mine in zip(PICTURES, logits, strict=True):
            assert difference(mine, oracle_of_it.answer([image, QUESTION]).logits) < 0.2


RECIPES_OF_OURS = [
    *(RECIPES[name] for name in ("2bit", "5bit", "6bit", "mixed-3-6", "mixed-4-6", "mixed-4-8")),
    with_vision(RECIPES["mixed-4-8"]),
    with_vision(RECIPES["mxfp4"]),
    Recipe(
        "of many kinds",
        (
            ("language_model.lm_head", Quantization(group_size=32, bits=8, mode="mxfp8")),
            ("*.layers.-1.*", Quantization(group_size=128, bits=6)),
            ("*.mlp.*", Quantization(group_size=16, bits=4, mode="nvfp4")),
            ("*.cross_attn.*", "float16"),
            ("language_model.*", Quantization(group_size=64, bits=4)),
        ),
    ),
]


@pytest.mark.parametrize("recipe", RECIPES_OF_OURS, ids=lambda recipe: recipe.name)
def test_our_mixed_folder_opens_in_mlx_vlm(
    recipe: Recipe, mlx_vlm: MlxVlm, source: Path, oracle_of_it: Oracle, tmp_path: Path
) -> None:
    """What differs by module, vision too, is found in config.json by both."""
    folder = tmp_path / "ours"
    convert(source, folder, quantization=recipe, verify=True)
    check_folder(mlx_vlm, oracle_of_it, folder)


def all_that_fits(path: str, module: Any) -> bool:
    """What mlx-vlm quantized before it spared the vision tower: all that groups fit into."""
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 64 == 0


@pytest.mark.parametrize(
    ("bits", "recipe"),
    [
        (None, None),
        (4, None),
        (8, None),
        (4, "mixed_3_6"),
        (4, "mixed_4_8"),
        (4, all_that_fits),
    ],
    ids=["plain", "4 bits", "8 bits", "mixed_3_6", "mixed_4_8", "vision too"],
)
def test_their_folder_opens_in_ours(
    bits: int | None,
    recipe: str | Callable[[str, Any], bool] | None,
    mlx_vlm: MlxVlm,
    old_source: Path,
    oracle_of_it: Oracle,
    tmp_path: Path,
) -> None:
    """What `mlx_vlm.convert` writes: plain, quantized, by a recipe, the vision tower too.

    It keeps a copy of the generation settings in config.json, which ours used to refuse.
    """
    folder = tmp_path / "theirs"
    mlx_vlm.convert(
        str(old_source),
        str(folder),
        quantize=bits is not None,
        q_bits=bits or 4,
        quant_predicate=recipe,
        dtype="float32",
    )
    config = read_json(folder / "config.json")
    assert ("quantization" in config) == (bits is not None)
    if isinstance(recipe, str):
        assert any(isinstance(value, dict) for value in config["quantization"].values())
    scaled = {name for name in tensor_names(folder) if name.endswith(".scales")}
    assert any(name.startswith("vision_tower") for name in scaled) == (recipe is all_that_fits)
    logits = check_folder(mlx_vlm, oracle_of_it, folder)
    if bits is None:
        check_against_transformers(oracle_of_it, logits)


def test_their_older_folders_open_in_ours(
    mlx_vlm: MlxVlm, old_source: Path, oracle_of_it: Oracle, tmp_path: Path
) -> None:
    """mlx-vlm once noted `skip_vision` in vision_config; the scales in the file say it as well."""
    folder = tmp_path / "theirs"
    mlx_vlm.convert(str(old_source), str(folder), quantize=True, dtype="float32")
    config = read_json(folder / "config.json")
    config["vision_config"]["skip_vision"] = True
    del config["generation_config"]
    write_json(folder / "config.json", config)
    check_folder(mlx_vlm, oracle_of_it, folder)
