"""Exporting: the layout of hubs again, and the same model to transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from random_adapter import write_adapter

from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.safetensors import list_tensors, read_header
from llavacot_mlx.checkpoint.weight_files import INDEX_NAME
from llavacot_mlx.convert import shards
from llavacot_mlx.convert.convert import Progress, convert
from llavacot_mlx.convert.export import export
from llavacot_mlx.convert.model_files import has_chat_template
from llavacot_mlx.convert.output_folder import OutputFolder
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import Quantization


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def raw(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of every tensor, by its name in the files."""
    found = {}
    for name, entry in list_tensors(folder).items():
        with entry.file.open("rb") as stream:
            stream.seek(entry.start)
            found[name] = (entry.dtype, entry.shape, stream.read(entry.nbytes))
    return found


@pytest.fixture
def target(tmp_path: Path) -> OutputFolder:
    """A target in an empty folder of its own, so that what is left beside it shows."""
    (tmp_path / "place").mkdir()
    return OutputFolder(tmp_path / "place" / "out", "--hf-path", force=False)


def test_a_missing_chat_template_is_seen(tmp_path: Path) -> None:
    """`export` prints a note then."""
    assert not has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    assert not has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "x"}', encoding="utf-8")
    assert has_chat_template(tmp_path)


def test_converted_and_exported_it_is_the_same_bytes(
    tiny: Path, target: OutputFolder, tmp_path: Path
) -> None:
    """Names, types, shapes and values as `save_pretrained` wrote them, the convolution's too."""
    convert(tiny, tmp_path / "mlx")
    written = export(tmp_path / "mlx", target)
    assert raw(written.folder) == raw(tiny)
    assert written.weight_bytes == sum(e.nbytes for e in list_tensors(tiny).values())
    assert [path.name for path in target.folder.parent.iterdir()] == ["out"]


def test_the_files_say_that_they_are_pytorchs(
    tiny: Path, target: OutputFolder, tmp_path: Path
) -> None:
    """transformers refuses safetensors that do not say what they were made for."""
    from safetensors import safe_open

    convert(tiny, tmp_path / "mlx")
    export(tmp_path / "mlx", target)
    with safe_open(target.folder / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_config_leaves_nothing_to_defaults(folder: Path, target: OutputFolder) -> None:
    """What MLX folders may leave out, and what they add, is put right for transformers."""
    config = read_json(folder / "config.json")
    before = load_config(folder)
    del config["vision_config"]["vision_output_dim"], config["architectures"]
    config["generation_config"] = {"eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config))
    export(folder, target)
    got = read_json(target.folder / "config.json")
    assert got["vision_config"]["vision_output_dim"] == before.vision.output_size
    assert got["architectures"] == ["MllamaForConditionalGeneration"]
    assert "generation_config" not in got
    assert load_config(target.folder) == before


@pytest.mark.parametrize(
    "quantization",
    [Quantization(32, 4), Quantization(32, 4, "mxfp4"), Quantization(16, 4, "nvfp4")],
    ids=lambda quantization: quantization.mode,
)
def test_a_quantized_folder_is_dequantized(
    quantization: Quantization, quantizable: Path, target: OutputFolder, tmp_path: Path
) -> None:
    """Every weight is what MLX makes of its parts; nothing of the quantization is left."""
    convert(quantizable, tmp_path / "q", quantization=quantization)
    export(tmp_path / "q", target)
    parts = dict(mx.load(str(tmp_path / "q" / "model.safetensors")))
    exported = dict(mx.load(str(target.folder / "model.safetensors")))
    assert raw(target.folder).keys() == raw(quantizable).keys()
    name = "language_model.model.layers.1.mlp.up_proj"
    expected = mx.dequantize(
        parts[f"{name}.weight"],
        parts[f"{name}.scales"],
        parts.get(f"{name}.biases"),
        quantization.group_size,
        quantization.bits,
        quantization.mode,
    )
    got = exported[f"{name}.weight"]
    assert got.dtype == mx.float32
    assert mx.array_equal(got, expected.astype(mx.float32))
    config = read_json(target.folder / "config.json")
    assert not config.keys() & {"quantization", "quantization_config"}


def test_a_dtype(tiny: Path, target: OutputFolder) -> None:
    """The weights, and what the config says of them."""
    export(tiny, target, dtype="bfloat16")
    assert {entry.dtype for entry in list_tensors(target.folder).values()} == {"BF16"}
    config = read_json(target.folder / "config.json")
    assert config["torch_dtype"] == config["text_config"]["torch_dtype"] == "bfloat16"


def test_large_weights_are_spread_over_files(
    tiny: Path, target: OutputFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_SHARD_BYTES", 300_000)
    export(tiny, target)
    assert raw(target.folder) == raw(tiny)
    index = read_json(target.folder / INDEX_NAME)
    files = sorted(target.folder.glob("*.safetensors"))
    assert len(files) > 3
    for file in files:
        named = {name for name, place in index["weight_map"].items() if place == file.name}
        assert named == set(read_header(file))


def test_one_tensor_at_a_time_is_in_memory(
    quantizable: Path, target: OutputFolder, tmp_path: Path
) -> None:
    convert(quantizable, tmp_path / "q", quantization=Quantization(32, 4))
    sizes: list[int] = []
    export(tmp_path / "q", target, progress=lambda _: sizes.append(mx.get_active_memory()))
    largest = max(entry.nbytes for entry in list_tensors(quantizable).values())
    assert max(sizes) - sizes[0] < 2 * largest


@pytest.mark.parametrize("with_adapter", [True, False])
def test_whatever_stops_it_nothing_is_left(
    with_adapter: bool, tiny: Path, target: OutputFolder, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", tiny) if with_adapter else None

    def stopped(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tiny, target, adapter=adapter, progress=stopped)
    assert not list(target.folder.parent.iterdir())


def test_an_adapter_of_another_model_is_refused(
    tiny: Path, quantizable: Path, target: OutputFolder, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", quantizable, name="owner/base")
    with pytest.raises(UserError, match="is an adapter for owner/base"):
        export(tiny, target, adapter=adapter)
    assert not list(target.folder.parent.iterdir())
