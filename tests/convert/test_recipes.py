"""Recipes of quantization: which weights become what, by name and from YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import pytest

from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.safetensors import list_tensors
from llavacot_mlx.checkpoint.weights import load_model
from llavacot_mlx.convert import recipes
from llavacot_mlx.convert.convert import convert
from llavacot_mlx.convert.recipes import RECIPES, Recipe, read_recipe, recipe_called, with_vision
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import Quantization


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose text and vision widths are all multiples of 64. To be read only."""
    from parity.checkpoints import Geometry, write_checkpoint

    geometry = Geometry(
        seed=3, width=64, heads=4, kv_heads=2, mlp=128, vision_width=64, vision_heads=4,
        vision_mlp=128,
    )  # fmt: skip
    return write_checkpoint(tmp_path_factory.mktemp("wide"), geometry)


def bits_of(folder: Path) -> dict[str, int | None]:
    """The bits of each weight of a converted folder; None where it is not quantized."""
    tensors, quantization = list_tensors(folder), load_config(folder).quantization
    assert quantization is not None
    return {
        module: quantization.of(module).bits if f"{module}.scales" in tensors else None
        for module in (name.removesuffix(".weight") for name in tensors if ".weight" in name)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("vision", [False, True], ids=["", "vision"])
def test_every_named_recipe_gives_a_model(
    name: str, vision: bool, wide: Path, tmp_path: Path
) -> None:
    """It passes verification, and loads; the vision tower is quantized where that is asked for."""
    recipe = with_vision(RECIPES[name]) if vision else RECIPES[name]
    out = tmp_path / "out"
    convert(wide, out, dtype="bfloat16", quantization=recipe, verify=True)
    load_model(out)
    bits = bits_of(out)
    assert bits["language_model.model.layers.1.mlp.up_proj"] is not None
    vision_bits = {
        bits[path] for path in bits if path.endswith(".fc1") or path == "multi_modal_projector"
    }
    assert vision_bits == ({8} if vision else {None})
    text = (out / "README.md").read_text(encoding="utf-8")
    assert f"| recipe | {recipe.name} |" in text


def test_mixed_spends_more_bits_where_it_hurts(wide: Path, tmp_path: Path) -> None:
    """On cross-attention, the ends of the stack, the embedding and the head."""
    out = tmp_path / "out"
    convert(wide, out, quantization=RECIPES["mixed-4-8"])
    bits = bits_of(out)
    config = load_config(wide).text
    layer = "language_model.model.layers."
    for path, found in bits.items():
        if not path.startswith("language_model.") or "norm" in path:
            assert found is None, path
            continue
        number = int(path.removeprefix(layer).split(".")[0]) if path.startswith(layer) else None
        is_more = number in (None, 0, config.num_hidden_layers - 1) or ".cross_attn." in path
        assert found == (8 if is_more else 4), path


def test_the_overrides_are_written_as_mlx_programs_do(wide: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(wide, out, quantization=RECIPES["mixed-4-8"])
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["quantization"] == config["quantization_config"]
    described = {k: v for k, v in config["quantization"].items() if not isinstance(v, Mapping)}
    by_module = {k: v for k, v in config["quantization"].items() if isinstance(v, Mapping)}
    defaults = {"bits": described["bits"], "group_size": 64, "mode": "affine"}
    assert described == defaults
    assert by_module
    assert all(value != defaults for value in by_module.values())


YAML = """\
language_model.lm_head: 8bit
"language_model.model.layers.-1.*": {bits: 6, group_size: 32}
language_model.model.layers.[01].mlp.*: mxfp4
language_model.*: {mode: nvfp4}
vision_tower.*: bfloat16
multi_modal_projector: float16
"""


def test_a_recipe_of_ones_own(wide: Path, tmp_path: Path) -> None:
    """The first pattern that matches counts; what none matches stays as it is."""
    file = tmp_path / "mine.yaml"
    file.write_text(YAML, encoding="utf-8")
    out = tmp_path / "out"
    convert(wide, out, quantization=read_recipe(file), verify=True)
    quantization, tensors = load_config(out).quantization, list_tensors(out)
    assert quantization is not None
    layer = "language_model.model.layers."
    assert quantization.of("language_model.lm_head") == Quantization(64, 8)
    assert quantization.of(f"{layer}5.mlp.up_proj") == Quantization(32, 6)
    assert quantization.of(f"{layer}1.mlp.up_proj") == Quantization(32, 4, "mxfp4")
    assert quantization.of(f"{layer}1.self_attn.q_proj") == Quantization(16, 4, "nvfp4")
    assert tensors["multi_modal_projector.weight"].dtype == "F16"
    assert {e.dtype for n, e in tensors.items() if n.startswith("vision_tower.")} == {"BF16"}
    assert tensors[f"{layer}1.input_layernorm.weight"].dtype == "F32"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a recipe is a mapping"),
        ("- 4bit", "a recipe is a mapping"),
        ("a: [", "not valid YAML"),
        ("1: 4bit", "1 is not a pattern"),
        ("'*': 4bits", '"4bits" is not a scheme; there are 2bit'),
        ("'*': {bit: 4}", "bit: unknown key; did you mean bits"),
        ("'*': {bits: four}", "bits: expected a whole number"),
        ("'*': {bits: true}", "bits: expected a whole number"),
        ("'*': {mode: fp3}", "mode: expected affine or"),
    ],
)
def test_a_recipe_that_cannot_be_read(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"mine\.yaml.*{says}") as problem:
        read_recipe(file)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("languge_model.*: 4bit", r"the pattern languge_model\.\* is for no weight"),
        ("language_model.model.norm: 4bit", "is for no weight"),
        ("'*': {bits: 7}", "cannot be run"),
        (
            "'*mlp.down_proj': {bits: 4, group_size: 128}\n'*.lm_head': {group_size: 128}",
            r"group_size 128 does not divide the width 64 of language_model\.lm_head.*32, 64",
        ),
    ],
)
def test_a_recipe_that_does_not_fit(text: str, says: str, wide: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"mine\.yaml: .*{says}"):
        convert(wide, tmp_path / "out", quantization=read_recipe(file))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml"]


