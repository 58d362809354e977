"""`llavacot info`: sizes, needs and odd values, from a folder or from a hub's headers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from fake_hub import FakeHub
from mlx.utils import tree_flatten
from typer.testing import CliRunner

from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.weights import load_model, source_tensors
from llavacot_mlx.cli.main import app
from llavacot_mlx.convert.convert import convert
from llavacot_mlx.convert.recipes import RECIPES
from llavacot_mlx.generate import device
from llavacot_mlx.model.config import Quantization
from llavacot_mlx.model.mllama import Mllama

PROJECTOR = "multi_modal_projector.weight"


def told(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["info", *arguments, "--json"])
    assert (done.exit_code, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


def shown(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["info", *arguments])
    assert (done.exit_code, done.stderr) == (0, ""), done.stderr
    return done.stdout


def refused(*arguments: str, code: int = 2) -> str:
    done = CliRunner().invoke(app, ["info", *arguments])
    assert (done.exit_code, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    return line.removeprefix("error: ")


@pytest.fixture
def quantized(quantizable: Path, tmp_path: Path) -> Path:
    recipe = RECIPES["mixed-4-8"]
    return convert(quantizable, tmp_path / "mixed", dtype="bfloat16", quantization=recipe).folder


def test_the_parts_are_the_whole(quantizable: Path, quantized: Path) -> None:
    """Quantized or not, the model has as many weights; and the bytes are those of the files."""
    full, few = told(str(quantizable)), told(str(quantized))
    parameters = tree_flatten(Mllama(load_config(quantizable)).parameters())
    assert full["all"]["weights"] == few["all"]["weights"]
    assert full["all"]["weights"] == sum(array.size for _, array in parameters)
    assert full["all"]["bytes"] == 4 * full["all"]["weights"]
    assert few["all"]["bytes"] == sum(t.entry.nbytes for t in source_tensors(quantized).values())
    for one in (full, few):
        for what in ("weights", "bytes"):
            assert sum(part[what] for part in one["parts"].values()) == one["all"][what]
    bits = {name: part["bits_per_weight"] for name, part in few["parts"].items()}
    assert bits["vision tower"] == bits["projector"] == 16
    assert bits["output head"] == 8.5
    assert 4.5 < bits["text layers"] < 8.5


def test_what_it_holds(quantized: Path) -> None:
    facts = told(str(quantized))
    config = load_config(quantized)
    assert facts["text_layers"] == config.text.num_hidden_layers
    assert facts["cross_attention_layers"] == list(config.text.cross_attention_layers)
    assert (facts["max_tiles"], facts["tile_pixels"]) == (4, config.vision.image_size)
    quantization = facts["quantization"]
    default = {key: quantization[key] for key in ("group_size", "bits", "mode")}
    assert default in (vars(Quantization(64, 4)), vars(Quantization(64, 8)))
    assert quantization["modules"]
    text = shown(str(quantized))
    assert f"{len(quantization['modules'])} modules differently" in text
    assert "no odd values" not in text


def test_memory_is_what_the_model_takes(quantizable: Path) -> None:
    """Compared with the model's own arithmetic, and with its weights in memory."""
    model = load_model(quantizable)
    facts = told(str(quantizable), "--candidates", "3", "--max-tokens", "100")["memory"]
    assert facts["weights_bytes"] == sum(a.nbytes for _, a in tree_flatten(model.parameters()))
    config = load_config(quantizable)
    patches = (config.vision.image_size // config.vision.patch_size) ** 2 + 1
    assert facts["picture_bytes"] == model.language_model.image_kv_bytes(4 * patches, None)
    more = told(str(quantizable), "--candidates", "4", "--max-tokens", "100")["memory"]
    layers = config.text.num_hidden_layers - len(config.text.cross_attention_layers)
    column = 2 * layers * config.text.num_key_value_heads * config.text.head_dim * 4
    assert more["text_bytes"] - facts["text_bytes"] == 100 * column


@pytest.mark.parametrize(("limit", "verdict"), [(10**12, "holds it"), (1000, "does not hold it")])
def test_whether_this_machine_holds_it(
    limit: int, verdict: str, quantizable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "available_memory", lambda: (limit, "memory"))
    assert told(str(quantizable))["memory"]["machine_holds_it"] == (verdict == "holds it")
    assert shown(str(quantizable)).splitlines()[-1].endswith(f"memory) {verdict}")


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_odd_values_are_named(dtype: mx.Dtype, folder: Path) -> None:
    """With --values, which reads the weights; without, they are not looked at."""
    file = str(folder / "model.safetensors")
    arrays = {name: array.astype(dtype) for name, array in mx.load(file).items()}
    values = np.array(arrays[PROJECTOR].astype(mx.float32))
    values[3, 4] = values[5, 6] = np.nan
    values[7, 8] = -np.inf
    arrays[PROJECTOR] = mx.array(values).astype(dtype)
    arrays["multi_modal_projector.bias"] = -0.0 * arrays["multi_modal_projector.bias"]
    mx.eval(arrays)
    mx.save_safetensors(file, arrays)
    assert "odd_values" not in told(str(folder))
    found = told(str(folder), "--values")["odd_values"]
    (width,) = arrays["multi_modal_projector.bias"].shape
    assert sorted(found, key=lambda each: each["oddity"]) == [
        {"name": PROJECTOR, "oddity": "NaN", "count": 2},
        {"name": "multi_modal_projector.bias", "oddity": "all zero", "count": width},
        {"name": PROJECTOR, "oddity": "infinity", "count": 1},
    ]
    assert f"  {PROJECTOR}: 2 × NaN\n" in shown(str(folder), "--values")


def test_a_sound_model_has_no_odd_values(tiny: Path) -> None:
    assert shown(str(tiny), "--values").endswith("\nno odd values\n")


@pytest.mark.processes
def test_a_model_on_the_hub_is_told_from_its_headers(tiny: Path, tmp_path: Path) -> None:
    """The same as of its folder; nothing but the configuration is downloaded as a whole."""
    files = {path.name: path.read_bytes() for path in tiny.iterdir() if path.is_file()}
    with FakeHub(files) as hub:
        usual = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        done = subprocess.run(
            [sys.executable, "-m", "llavacot_mlx", "info", "owner/name", "--json"],
            env={**usual, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert {**json.loads(done.stdout), "model": ""} == {**told(str(tiny)), "model": ""}
    kept = {path.name for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()}
    assert "config.json" in kept
    assert not any(name.endswith((".safetensors", "tokenizer.json")) for name in kept)


def test_what_cannot_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    assert refused("empty", code=1).startswith("empty/config.json is missing")
    assert refused("./none", code=1).startswith("./none: no such folder")
    assert "HF_HUB_OFFLINE" in refused("owner/name", code=1)
    assert refused("empty", "--candidates", "0") == "--candidates 0: must be 1 or more"


def test_without_a_model_an_example_is_shown() -> None:
    assert "llavacot info Xkev/Llama-3.2V-11B-cot" in shown()
