"""Which files of a folder count: none that a system left there, and no old weights in silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from llavacot_mlx.checkpoint.folder_files import files_in
from llavacot_mlx.checkpoint.safetensors import find_weight_files, list_tensors
from llavacot_mlx.checkpoint.weight_files import INDEX_NAME, choose_weight_files
from llavacot_mlx.checkpoint.weights import load_model
from llavacot_mlx.convert.convert import convert
from llavacot_mlx.errors import UserError

APPLE_DOUBLE = (b"\x00\x05\x16\x07\x00\x02\x00\x00" + b"Mac OS X        ").ljust(4096, b"\x00")


def litter(folder: Path) -> None:
    """What macOS leaves beside every file on a disk of another system."""
    for file in list(folder.iterdir()):
        (folder / f"._{file.name}").write_bytes(APPLE_DOUBLE)
    (folder / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    (folder / ".cache").mkdir()


def write(folder: Path, name: str, **tensors: float) -> None:
    mx.save_safetensors(str(folder / name), {key: mx.array([at]) for key, at in tensors.items()})


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


def split(folder: Path) -> None:
    """The folder's one weight file in two, with an index."""
    single = folder / "model.safetensors"
    names = list(list_tensors(folder))
    arrays: dict[str, mx.array] = mx.load(str(single))  # type: ignore[assignment]
    half = len(names) // 2
    parts = {"model-00001-of-00002": names[:half], "model-00002-of-00002": names[half:]}
    weight_map = {}
    for part, members in parts.items():
        mx.save_safetensors(str(folder / f"{part}.safetensors"), {n: arrays[n] for n in members})
        weight_map |= dict.fromkeys(members, f"{part}.safetensors")
    write_index(folder, weight_map)
    single.unlink()


@pytest.mark.parametrize("sharded", [False, True])
def test_apple_double_files_are_no_part_of_a_model(
    sharded: bool, folder: Path, tmp_path: Path
) -> None:
    """They were "truncated or no safetensors file", and with an index they were copied along."""
    if sharded:
        split(folder)
    litter(folder)
    load_model(folder)
    out = convert(folder, tmp_path / "out").folder
    assert not [file.name for file in out.iterdir() if file.name.startswith(".")]
    assert files_in(folder) == [file for file in files_in(folder) if file.name[0] != "."]


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        files_in(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a folder"):
        files_in(tmp_path / "file")


GONE = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


@pytest.mark.parametrize(
    "content", [json.dumps({"weight_map": GONE}), '{"weight_map": {}}', "{}", ""]
)
def test_a_stale_index_beside_a_whole_model(content: str, tmp_path: Path) -> None:
    """As mlx-vlm's own conversion left it; it was "a shard is missing"."""
    write(tmp_path, "model.safetensors", a=1, b=2)
    (tmp_path / INDEX_NAME).write_text(content, encoding="utf-8")
    assert sorted(list_tensors(tmp_path)) == ["a", "b"]
    note = find_weight_files(tmp_path).note
    assert note is not None
    assert "index.json is stale" in note
    assert "model.safetensors counts" in note


def test_a_stale_index_beside_half_a_model(folder: Path) -> None:
    write_index(folder, GONE)
    single = folder / "model.safetensors"
    arrays: dict[str, mx.array] = mx.load(str(single))  # type: ignore[assignment]
    del arrays["language_model.lm_head.weight"]
    mx.save_safetensors(str(single), arrays)
    with pytest.raises(UserError, match=r"lm_head\.weight is missing .*index\.json is stale"):
        load_model(folder)


def test_an_index_without_any_weights(tmp_path: Path) -> None:
    write_index(tmp_path, GONE)
    with pytest.raises(UserError, match=r"holds no weights.*none is there"):
        list_tensors(tmp_path)


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    write_index(tmp_path, GONE)
    write(tmp_path, GONE["a"], a=1)
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors is missing"):
        list_tensors(tmp_path)
    write(tmp_path, "model.safetensors", a=1, b=2)
    with pytest.raises(UserError, match=r"or, if model\.safetensors is the whole model, remove"):
        list_tensors(tmp_path)


def test_a_whole_single_file_comes_before_the_shards(tmp_path: Path) -> None:
    """The shards, perhaps of an older training, were used without a word."""
    write(tmp_path, GONE["a"], a=1)
    write(tmp_path, GONE["b"], b=2)
    write_index(tmp_path, GONE)
    write(tmp_path, "model.safetensors", a=3, b=4)
    assert {entry.file.name for entry in list_tensors(tmp_path).values()} == {"model.safetensors"}
    note = find_weight_files(tmp_path).note
    assert note is not None
    assert GONE["a"] in note
    write(tmp_path, "model.safetensors", a=3)
    with pytest.raises(UserError, match=r"lacks 'b'.*two models lie in one folder"):
        list_tensors(tmp_path)


def test_shards_beside_a_single_file_without_an_index(tmp_path: Path) -> None:
    write(tmp_path, GONE["a"], a=1)
    write(tmp_path, "model.safetensors", a=3, b=4)
    assert {entry.file.name for entry in list_tensors(tmp_path).values()} == {"model.safetensors"}
    assert GONE["a"] in str(find_weight_files(tmp_path).note)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors is missing"):
        list_tensors(tmp_path)


def test_adapters_are_not_weights_of_the_model() -> None:
    found = ["adapter_model.safetensors", "adapters.safetensors", "model.safetensors"]
    assert choose_weight_files(found, None, "here").names == ("model.safetensors",)


def test_litter_in_the_folder_to_replace(folder: Path, tmp_path: Path) -> None:
    """A folder that Finder has shown is still empty."""
    out = tmp_path / "out"
    out.mkdir()
    (out / ".DS_Store").touch()
    convert(folder, out, force=True)
    shutil.rmtree(out)
    out.mkdir()
    (out / ".git").mkdir()
    with pytest.raises(UserError, match="is not a model folder"):
        convert(folder, out, force=True)


@pytest.mark.parametrize("says_so", [True, False])
@pytest.mark.parametrize("rows", [3, 64])
def test_a_vocabulary_that_was_resized(rows: int, says_so: bool, folder: Path) -> None:
    """`image_token_index` was blamed, or the shape of a tensor."""
    file = folder / "model.safetensors"
    arrays: dict[str, mx.array] = mx.load(str(file))  # type: ignore[assignment]
    head = arrays["language_model.lm_head.weight"]
    size = head.shape[0] + 8 + rows
    for name in ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"):
        extra = size - arrays[name].shape[0]
        arrays[name] = mx.concatenate([arrays[name], mx.zeros((extra, head.shape[1]))])
    mx.save_safetensors(str(file), arrays, {"format": "pt"})
    if says_so:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["text_config"]["vocab_size"] = size
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    said = f"the vocabulary was resized: the embedding has {size} rows, the head {size}; the config"
    with pytest.raises(UserError, match=said):
        load_model(folder)