def test_a_name_nearly_right() -> None:
    with pytest.raises(UserError, match="--recipe mixed-4-9: did you mean mixed-4-8"):
        recipe_called("mixed-4-9")
    with pytest.raises(UserError, match=r"no-such\.yaml is missing"):
        recipe_called("no-such.yaml")


def test_a_uniform_quantization_is_called_as_it_is_known() -> None:
    assert recipes.uniform(Quantization(64, 4)).name == "4bit"
    assert recipes.uniform(Quantization(32, 4)).name == "affine, 4 bits, groups of 32"
    assert recipes.uniform(Quantization(16, 4, "nvfp4")) == RECIPES["nvfp4"]


@pytest.mark.parametrize(
    ("pattern", "path", "is_one"),
    [
        ("language_model.model.layers.-1.*", "language_model.model.layers.5.mlp.up_proj", True),
        ("language_model.model.layers.-1.*", "language_model.model.layers.4.mlp.up_proj", False),
        ("language_model.model.layers.5.*", "language_model.model.layers.5.mlp.up_proj", True),
        ("*.layers.-1.*", "vision_tower.transformer.layers.5.mlp.fc1", False),
        ("*.CROSS_attn.*", "language_model.model.layers.0.cross_attn.q_proj", False),
    ],
)
def test_patterns(pattern: str, path: str, is_one: bool) -> None:
    rule = Recipe("r", ((pattern, "float32"),))
    assert (rule.choice_for(path, layers=6) is not None) == is_one


def test_a_recipe_leaves_whole_numbers_alone(wide: Path, tmp_path: Path) -> None:
    """A type for everything is for floating point: the card and the tree say so."""
    file = tmp_path / "mine.yaml"
    file.write_text("'*': bfloat16", encoding="utf-8")
    done = convert(wide, tmp_path / "out", quantization=read_recipe(file), verify=True)
    assert done.dtypes == ("bfloat16",)
    assert load_config(tmp_path / "out").quantization is None
    assert mx.bfloat16 in {
        a.dtype for a in mx.load(str(tmp_path / "out/model.safetensors")).values()
    }
