"""Conversion: however a checkpoint is written, one folder comes out, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.safetensors import list_tensors
from llavacot_mlx.checkpoint.weight_files import INDEX_NAME
from llavacot_mlx.checkpoint.weights import load_model
from llavacot_mlx.convert import convert as run
from llavacot_mlx.convert import plan, shards
from llavacot_mlx.convert.convert import Progress, convert
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import Quantization
from llavacot_mlx.model.mllama import Mllama

FOUR_BITS = Quantization(group_size=32, bits=4)
PROJECTOR = "multi_modal_projector.weight"


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def content(folder: Path) -> dict[str, str]:
    """Name and digest of every file, hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def parameters(folder: Path, dtype: str = "float32") -> dict[str, mx.array]:
    return dict(tree_flatten(load_model(folder, dtype).parameters()))


def same_model(one: Path, other: Path) -> bool:
    left, right = parameters(one), parameters(other)
    return left.keys() == right.keys() and all(mx.array_equal(left[n], right[n]) for n in left)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A target in an empty folder of its own, so that what is left beside it shows."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "out"


def test_the_roundtrip(tiny: Path, out: Path, tmp_path: Path) -> None:
    """Converted it is the same model, value by value; converted again it is the same files.

    The cards alone differ: they say what each was made of.
    """
    done = convert(tiny, out)
    assert (done.folder, done.dtypes) == (out, ("float32",))
    assert done.weight_bytes == sum(array.nbytes for array in parameters(out).values())
    assert same_model(tiny, out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    convert(out, tmp_path / "again")
    again = content(tmp_path / "again")
    assert again.pop("README.md") != content(out)["README.md"]
    assert again.pop("README.source.md") == content(out)["README.md"]
    assert again == {name: digest for name, digest in content(out).items() if name != "README.md"}


@pytest.fixture(scope="session")
def rewritten(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`tiny` as other programs write it: three layouts of names, two spellings of the config."""
    from parity.checkpoints import relayout, respell

    folders = {}
    place = tmp_path_factory.mktemp("rewritten")
    for layout in ("hub", "nested", "mlx"):
        new = relayout(tiny, place / layout, layout)
        folders[f"{layout}, new spelling"] = new
        folders[f"{layout}, old spelling"] = respell(new, place / f"{layout}-old")
    return folders


def test_every_layout_and_spelling_becomes_the_same_bytes(
    rewritten: dict[str, Path], tmp_path: Path
) -> None:
    weights, configs = set(), set()
    for number, (name, folder) in enumerate(rewritten.items()):
        target = tmp_path / str(number)
        convert(folder, target)
        digests = content(target)
        weights.add((digests["model.safetensors"], digests[INDEX_NAME]))
        configs.add(load_config(target))
        assert load_config(target) == load_config(folder), name
    assert len(weights) == 1
    assert len(configs) == 1


def test_shards_become_the_same_model(tiny: Path, tmp_path: Path, out: Path) -> None:
    from parity.checkpoints import shard

    convert(shard(tiny, tmp_path / "sharded"), out)
    assert same_model(tiny, out)


def test_the_names_are_those_of_mlx_folders(tiny: Path, out: Path) -> None:
    convert(tiny, out)
    parts = {".".join(name.split(".")[:2]) for name in list_tensors(out)}
    assert {p for p in parts if not p.startswith("vision_tower.")} == {
        "language_model.lm_head",
        "language_model.model",
        "multi_modal_projector.bias",
        "multi_modal_projector.weight",
    }


def test_the_config_is_in_the_old_spelling_and_keeps_the_rest(folder: Path, out: Path) -> None:
    """mlx-vlm reads the old one only, and takes other heads from the new without a word."""
    config = read_json(folder / "config.json")
    config |= {"_name_or_path": "someone's/моdel", "torchscript": False}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    convert(folder, out)
    got = read_json(out / "config.json")
    rope = config["text_config"].pop("rope_parameters")
    config["text_config"]["rope_theta"] = rope.pop("rope_theta")
    config["text_config"]["rope_scaling"] = rope
    vision = config["vision_config"]
    vision["num_attention_heads"] = vision.pop("attention_heads")
    assert got == config


def test_without_scaling_the_old_spelling_says_null(quantizable: Path, out: Path) -> None:
    convert(quantizable, out)
    text = read_json(out / "config.json")["text_config"]
    assert text["rope_scaling"] is None
    assert text["rope_theta"] == 500.0


def test_settings_are_copied_and_code_is_not(folder: Path, out: Path) -> None:
    (folder / "LICENSE").write_text("Llama 3.2 Community License")
    (folder / "USE_POLICY.md").write_text("be good")
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}")
    for unwanted in ("modeling.py", "pytorch_model.bin", "a.pt", ".gitattributes"):
        (folder / unwanted).write_text("no")
    convert(folder, out)
    written = {"model.safetensors", INDEX_NAME, "config.json", "README.md"}
    copied = content(out).keys() - written
    assert copied == {
        "LICENSE",
        "USE_POLICY.md",
        "chat_template.jinja",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in copied)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cast(dtype: str, tiny: Path, out: Path) -> None:
    done = convert(tiny, out, dtype=dtype)
    assert done.dtypes == (dtype,)
    assert {entry.dtype for entry in list_tensors(out).values()} == {
        "BF16" if dtype == "bfloat16" else "F16"
    }
    expected = parameters(tiny, dtype)
    got = parameters(out, dtype)
    assert all(mx.array_equal(got[name], expected[name]) for name in expected)
    config = read_json(out / "config.json")
    assert config["torch_dtype"] == config["text_config"]["torch_dtype"] == dtype
    assert "dtype" not in config


def test_without_a_dtype_each_weight_keeps_its_own(folder: Path, out: Path) -> None:
    file = str(folder / "model.safetensors")
    arrays = dict(mx.load(file))
    arrays[PROJECTOR] = arrays[PROJECTOR].astype(mx.bfloat16)
    mx.eval(arrays)
    mx.save_safetensors(file, arrays)
    assert convert(folder, out).dtypes == ("bfloat16", "float32")
    tensors = list_tensors(out)
    assert tensors[PROJECTOR].dtype == "BF16"
    assert tensors["multi_modal_projector.bias"].dtype == "F32"


@pytest.mark.parametrize(
    "quantization",
    [
        FOUR_BITS,
        Quantization(64, 8),
        Quantization(32, 3),
        Quantization(32, 4, "mxfp4"),
        Quantization(32, 8, "mxfp8"),
        Quantization(16, 4, "nvfp4"),
    ],
    ids=lambda q: f"{q.mode}-{q.bits}-{q.group_size}",
)
def test_a_quantized_folder_is_the_model_quantized_in_memory(
    quantization: Quantization, quantizable: Path, out: Path
) -> None:
    """The text part alone, as MLX does it, every value the same; vision and projector stay."""
    done = convert(quantizable, out, quantization=quantization)
    assert done.dtypes == ("float32",)
    expected = load_model(quantizable, "float32")
    nn.quantize(
        expected,
        quantization.group_size,
        quantization.bits,
        mode=quantization.mode,
        class_predicate=lambda path, module: (
            path.startswith("language_model.") and hasattr(module, "to_quantized")
        ),
    )
    want = dict(tree_flatten(expected.parameters()))
    got = parameters(out)
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].dtype == array.dtype, name
        assert mx.array_equal(got[name], array), name
    config = read_json(out / "config.json")
    assert (
        config["quantization"]
        == config["quantization_config"]
        == {
            "group_size": quantization.group_size,
            "bits": quantization.bits,
            "mode": quantization.mode,
        }
    )


def test_quantized_and_cast(quantizable: Path, out: Path) -> None:
    """Scales have the type of what is not quantized, and a folder of both kinds converts again."""
    convert(quantizable, out, dtype="bfloat16", quantization=FOUR_BITS)
    tensors = list_tensors(out)
    assert tensors["language_model.lm_head.scales"].dtype == "BF16"
    assert tensors["language_model.lm_head.weight"].dtype == "U32"
    assert tensors[PROJECTOR].dtype == "BF16"
    again = out.with_name("again")
    convert(out, again)
    assert load_config(again) == load_config(out)
    assert same_model(again, out)


def test_a_quantized_source_is_not_quantized_again(quantizable: Path, out: Path) -> None:
    convert(quantizable, out, quantization=FOUR_BITS)
    with pytest.raises(UserError, match="is quantized already"):
        convert(out, out.with_name("again"), quantization=FOUR_BITS)


@pytest.mark.parametrize(
    ("quantization", "says"),
    [
        (Quantization(32, 7), "cannot be run"),
        (Quantization(17, 4), "cannot be run"),
        (Quantization(32, 4, "fp3"), "cannot be run"),
        (Quantization(32, 8, "mxfp4"), "cannot be run"),
        (Quantization(64, 4), "--q-group-size 64 does not divide the width 72"),
    ],
)
def test_a_quantization_that_cannot_be(
    quantization: Quantization, says: str, tiny: Path, out: Path
) -> None:
    with pytest.raises(UserError, match=says):
        convert(tiny, out, quantization=quantization)
    assert not list(out.parent.iterdir())


def test_large_weights_are_spread_over_files(
    tiny: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file larger than the limit, unless one tensor is; the index says what is where."""
    limit = 300_000
    monkeypatch.setattr(shards, "_SHARD_BYTES", limit)
    convert(tiny, out)
    index = read_json(out / INDEX_NAME)
    files = sorted(out.glob("*.safetensors"))
    count = len(files)
    assert count > 3
    assert [f.name for f in files] == [
        f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)
    ]
    for file in files:
        tensors = mx.load(str(file))
        assert {n for n, place in index["weight_map"].items() if place == file.name} == set(tensors)
        assert len(tensors) == 1 or sum(a.nbytes for a in tensors.values()) <= limit
    total = sum(array.nbytes for array in parameters(out).values())
    assert index["metadata"]["total_size"] == total
    assert same_model(tiny, out)


def test_progress_goes_up_to_the_whole(tiny: Path, out: Path) -> None:
    reports: list[Progress] = []
    done = convert(tiny, out, progress=reports.append)
    counts = [report.read_bytes for report in reports]
    assert counts == sorted(set(counts))
    assert counts[-1] == reports[-1].total_bytes == done.source_bytes
    assert {report.tensor for report in reports} == set(list_tensors(out))


def test_one_tensor_at_a_time_is_in_memory(
    tiny: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a checkpoint of 40 GB could be converted only where 40 GB fit."""
    sizes = []
    convert(tiny, out, progress=lambda _: sizes.append(mx.get_active_memory()))
    largest = max(entry.nbytes for entry in list_tensors(tiny).values())
    assert max(sizes) - sizes[0] < 2 * largest


class Interrupted:
    """Progress that is stopped after some tensors, as by Ctrl-C or a full disk."""

    def __init__(self, error: BaseException) -> None:
        self.calls, self.error = 0, error

    def __call__(self, _: Progress) -> None:
        self.calls += 1
        if self.calls == 10:
            raise self.error


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(143), SystemExit),
        (OSError(errno.ENOSPC, "No space left on device"), UserError),
        (OSError(errno.EDQUOT, "Quota exceeded"), UserError),
        (RuntimeError("a bug"), RuntimeError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
@pytest.mark.parametrize("force", [False, True])
def test_whatever_stops_it_nothing_is_left(
    error: BaseException, seen: type[BaseException], force: bool, tiny: Path, out: Path
) -> None:
    """No folder that looks finished, no hidden one, and with `--force` the old one as it was."""
    if force:
        convert(tiny, out, dtype="bfloat16")
    before = content(out.parent)
    with pytest.raises(seen):
        convert(tiny, out, force=force, progress=Interrupted(error))
    assert content(out.parent) == before
    assert [path.name for path in out.parent.iterdir()] == (["out"] if force else [])


def test_folders_above_the_target_are_made_and_unmade(tiny: Path, out: Path) -> None:
    """A failed conversion once left the empty folders above its target behind."""
    deep = out / "a" / "b"
    with pytest.raises(KeyboardInterrupt):
        convert(tiny, deep, progress=Interrupted(KeyboardInterrupt()))
    assert not list(out.parent.iterdir())
    convert(tiny, deep)
    assert (deep / "config.json").is_file()


def test_not_enough_disk(tiny: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before a weight is read."""
    usage = shutil.disk_usage(out.parent)._replace(free=65 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(run, "_write_weights", None)
    with pytest.raises(UserError, match=r"not enough disk for .*out: it needs 0\.0 GB"):
        convert(tiny, out)
    assert not list(out.parent.iterdir())


def test_force_puts_the_new_in_place_of_the_old(tiny: Path, out: Path) -> None:
    convert(tiny, out, dtype="bfloat16")
    (out / "notes.txt").write_text("old")
    with pytest.raises(UserError, match="exists already"):
        convert(tiny, out)
    convert(tiny, out, force=True)
    assert not (out / "notes.txt").exists()
    assert same_model(tiny, out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_the_old_one_comes_back_if_the_new_cannot_take_its_place(
    tiny: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two renames neither has the name; a failure there once left no model at all."""
    convert(tiny, out, dtype="bfloat16")
    before = content(out.parent)
    rename: Callable[[Path, Path], Path] = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if "partial" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(UserError, match="Input/output error"):
        convert(tiny, out, force=True)
    assert content(out.parent) == before


def test_force_through_a_link_replaces_what_it_points_to(tiny: Path, out: Path) -> None:
    """The link stays one. It was once left pointing at nothing, with an error."""
    real = out.with_name("real")
    convert(tiny, real, dtype="bfloat16")
    out.symlink_to("real")
    convert(tiny, out, force=True)
    assert out.is_symlink()
    assert same_model(tiny, real)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "real"]


@pytest.mark.parametrize("target", [".", "..", "../model", "../../place/model"])
def test_the_source_is_never_replaced(target: str, tiny: Path, out: Path) -> None:
    """Not under another name for it, nor with a folder around it that looks like a model."""
    source = Path(shutil.copytree(tiny, out.with_name("model")))
    (out.parent / "config.json").write_text("{}")
    before = content(out.parent)
    with pytest.raises(UserError, match="is or holds the source"):
        convert(source, source / target, force=True)
    assert content(out.parent) == before


def test_force_replaces_models_only(tiny: Path, out: Path) -> None:
    """A folder of something else, given by mistake, was once deleted."""
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="not a model folder, and --force replaces nothing else"):
        convert(tiny, out, force=True)
    (out / "thesis.tex").unlink()
    convert(tiny, out, force=True)
    assert same_model(tiny, out)


def test_what_comes_in_the_meantime_is_not_replaced(tiny: Path, out: Path) -> None:
    """A conversion takes minutes; a folder made at its target by then was once deleted."""

    def made(_: Progress) -> None:
        out.mkdir(exist_ok=True)
        (out / "thesis.tex").write_text("mine")

    for force in (False, True):
        with pytest.raises(UserError, match="--mlx-path"):
            convert(tiny, out, progress=made, force=force)
        assert [path.name for path in out.parent.rglob("*")] == ["out", "thesis.tex"]


def test_values_too_large_for_the_type(folder: Path, out: Path) -> None:
    """float16 ends at 65504; bfloat16 does not, and the error says so."""
    file = str(folder / "model.safetensors")
    arrays = dict(mx.load(file))
    arrays[PROJECTOR] = arrays[PROJECTOR] * 1e7
    mx.eval(arrays)
    mx.save_safetensors(file, arrays)
    with pytest.raises(UserError, match=rf"{PROJECTOR} holds values too large.*use bfloat16"):
        convert(folder, out, dtype="float16")
    assert not list(out.parent.iterdir())
    convert(folder, out, dtype="bfloat16")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_weights_that_are_not_finite(
    dtype: str | None, value: float, folder: Path, out: Path
) -> None:
    """One value among many; the error names the tensor and its file."""
    file = str(folder / "model.safetensors")
    arrays = dict(mx.load(file))
    arrays[PROJECTOR][3, 4] = value
    mx.eval(arrays)
    mx.save_safetensors(file, arrays)
    with pytest.raises(UserError, match=rf"model\.safetensors: {PROJECTOR} holds NaN"):
        convert(folder, out, dtype=dtype)
    assert not list(out.parent.iterdir())


def test_what_is_planned_is_what_mlx_makes(quantizable: Path) -> None:
    """Names, shapes and types of a plan are those of the arrays, or the header would lie."""
    from llavacot_mlx.checkpoint.weights import source_tensors

    config, sources = load_config(quantizable), source_tensors(quantizable)
    steps = plan.plan_steps(config, sources, mx.bfloat16, FOUR_BITS)
    planned = {t.name: (t.shape, t.dtype) for step in steps for t in step.targets}
    model = Mllama(config)
    model.set_dtype(mx.bfloat16)
    nn.quantize(
        model,
        32,
        4,
        class_predicate=lambda path, module: (
            path.startswith("language_model.") and hasattr(module, "to_quantized")
        ),
    )
    assert planned == {n: (tuple(a.shape), a.dtype) for n, a in tree_flatten(model.parameters())}
    assert sum(step.nbytes for step in steps) == sum(
        a.nbytes for _, a in tree_flatten(model.parameters())
    )
