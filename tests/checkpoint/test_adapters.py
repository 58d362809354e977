"""Adapter folders: whole or not at all, and never on another base."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from random_adapter import KEYS, RANK, SCALE, config_for, tensors_for, write_adapter

from llavacot_mlx.assistant import Assistant
from llavacot_mlx.checkpoint import adapters
from llavacot_mlx.checkpoint.adapter_config import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    AdapterConfig,
    is_adapter,
)
from llavacot_mlx.checkpoint.adapters import load_adapter, read_adapter, save_adapter
from llavacot_mlx.checkpoint.fingerprints import base_hash, lineage_hash
from llavacot_mlx.checkpoint.weights import load_model
from llavacot_mlx.convert.convert import convert
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import Quantization
from llavacot_mlx.model.linear import QuantizedLinear
from llavacot_mlx.model.lora import DoRALinear, LoRALinear
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.search.calibration import ScoreStats, load_calibration, save_calibration

Q_PROJ = "language_model.model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the sizes of `quantizable`, with other weights."""
    from parity.checkpoints import Geometry, write_checkpoint

    geometry = Geometry(seed=3, width=64, heads=4, kv_heads=2, mlp=128)
    return write_checkpoint(tmp_path_factory.mktemp("other"), geometry)


# Which checkpoint it is


def test_the_hash_is_of_the_weights_and_not_of_their_layout(tiny: Path, tmp_path: Path) -> None:
    """A checkpoint, its conversion, other layouts of names and shards are one base."""
    from parity.checkpoints import relayout, shard

    convert(tiny, tmp_path / "converted")
    folders = [
        tmp_path / "converted",
        relayout(tiny, tmp_path / "nested", "nested"),
        relayout(tiny, tmp_path / "mlx", "mlx"),
        shard(tiny, tmp_path / "shards"),
    ]
    assert {base_hash(folder) for folder in folders} == {base_hash(tiny)}
    assert {lineage_hash(folder) for folder in folders} == {lineage_hash(tiny)}


def test_other_weights_of_the_same_sizes_are_another_base(quantizable: Path, other: Path) -> None:
    assert base_hash(quantizable) != base_hash(other)
    assert lineage_hash(quantizable) != lineage_hash(other)


def test_other_bits_of_a_checkpoint_share_the_lineage_alone(
    quantizable: Path, tmp_path: Path
) -> None:
    convert(quantizable, tmp_path / "bf16", dtype="bfloat16")
    convert(quantizable, tmp_path / "q4", quantization=Quantization(32, 4))
    convert(tmp_path / "bf16", tmp_path / "bf16-q4", quantization=Quantization(32, 4))
    folders = [quantizable, *(tmp_path / name for name in ("bf16", "q4", "bf16-q4"))]
    assert len({base_hash(folder) for folder in folders}) == 4
    assert len({lineage_hash(folder) for folder in folders}) == 1


@pytest.mark.parametrize(
    "name",
    [
        "language_model.lm_head.weight",
        "vision_model.patch_embedding.weight",
        "vision_model.transformer.layers.0.mlp.fc1.bias",
    ],
)
@pytest.mark.parametrize("part", [0, 0.5])
def test_one_value_tells_bases_apart(name: str, part: float, folder: Path) -> None:
    """The start and the middle of every tensor count, of the turned convolution too."""
    before = base_hash(folder)
    file = str(folder / "model.safetensors")
    arrays = dict(mx.load(file))
    flat = arrays[name].reshape(-1)
    flat[int(part * flat.size)] += 1
    arrays[name] = flat.reshape(arrays[name].shape)
    mx.eval(arrays)
    mx.save_safetensors(file, arrays)
    assert base_hash(folder) != before


def test_bfloat16_is_rounded_as_mlx_rounds(folder: Path, tmp_path: Path) -> None:
    """Ties too, which a careless cut would send elsewhere."""
    file = str(folder / "model.safetensors")
    arrays = dict(mx.load(file))
    name = "language_model.model.norm.weight"
    bits = np.arange(len(arrays[name]), dtype=np.uint32) * 0x8000 + 0x3F800000
    arrays[name] = mx.array(bits.view(np.float32))
    mx.eval(arrays)
    mx.save_safetensors(file, arrays)
    convert(folder, tmp_path / "bf16", dtype="bfloat16")
    assert lineage_hash(folder) == lineage_hash(tmp_path / "bf16")


# The folder


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_what_is_saved_is_read(kind: str, tiny: Path, tmp_path: Path) -> None:
    tensors, config = tensors_for(tiny, kind), config_for(tiny, kind)
    save_adapter(tmp_path / "new" / "adapters", tensors, config)
    adapter = read_adapter(tmp_path / "new" / "adapters")
    assert adapter.config == config
    assert set(adapter.weights) | set(adapter.tensors) == set(tensors)
    assert all(mx.array_equal(array, tensors[name]) for name, array in adapter.tensors.items())
    assert is_adapter(tmp_path / "new" / "adapters")


