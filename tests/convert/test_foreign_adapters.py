"""Adapters as PEFT, mlx-vlm and mlx-lm leave them: converted whole, or refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from random_adapter import RANK, SCALE, write_adapter

from llavacot_mlx.checkpoint.adapter_config import CONFIG_NAME, WEIGHTS_NAME, AdapterConfig
from llavacot_mlx.checkpoint.adapters import read_adapter
from llavacot_mlx.checkpoint.weight_files import PEFT_WEIGHTS_NAME
from llavacot_mlx.checkpoint.weights import read_tensors, source_tensors
from llavacot_mlx.convert.convert import convert
from llavacot_mlx.convert.fuse import fuse
from llavacot_mlx.convert.mlx_adapter import read_mlx_adapter
from llavacot_mlx.convert.output_folder import OutputFolder
from llavacot_mlx.convert.peft import read_peft, write_peft
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import Quantization

Tensors = dict[str, mx.array]


@pytest.fixture(scope="module")
def ours(quantizable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("ours") / "adapter", quantizable)


@pytest.fixture
def peft(ours: Path, tmp_path: Path) -> Path:
    return write_peft(ours, OutputFolder(tmp_path / "peft", "--hf-path", False, CONFIG_NAME))


def output(tmp_path: Path) -> OutputFolder:
    return OutputFolder(tmp_path / "out", "--mlx-path", False, CONFIG_NAME)


def load(file: Path) -> Tensors:
    return dict(mx.load(str(file)))  # type: ignore[arg-type]


def rename(file: Path, change: Callable[[str], str]) -> None:
    tensors = load(file)
    mx.eval(tensors)
    mx.save_safetensors(str(file), {change(name): t for name, t in tensors.items()})


def check_same(folder: Path, ours: Path) -> None:
    expected, found = read_adapter(ours), read_adapter(folder)
    assert found.config.lora is not None
    assert found.config.lora.scale == pytest.approx(SCALE)
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert mx.array_equal(tensor, found.tensors[name]), name


def in_default(name: str) -> str:
    return name.replace("lora_A.weight", "lora_A.default.weight").replace(
        "lora_B.weight", "lora_B.default.weight"
    )


@pytest.mark.parametrize(
    "change", [in_default, lambda name: name.removeprefix("base_model.model.")]
)
def test_names_of_peft_as_they_are_in_memory(
    change: Callable[[str], str], peft: Path, ours: Path, quantizable: Path, tmp_path: Path
) -> None:
    rename(peft / PEFT_WEIGHTS_NAME, change)
    check_same(read_peft(peft, output(tmp_path), "base", quantizable), ours)


def test_two_adapters_in_one_file(peft: Path, quantizable: Path, tmp_path: Path) -> None:
    rename(
        peft / PEFT_WEIGHTS_NAME,
        lambda name: name.replace("lora_A.weight", "lora_A.other.weight"),
    )
    with pytest.raises(UserError, match="several adapters in it \\(default, other\\)"):
        read_peft(peft, output(tmp_path), "base", quantizable)
    assert not (tmp_path / "out").exists()


def keep(file: Path, part: str) -> None:
    tensors = {name: tensor for name, tensor in load(file).items() if part in name}
    mx.eval(tensors)
    mx.save_safetensors(str(file), tensors)


def test_an_adapter_of_the_text_only_class(
    peft: Path, ours: Path, quantizable: Path, tmp_path: Path
) -> None:
    """It was "no linear layer of this model"."""
    file = peft / PEFT_WEIGHTS_NAME
    keep(file, ".layers.")
    keep(file, "language_model")
    rename(file, lambda name: name.replace("model.language_model.layers.", "model.layers."))
    found = read_adapter(read_peft(peft, output(tmp_path), "base", quantizable))
    for name, tensor in found.tensors.items():
        assert mx.array_equal(tensor, read_adapter(ours).tensors[name])
    assert found.layers


def test_an_adapter_of_a_text_only_model(peft: Path, quantizable: Path, tmp_path: Path) -> None:
    """Its layers are counted differently; half of them would have fitted."""
    file = peft / PEFT_WEIGHTS_NAME
    keep(file, "self_attn.q_proj")
    tensors = load(file)
    (name, *_) = tensors
    number = name.partition(".layers.")[2].partition(".")[0]
    cross = "0" if number != "0" else "99"
    more = {n.replace(f".layers.{number}.", f".layers.{cross}9."): t for n, t in tensors.items()}
    mx.eval(tensors)
    mx.save_safetensors(str(file), {**tensors, **more})
    with pytest.raises(UserError, match="probably a text-only Llama"):
        read_peft(peft, output(tmp_path), "base", quantizable)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight"])
@pytest.mark.parametrize("bits", [None, 4])
def test_copies_of_the_base_beside_an_adapter(
    bits: int | None, name: str, peft: Path, quantizable: Path, tmp_path: Path
) -> None:
    """`save_embedding_layers` saves them whether they were trained or not."""
    ours = "language_model." + ("lm_head.weight" if "lm_head" in name else name)
    (weight,) = read_tensors([source_tensors(quantizable)[ours]]).values()
    base = quantizable
    if bits:
        base = convert(quantizable, tmp_path / "q", quantization=Quantization(32, bits)).folder
    file = peft / PEFT_WEIGHTS_NAME
    tensors = load(file)
    mx.eval(tensors)
    mx.save_safetensors(str(file), {**tensors, f"base_model.model.{name}": weight})
    read_peft(peft, output(tmp_path), "base", base)
    mx.save_safetensors(
        str(file), {**tensors, f"base_model.model.{name}": weight + mx.random.normal(weight.shape)}
    )
    with pytest.raises(UserError, match=rf"{name} was trained as well"):
        read_peft(peft, OutputFolder(tmp_path / "o", "-", False, CONFIG_NAME), "base", base)


OLDER: dict[str, Any] = {"rank": RANK, "alpha": SCALE * RANK, "dropout": 0.1}
PARAMETERS = {"rank": RANK, "scale": SCALE, "dropout": 0.1}
NEWER: dict[str, Any] = {
    "fine_tune_type": "lora",
    "num_layers": -1,
    "lora_parameters": PARAMETERS,
}
MLX_LM: dict[str, Any] = {**NEWER, "model": "owner/base", "iters": 100, "seed": 0}
LAYOUTS = {"mlx-vlm": OLDER, "mlx-lm or mlx-vlm": NEWER, "mlx-lm": MLX_LM}


def foreign(ours: Path, folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
    tensors = load(ours / WEIGHTS_NAME)
    if "alpha" in config:
        tensors = {
            name.replace(".lora_a", ".A").replace(".lora_b", ".B"): t for name, t in tensors.items()
        }
    mx.save_safetensors(str(folder / WEIGHTS_NAME), tensors)
    return folder


@pytest.mark.parametrize("program", LAYOUTS)
def test_adapters_of_mlx(program: str, ours: Path, quantizable: Path, tmp_path: Path) -> None:
    """They were "fine_tune_type is missing; was this adapter made by llavacot?"."""
    folder = foreign(ours, tmp_path / "theirs", LAYOUTS[program])
    with pytest.raises(UserError, match=f"an adapter of {program}; .* llavacot convert {folder}"):
        AdapterConfig.read(folder)
    check_same(read_mlx_adapter(folder, output(tmp_path), "base", quantizable), ours)


def test_an_adapter_of_mlx_that_does_not_fit(ours: Path, quantizable: Path, tmp_path: Path) -> None:
    folder = foreign(ours, tmp_path / "theirs", {**NEWER, "fine_tune_type": "full"})
    with pytest.raises(UserError, match="holds whole weights"):
        read_mlx_adapter(folder, output(tmp_path), "base", quantizable)
    folder = foreign(ours, tmp_path / "dora", {**NEWER, "fine_tune_type": "dora"})
    with pytest.raises(UserError, match="there are lora_a, lora_b; it takes lora_a, lora_b, m"):
        read_mlx_adapter(folder, output(tmp_path), "base", quantizable)
    folder = foreign(ours, tmp_path / "rank", {**OLDER, "rank": RANK + 1})
    with pytest.raises(UserError, match="is not of the rank"):
        read_mlx_adapter(folder, output(tmp_path), "base", quantizable)
    assert not (tmp_path / "out").exists()


def shrink(ours: Path, folder: Path, factor: float, base: Path) -> Path:
    """The same adapter with a change that is smaller by a factor."""
    found = write_adapter(folder, base)
    tensors = load(found / WEIGHTS_NAME)
    small = {n: t * factor if n.endswith("lora_b") else t for n, t in tensors.items()}
    mx.eval(small)
    mx.save_safetensors(str(found / WEIGHTS_NAME), small)
    return found


def test_what_outlives_the_rounding_is_measured(
    ours: Path, quantizable: Path, tmp_path: Path
) -> None:
    """A change below half a step of 4 bits is rounded away; nobody was told."""
    base = convert(quantizable, tmp_path / "q4", quantization=Quantization(32, 4)).folder
    shares = []
    for factor in (1.0, 0.02):
        adapter = shrink(ours, tmp_path / f"a{factor}", factor, base)
        to = OutputFolder(tmp_path / f"f{factor}", "--save-path", False)
        survived = fuse(base, adapter, to).survived
        assert survived is not None
        shares.append(survived)
    assert shares[0] == pytest.approx(1, abs=0.1)
    assert shares[1] < 0.5
    to = OutputFolder(tmp_path / "plain", "--save-path", False)
    assert fuse(base, adapter, to, dequantize=True).survived is None
