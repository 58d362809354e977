"""Fusing: the folder answers as the base with the adapter, and differs in nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from random_adapter import tensors_for, write_adapter

from llavacot_mlx.checkpoint.adapters import load_adapter, read_adapter
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.safetensors import list_tensors
from llavacot_mlx.checkpoint.weights import load_model
from llavacot_mlx.convert import shards
from llavacot_mlx.convert.convert import Progress, convert
from llavacot_mlx.convert.fuse import fuse
from llavacot_mlx.convert.output_folder import OutputFolder
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import Quantization
from llavacot_mlx.model.kv_cache import span_of_all
from llavacot_mlx.model.linear import plain_weight
from llavacot_mlx.model.lora import LoRALinear
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.search.calibration import ScoreStats, load_calibration, save_calibration


@pytest.fixture(scope="module")
def bases(quantizable: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint as it was published, converted, and quantized in two ways."""
    place = tmp_path_factory.mktemp("bases")
    convert(quantizable, place / "plain")
    convert(quantizable, place / "q4", quantization=Quantization(32, 4))
    convert(quantizable, place / "mxfp4", quantization=Quantization(32, 4, "mxfp4"))
    return {"hub": quantizable, **{name: place / name for name in ("plain", "q4", "mxfp4")}}


@pytest.fixture
def target(tmp_path: Path) -> OutputFolder:
    """A target in an empty folder of its own, so that what is left beside it shows."""
    (tmp_path / "place").mkdir()
    return OutputFolder(tmp_path / "place" / "out", "--save-path", force=False)


def logits(model: Mllama) -> np.ndarray:
    """(tokens, vocabulary): of one short text about one picture."""
    vision = model.config.vision
    shape = (1, vision.image_size, vision.image_size, vision.num_channels)
    pixels = mx.random.normal(shape, key=mx.random.key(1))
    features = model.image_features(pixels, 1)[:, : vision.tokens_per_tile]
    memory = model.language_model.project_image_kv(features, (vision.tokens_per_tile,))
    ids = mx.array([[5, 6, 7, 300, 20]])
    cache = model.language_model.new_cache()
    return np.array(model.logits(model.hidden(ids, cache, span_of_all(memory, 5)))[0])


def adapted(base: Path, adapter: Path) -> Mllama:
    model = load_model(base, "float32")
    load_adapter(model, adapter, base)
    return model


def raw(folder: Path) -> dict[str, bytes]:
    """Every tensor's bytes as they lie in the files."""
    found = {}
    for name, entry in list_tensors(folder).items():
        with entry.file.open("rb") as stream:
            stream.seek(entry.start)
            found[name] = stream.read(entry.nbytes)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("base", ["hub", "plain", "q4", "mxfp4"])