def test_the_config_has_the_keys_of_mlx_lm(tiny: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path, tiny, "dora", "owner/base")
    assert json.loads((tmp_path / CONFIG_NAME).read_text()) == {
        "fine_tune_type": "dora",
        "num_layers": -1,
        "lora_parameters": {"rank": RANK, "scale": SCALE, "dropout": 0.1, "keys": list(KEYS)},
        "base_model": "owner/base",
        "base_model_hash": base_hash(tiny),
        "base_model_lineage": lineage_hash(tiny),
    }


@pytest.mark.parametrize("step", ["weights", "config"])
@pytest.mark.parametrize("same_config", [True, False])
def test_stopped_while_saving(
    step: str, same_config: bool, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of one adapter never lie beside the description of another."""
    write_adapter(tmp_path, tiny)
    old = read_adapter(tmp_path)
    new = {name: 2 * array for name, array in tensors_for(tiny, "lora").items()}
    config = old.config if same_config else replace(old.config, num_layers=3)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    if step == "weights":
        monkeypatch.setattr(adapters.mx, "save_safetensors", stopped)
    else:
        monkeypatch.setattr(AdapterConfig, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(tmp_path, new, config)
    assert {path.name for path in tmp_path.iterdir()} <= {CONFIG_NAME, WEIGHTS_NAME}
    if not same_config:
        assert not is_adapter(tmp_path)
        return
    held = read_adapter(tmp_path).tensors
    expected = old.tensors if step == "weights" else new
    assert all(mx.array_equal(array, expected[name]) for name, array in held.items())


# On a model


def test_an_adapter_computes_as_its_formula(tiny: Path, tmp_path: Path) -> None:
    """LoRA and DoRA of one layer against their formulas in NumPy, one row and several."""
    for kind in ("lora", "dora"):
        place = write_adapter(tmp_path / kind, tiny, kind)
        model = load_model(tiny, "float32")
        plain = np.array(dict(model.named_modules())[Q_PROJ].weight)
        load_adapter(model, place, tiny)
        layer = dict(model.named_modules())[Q_PROJ]
        tensors = {name: np.array(array) for name, array in tensors_for(tiny, kind).items()}
        a, b = tensors[f"{Q_PROJ}.lora_a"], tensors[f"{Q_PROJ}.lora_b"]
        weight = plain + SCALE * (a @ b).T
        if kind == "dora":
            lengths = tensors[f"{Q_PROJ}.m"] / np.linalg.norm(weight, axis=1)
            weight = lengths[:, None] * weight
        for rows in (1, 3):
            x = np.random.default_rng(0).normal(size=(1, rows, len(a))).astype(np.float32)
            assert np.allclose(np.array(layer(mx.array(x))), x @ weight.T, atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_only_the_named_layers_are_wrapped_and_all_is_frozen(
    kind: str, quantizable: Path, tmp_path: Path
) -> None:
    convert(quantizable, tmp_path / "q4", quantization=Quantization(32, 4))
    place = write_adapter(tmp_path / "adapter", tmp_path / "q4", kind)
    model = load_model(tmp_path / "q4", "float32")
    load_adapter(model, place, tmp_path / "q4")
    kinds = {path: type(module) for path, module in model.named_modules()}
    wrapped = {path for path, of in kinds.items() if of in (LoRALinear, DoRALinear)}
    assert wrapped == set(read_adapter(place).layers)
    assert kinds[f"{Q_PROJ}.linear"] is QuantizedLinear
    assert tree_flatten(model.trainable_parameters()) == []
    assert not model.training
    # What DoRA works out beforehand is no weight.
    assert not any("settled" in name for name, _ in tree_flatten(model.parameters()))


def test_whole_weights_replace_the_models(tiny: Path, tmp_path: Path) -> None:
    place = write_adapter(tmp_path / "adapter", tiny, "full")
    model, tensors = load_model(tiny, "float32"), tensors_for(tiny, "full")
    before = dict(tree_flatten(model.parameters()))
    load_adapter(model, place, tiny)
    for name, array in tree_flatten(model.parameters()):
        assert mx.array_equal(array, tensors.get(name, before[name])), name


def test_the_activations_keep_their_type(tiny: Path, tmp_path: Path) -> None:
    place = write_adapter(tmp_path / "adapter", tiny, "dora")
    model = load_model(tiny, "bfloat16")
    load_adapter(model, place, tiny)
    layer = dict(model.named_modules())[Q_PROJ]
    assert layer(mx.zeros((1, 2, 72), mx.bfloat16)).dtype == mx.bfloat16
    assert (layer.lora_a.dtype, layer.m.dtype) == (mx.bfloat16, mx.float32)


# On which model


def test_on_another_base_it_is_refused_by_name(
    quantizable: Path, other: Path, tmp_path: Path
) -> None:
    place = write_adapter(tmp_path / "adapter", quantizable, name="owner/base")
    model = load_model(other, "float32")
    before = dict(tree_flatten(model.parameters()))
    with pytest.raises(UserError, match=r"is an adapter for owner/base.*--model owner/base"):
        load_adapter(model, place, other)
    assert dict(tree_flatten(model.parameters())).keys() == before.keys()


def test_on_other_bits_of_its_base_there_is_a_note(quantizable: Path, tmp_path: Path) -> None:
    """What QLoRA is for: trained on 4 bits, used on 16."""
    convert(quantizable, tmp_path / "q4", quantization=Quantization(32, 4))
    place = write_adapter(tmp_path / "adapter", tmp_path / "q4", name="owner/q4")
    config = AdapterConfig.read(place)
    assert config.check_base(place, tmp_path / "q4") is None
    note = config.check_base(place, quantizable)
    assert note is not None
    assert "trained on owner/q4" in note
    assert "other bits" in note
    load_adapter(load_model(quantizable, "float32"), place, quantizable)


def test_a_base_in_a_folder_is_named_by_its_whole_path(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path would mean nothing in another folder, or something else."""
    from llavacot_mlx.checkpoint.adapter_config import Base

    monkeypatch.chdir(tiny.parent)
    assert Base.of(tiny.name, Path(tiny.name)).model == str(tiny.resolve())
    assert Base.of("owner/base", tiny).model == "owner/base"


# What is wrong with one

A = f"{Q_PROJ}.lora_a"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({f"{Q_PROJ}.lora_b": None}, rf"{Q_PROJ}\.lora_b is missing"),
        ({A: mx.zeros((71, RANK))}, rf"{A} has the shape \[71, 4\]; this model asks for \[72, 4\]"),
        ({A: mx.zeros((72, 3))}, "has rank 3 in lora_a and 4 in lora_b"),
        ({A: mx.full((72, RANK), float("nan"))}, rf"{A} holds NaN"),
        ({A: mx.zeros((72, RANK), mx.int32)}, rf"{A} is stored as I32"),
        ({"model.x.weight": mx.zeros(3)}, r"model\.x\.weight of shape \[3\] is not part of a lora"),
        (
            {"nowhere.lora_a": mx.zeros((72, RANK)), "nowhere.lora_b": mx.zeros((RANK, 72))},
            "nowhere is not a linear layer",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_are_wrong(
    change: dict[str, mx.array | None], says: str, tiny: Path, tmp_path: Path
) -> None:
    tensors = {**tensors_for(tiny, "lora"), **change}
    kept = {name: array for name, array in tensors.items() if array is not None}
    save_adapter(tmp_path, kept, config_for(tiny, "lora"))
    model = load_model(tiny, "float32")
    with pytest.raises(UserError, match=says):
        load_adapter(model, tmp_path, tiny)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("language_model.nowhere", mx.zeros(3), "belongs to no part"),
        ("language_model.model.norm.weight", mx.zeros(3), "this model asks for"),
        ("language_model.model.norm.weight", mx.full((72,), float("inf")), "NaN or infinite"),
    ],
)
def test_whole_weights_that_are_wrong(
    name: str, array: mx.array, says: str, tiny: Path, tmp_path: Path
) -> None:
    save_adapter(tmp_path, {name: array}, config_for(tiny, "full"))
    with pytest.raises(UserError, match=says):
        load_adapter(load_model(tiny, "float32"), tmp_path, tiny)


