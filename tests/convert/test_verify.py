"""Verification: what is on the disk is what the source says, or it is an error that says where."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.safetensors import list_tensors
from llavacot_mlx.checkpoint.weights import source_tensors
from llavacot_mlx.convert import convert as run
from llavacot_mlx.convert.convert import convert
from llavacot_mlx.convert.plan import plan_steps
from llavacot_mlx.convert.recipes import RECIPES
from llavacot_mlx.convert.verify import _unpacked, compare_with_source
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import Quantization

FORMATS = [
    *(Quantization(group, bits) for group in (32, 128) for bits in (2, 3, 4, 5, 6, 8)),
    Quantization(32, 4, "mxfp4"),
    Quantization(32, 8, "mxfp8"),
    Quantization(16, 4, "nvfp4"),
]


def weights() -> dict[str, mx.array]:
    """Rows of many kinds, (16, 512) each."""
    mx.random.seed(4)
    normal = mx.random.normal((16, 512))
    return {
        "small": 0.02 * normal,
        "large": 300 * normal,
        "tiny": 1e-6 * normal,
        "one-sided": 1 + 0.1 * normal,
        "an outlier": mx.where(mx.arange(512) % 97 == 3, 50.0, 0.02 * normal),
        "zero": mx.zeros((16, 512)),
        "constant": mx.full((16, 512), 0.37),
        "heavy tails": normal**5,
    }


@pytest.mark.parametrize("quantization", FORMATS, ids=lambda q: f"{q.mode}-{q.bits}-{q.group_size}")
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_the_bound_holds_and_is_near(quantization: Quantization, dtype: mx.Dtype) -> None:
    """Whatever MLX packs is within the bound of its format, and the bound is within a few steps."""
    for name, array in weights().items():
        array = array.astype(dtype)
        group_size, bits, mode = quantization.group_size, quantization.bits, quantization.mode
        parts = mx.quantize(array, group_size, bits, mode)
        exact = array.astype(mx.float32)
        found, allowed = _unpacked(parts, exact, quantization)
        assert mx.all(mx.abs(found - exact) <= allowed), name
        if name == "small":
            assert mx.mean(mx.abs(found - exact)) > 0.05 * mx.mean(allowed)


def changed(name: str, change: Callable[[mx.array], mx.array]) -> Callable[[Path], None]:
    """Rewrites one tensor of a converted folder."""

    def change_it(folder: Path) -> None:
        file = str(folder / "model.safetensors")
        arrays = dict(mx.load(file))
        arrays[name] = change(arrays[name])
        mx.eval(arrays)
        mx.save_safetensors(file, arrays, metadata={"format": "mlx"})

    return change_it


HEAD, PROJECTOR = "language_model.lm_head", "multi_modal_projector.weight"
HARM = {
    "rows in another order": (changed(f"{HEAD}.weight", lambda w: w[::-1]), HEAD),
    "scales of other rows": (changed(f"{HEAD}.scales", lambda s: s[::-1]), HEAD),
    "biases of other rows": (changed(f"{HEAD}.biases", lambda b: b[::-1]), HEAD),
    "a copy in another order": (changed(PROJECTOR, lambda w: w.T), PROJECTOR),
    "a value off by a little": (changed(PROJECTOR, lambda w: w * 1.0001), PROJECTOR),
    "another shape": (changed(PROJECTOR, lambda w: w[:, :-1]), PROJECTOR),
}


@pytest.mark.parametrize("name", HARM)
def test_a_difference_is_named(name: str, quantizable: Path, tmp_path: Path) -> None:
    harm, tensor = HARM[name]
    out = tmp_path / "out"
    convert(quantizable, out, quantization=Quantization(32, 4))
    steps = plan_steps(
        load_config(quantizable), source_tensors(quantizable), None, Quantization(32, 4)
    )
    assert compare_with_source(out, steps).tensors == len(steps)
    harm(out)
    with pytest.raises(UserError, match=re.escape(tensor)):
        compare_with_source(out, steps)


def test_what_is_not_as_it_should_be_never_gets_the_name(
    quantizable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a disk that forgets: verification comes before the folder has its name."""
    write_index = run.write_index

    def forgetful(folder: Path, shards: object) -> None:
        write_index(folder, shards)  # type: ignore[arg-type]
        changed(PROJECTOR, lambda w: 0 * w)(folder)

    monkeypatch.setattr(run, "write_index", forgetful)
    with pytest.raises(UserError, match=f"{PROJECTOR} is not what the source says"):
        convert(quantizable, tmp_path / "place" / "out", verify=True)
    assert not (tmp_path / "place").exists()
    convert(quantizable, tmp_path / "place" / "out", verify=False)


def test_the_card_says_what_it_was_made_of(quantizable: Path, tmp_path: Path) -> None:
    """And keeps the licence of the source, whose own card stays beside it."""
    source = Path(shutil.copytree(quantizable, tmp_path / "my-model"))
    theirs = "---\nlicense: llama3.2\nlanguage: [en]\ntags: [x]\n---\n# Theirs\n"
    (source / "README.md").write_text(theirs, encoding="utf-8")
    out = tmp_path / "out"
    done = convert(source, out, quantization=RECIPES["mixed-4-8"], verify=True)
    text = (out / "README.md").read_text(encoding="utf-8")
    assert (out / "README.source.md").read_text(encoding="utf-8") == theirs
    head = text.split("---\n")[1]
    assert "license: llama3.2\nlanguage:\n- en\n" in head
    assert "library_name: mlx\n" in head
    assert "base_model" not in head
    assert "| source | my-model |" in text
    assert "| recipe | mixed-4-8 |" in text
    assert f"{done.weight_bytes:,} bytes" in text
    import hashlib

    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert f"| model.safetensors (SHA-256) | {digest} |" in text
    assert "| compared with the source | every name, shape and type; " in text
    assert str(tmp_path) not in text


def test_the_card_names_the_model_on_the_hub(quantizable: Path, tmp_path: Path) -> None:
    convert(quantizable, tmp_path / "out", name="owner/model")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "base_model: owner/model\n" in text
    assert "# model for MLX" in text
    assert "| compared with the source | no |" in text
    assert list_tensors(tmp_path / "out")