@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_it_answers_as_the_base_with_the_adapter(
    kind: str, base: str, bases: dict[str, Path], target: OutputFolder, tmp_path: Path
) -> None:
    """The same logits; of a quantized base, when it is dequantized."""
    adapter = write_adapter(tmp_path / "adapter", bases[base], kind)
    written = fuse(bases[base], adapter, target, dequantize=True)
    expected = logits(adapted(bases[base], adapter))
    without = logits(load_model(bases[base], "float32"))
    scale = np.abs(expected).max()
    assert np.abs(logits(load_model(written.folder, "float32")) - expected).max() / scale < 1e-4
    assert np.abs(without - expected).max() / scale > 0.01
    assert load_config(written.folder).quantization is None
    assert written.weight_bytes == sum(e.nbytes for e in list_tensors(written.folder).values())
    assert [path.name for path in target.folder.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("base", ["plain", "q4", "mxfp4"])
@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_what_the_adapter_leaves_alone_stays_byte_for_byte(
    kind: str, base: str, bases: dict[str, Path], target: OutputFolder, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", bases[base], kind)
    read = read_adapter(adapter)
    fuse(bases[base], adapter, target)
    before, after = raw(bases[base]), raw(target.folder)
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    layers = {f"{path}.weight" for path in read.layers}
    assert layers | set(read.weights) <= changed
    assert {name.rpartition(".")[0] for name in changed} <= {
        name.rpartition(".")[0] for name in layers | set(read.weights)
    }
    assert load_config(target.folder) == load_config(bases[base])


@pytest.mark.parametrize(("base", "bits"), [("q4", 4), ("mxfp4", 4)])
def test_a_quantized_layer_is_quantized_again_as_it_was(
    base: str, bits: int, bases: dict[str, Path], target: OutputFolder, tmp_path: Path
) -> None:
    """Value by value what MLX makes of the layer's weight with the change, added in float32."""
    adapter = write_adapter(tmp_path / "adapter", bases[base])
    fuse(bases[base], adapter, target)
    model = adapted(bases[base], adapter)
    fused = load_model(target.folder, "float32")
    after = dict(fused.named_modules())
    checked = 0
    for path, layer in model.named_modules():
        if not isinstance(layer, LoRALinear) or not isinstance(layer.linear, nn.QuantizedLinear):
            continue
        old = layer.linear
        change = layer.scale * (layer.lora_a @ layer.lora_b).T
        weight = plain_weight(old).astype(mx.float32) + change
        made = mx.quantize(weight, old.group_size, old.bits, old.mode)
        for name, array in zip(("weight", "scales", "biases"), made, strict=False):
            assert mx.array_equal(after[path][name], array), (path, name)
        assert (old.bits, after[path].bits) == (bits, bits)
        checked += 1
    assert checked > 3


def test_each_weight_keeps_its_type(
    bases: dict[str, Path], target: OutputFolder, tmp_path: Path
) -> None:
    """A bfloat16 base stays one; its merge is computed in float32 and rounded once."""
    convert(bases["hub"], tmp_path / "bf16", dtype="bfloat16")
    adapter = write_adapter(tmp_path / "adapter", bases["hub"])
    fuse(tmp_path / "bf16", adapter, target)
    assert {entry.dtype for entry in list_tensors(target.folder).values()} == {"BF16"}
    path = "language_model.model.layers.1.self_attn.q_proj"
    tensors = tensors_for(bases["hub"], "lora")
    change = 1.5 * (tensors[f"{path}.lora_a"] @ tensors[f"{path}.lora_b"]).T
    old, new = (
        dict(tree_flatten(load_model(folder, "bfloat16").parameters()))[f"{path}.weight"]
        for folder in (tmp_path / "bf16", target.folder)
    )
    assert mx.array_equal(new, (old.astype(mx.float32) + change).astype(mx.bfloat16))


def test_one_layer_at_a_time_is_in_memory(
    bases: dict[str, Path], target: OutputFolder, tmp_path: Path
) -> None:
    """Or an adapter could be fused only where the whole model fits."""
    adapter = write_adapter(tmp_path / "adapter", bases["q4"])
    sizes: list[int] = []
    fuse(bases["q4"], adapter, target, progress=lambda _: sizes.append(mx.get_active_memory()))
    largest = max(entry.nbytes for entry in list_tensors(bases["plain"]).values())
    assert max(sizes) - sizes[0] < 2 * largest


def test_progress_goes_up_to_the_whole(
    bases: dict[str, Path], target: OutputFolder, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", bases["q4"])
    reports: list[Progress] = []
    fuse(bases["q4"], adapter, target, progress=reports.append)
    counts = [report.read_bytes for report in reports]
    assert counts == sorted(set(counts))
    total = sum(entry.nbytes for entry in list_tensors(bases["q4"]).values())
    assert counts[-1] == reports[-1].total_bytes == total


def test_shards_and_settings(
    bases: dict[str, Path], target: OutputFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large model is spread over files; tokenizer and the rest come along."""
    monkeypatch.setattr(shards, "_SHARD_BYTES", 200_000)
    adapter = write_adapter(tmp_path / "adapter", bases["q4"])
    fuse(bases["q4"], adapter, target)
    assert len(list(target.folder.glob("*.safetensors"))) > 1
    settings = {"tokenizer.json", "preprocessor_config.json", "generation_config.json"}
    assert settings <= {path.name for path in target.folder.iterdir()}
    assert not (target.folder / "adapter_config.json").exists()
    assert np.isfinite(logits(load_model(target.folder, "float32"))).all()


def test_the_calibration_of_the_adapter_alone_comes_along(
    folder: Path, target: OutputFolder, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", folder)
    of_model, of_adapter = ({Stage.CAPTION: ScoreStats(mean, 0.1, 3)} for mean in (0.5, 0.9))
    save_calibration(folder, {"self": of_model, "logprob": of_model})
    save_calibration(adapter, {"self": of_adapter})
    fuse(folder, adapter, target)
    assert load_calibration(target.folder) == {"self": of_adapter}


def test_no_calibration_of_other_weights_comes_along(
    bases: dict[str, Path], target: OutputFolder, tmp_path: Path
) -> None:
    """That of the base, and where the sum is quantized again also that of the adapter."""
    base = Path(shutil.copytree(bases["q4"], tmp_path / "base"))
    adapter = write_adapter(tmp_path / "adapter", base)
    for place in (base, adapter):
        save_calibration(place, {"self": {Stage.CAPTION: ScoreStats(0.5, 0.1, 3)}})
    fuse(base, adapter, target)
    assert load_calibration(target.folder) == {}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug")])
def test_whatever_stops_it_nothing_is_left(
    error: BaseException, bases: dict[str, Path], target: OutputFolder, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", bases["q4"])

    def stopped(_: Progress) -> None:
        raise error

    with pytest.raises(type(error)):
        fuse(bases["q4"], adapter, target, progress=stopped)
    assert not list(target.folder.parent.iterdir())


def test_neither_base_nor_adapter_is_replaced(folder: Path, tmp_path: Path) -> None:
    adapter = write_adapter(folder / "adapter", folder)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for place in (folder, adapter, tmp_path):
        with pytest.raises(UserError, match="choose another --save-path"):
            fuse(folder, adapter, OutputFolder(place, "--save-path", force=True))
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_a_change_too_large_for_the_type(
    bases: dict[str, Path], target: OutputFolder, tmp_path: Path
) -> None:
    convert(bases["hub"], tmp_path / "f16", dtype="float16")
    adapter = write_adapter(tmp_path / "adapter", tmp_path / "f16")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["lora_parameters"]["scale"] = 1e7
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="too large for float16"):
        fuse(tmp_path / "f16", adapter, target)
    assert not list(target.folder.parent.iterdir())