# In answers


def test_an_answer_with_an_adapter(tiny: Path, tmp_path: Path) -> None:
    """Another answer than without, and the trace says which adapter it was."""
    place = write_adapter(tmp_path / "adapter", tiny)
    without = Assistant.load(tiny, dtype="float32").ask(None, "What?", max_tokens=6)
    adapted = Assistant.load(tiny, adapter=place, dtype="float32").ask(None, "What?", max_tokens=6)
    assert adapted.token_ids != without.token_ids
    assert (adapted.adapter, without.adapter) == (str(place), None)
    assert adapted.to_dict()["adapter"] == str(place)


def test_an_adapters_calibration_goes_before_the_models(folder: Path, tmp_path: Path) -> None:
    place = write_adapter(tmp_path / "adapter", folder)
    of_model, of_adapter = ({Stage.CAPTION: ScoreStats(mean, 0.1, 3)} for mean in (0.5, 0.9))
    save_calibration(folder, {"self": of_model, "logprob": of_model})
    save_calibration(place, {"self": of_adapter})
    loaded = Assistant.load(folder, adapter=place)._loaded
    assert loaded.calibration == {"self": of_adapter, "logprob": of_model}
    assert load_calibration(folder)["self"] == of_model


@pytest.mark.processes
def test_adapters_are_read_without_the_peers(tiny: Path, tmp_path: Path) -> None:
    """mlx-lm has the same layers, and takes seconds to import."""
    import subprocess
    import sys

    place = write_adapter(tmp_path / "adapter", tiny)
    script = (
        "import sys; from llavacot_mlx import Assistant; "
        f"Assistant.load({str(tiny)!r}, adapter={str(place)!r}); "
        "print(sorted({'torch', 'transformers', 'mlx_lm', 'mlx_vlm', 'peft'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (run.stdout, run.returncode) == ("[]\n", 0), run.stderr


def test_the_models_of_the_tests_are_adapted_where_it_shows(tiny: Path) -> None:
    """Every key of the random adapter names a layer, or the tests would compare less."""
    paths = [path for path, _ in Mllama(load_model(tiny).config).named_modules()]
    for key in KEYS:
        assert any(path.endswith(key) for path in paths), key
