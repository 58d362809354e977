"""Adapters shared with PEFT, and models exported to transformers: the same logits on either side.

The adapters change all kinds of linear layers, the output head and vision layers with a bias too.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from parity.checkpoints import Geometry
from parity.oracle import Answer, Oracle, difference, picture_of
from parity.ours import TOLERANCE, Ours
from peft import LoraConfig, PeftModel, get_peft_model
from random_adapter import KEYS, write_adapter

from llavacot_mlx.checkpoint.adapter_config import CONFIG_NAME, AdapterConfig, Base
from llavacot_mlx.checkpoint.adapters import load_adapter, read_adapter
from llavacot_mlx.checkpoint.weights import load_model
from llavacot_mlx.convert.convert import convert
from llavacot_mlx.convert.export import export
from llavacot_mlx.convert.output_folder import OutputFolder
from llavacot_mlx.convert.peft import read_peft, write_peft
from llavacot_mlx.model.config import Quantization
from llavacot_mlx.prompt.image_processor import ImageProcessor

# Widths that a quantization's groups divide.
GEOMETRY = Geometry(seed=2, width=64, heads=4, kv_heads=2, mlp=128)
PARTS = [picture_of(GEOMETRY, 1, 2), "How many red circles are there?"]
PICTURES = PARTS[:1]
# The keys of the random adapter as PEFT's users say them.
MODULES = (
    r".*\.(self_attn\.q_proj|cross_attn\.v_proj|mlp\.down_proj|multi_modal_projector"
    r"|transformer\.layers\.0\.mlp\.fc1)|lm_head"
)
EACH_KIND = pytest.mark.parametrize("kind", ["lora", "dora"])


@pytest.fixture
def hf(checkpoint: Callable[[Geometry], Path]) -> Path:
    return checkpoint(GEOMETRY)


@pytest.fixture
def plain(oracle: Callable[[Geometry], Oracle]) -> Answer:
    """What transformers says without an adapter."""
    return oracle(GEOMETRY).answer(PARTS)


def target(folder: Path, marker: str = "config.json") -> OutputFolder:
    return OutputFolder(folder, "--hf-path", force=False, marker=marker)


def ours_with(base: Path, adapter: Path, token_ids: list[int]) -> np.ndarray:
    """The logits of every row of the prompt, by our model in `base` with an adapter on it."""
    model = load_model(base, "float32")
    load_adapter(model, adapter, base)
    image_processor = ImageProcessor.load(base, model.config.vision)
    return Ours(model, image_processor).complete(token_ids, PICTURES)[0]


def theirs_with(hf: Path, adapter: Path) -> np.ndarray:
    """The same by transformers, with an adapter that PEFT loads."""
    opened = Oracle.open(hf)
    return _logits(opened, PeftModel.from_pretrained(opened.model, adapter).eval())


def _logits(opened: Oracle, model: Any) -> np.ndarray:
    inputs = opened.inputs(opened.prompt(PARTS), PICTURES)
    with torch.inference_mode():
        return model(**inputs).logits[0].numpy()


@EACH_KIND
def test_peft_reads_what_we_write(kind: str, hf: Path, plain: Answer, tmp_path: Path) -> None:
    """An adapter trained on the MLX folder, on the checkpoint that the folder was made from."""
    convert(hf, tmp_path / "mlx")
    adapter = write_adapter(tmp_path / "adapter", tmp_path / "mlx", kind)
    write_peft(adapter, target(tmp_path / "peft", CONFIG_NAME))
    ours = ours_with(tmp_path / "mlx", adapter, plain.token_ids)
    assert difference(ours, plain.logits) > 0.01
    assert difference(theirs_with(hf, tmp_path / "peft"), ours) <= TOLERANCE


@EACH_KIND
def test_there_and_back_it_is_the_same_adapter(kind: str, hf: Path, tmp_path: Path) -> None:
    """Through our writer and through PEFT's own, tensor by tensor, scale and rank and all."""
    adapter = write_adapter(tmp_path / "adapter", hf, kind, "owner/base")
    write_peft(adapter, target(tmp_path / "peft", CONFIG_NAME))
    model = PeftModel.from_pretrained(Oracle.open(hf).model, tmp_path / "peft")
    model.save_pretrained(tmp_path / "theirs")
    before = read_adapter(adapter)
    for name in ("peft", "theirs"):
        back = tmp_path / f"{name}-back"
        read_peft(tmp_path / name, target(back, CONFIG_NAME), "owner/base", hf)
        after = read_adapter(back)
        assert after.config.lora is not None
        assert before.config.lora is not None
        keys = tuple(sorted(key.split("layers.0.")[-1] for key in KEYS))
        assert after.config == replace(before.config, lora=replace(before.config.lora, keys=keys))
        assert after.tensors.keys() == before.tensors.keys()
        for tensor, array in after.tensors.items():
            assert mx.array_equal(array, before.tensors[tensor]), tensor


@dataclass(frozen=True)
class Made:
    """An adapter of PEFT's own making, and what its model says."""

    folder: Path
    logits: np.ndarray


def made_by_peft(hf: Path, folder: Path, **settings: Any) -> Made:
    """Random weights throughout, also where PEFT begins with zeros."""
    opened = Oracle.open(hf)
    torch.manual_seed(5)
    model = get_peft_model(opened.model, LoraConfig(target_modules=MODULES, **settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.normal_(0, 0.2)
            elif "magnitude" in name:
                parameter.mul_(torch.rand(parameter.shape) + 0.5)
    model.save_pretrained(folder)
    return Made(folder, _logits(opened, model))


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 6},
        {"r": 4, "lora_alpha": 6, "use_dora": True},
        {"r": 4, "lora_alpha": 6, "use_rslora": True},
        {
            "r": 4,
            "lora_alpha": 6,
            "rank_pattern": {"self_attn.q_proj": 7, r"layers\.\d+\.mlp\.down_proj": 2},
            "alpha_pattern": {"lm_head": 1, "v_proj": 12},
        },
    ],
    ids=["lora", "dora", "rslora", "patterns"],
)
def test_we_read_what_peft_writes(
    settings: dict[str, Any], hf: Path, plain: Answer, tmp_path: Path
) -> None:
    made = made_by_peft(hf, tmp_path / "peft", **settings)
    read_peft(made.folder, target(tmp_path / "ours", CONFIG_NAME), "owner/base", hf)
    assert difference(made.logits, plain.logits) > 0.01
    assert difference(ours_with(hf, tmp_path / "ours", plain.token_ids), made.logits) <= TOLERANCE
    assert AdapterConfig.read(tmp_path / "ours").base == Base.of("owner/base", hf)


@pytest.mark.parametrize("bits", [None, 4])
@EACH_KIND
def test_transformers_reads_an_export_with_the_adapter_in_it(
    kind: str, bits: int | None, hf: Path, plain: Answer, tmp_path: Path
) -> None:
    """Of a quantized base too, whose weights are then what MLX dequantizes."""
    quantization = None if bits is None else Quantization(32, bits)
    convert(hf, tmp_path / "mlx", quantization=quantization)
    adapter = write_adapter(tmp_path / "adapter", tmp_path / "mlx", kind)
    export(tmp_path / "mlx", target(tmp_path / "out"), adapter=adapter)
    theirs = Oracle.open(tmp_path / "out").answer(PARTS)
    ours = ours_with(tmp_path / "mlx", adapter, plain.token_ids)
    assert difference(ours, theirs.logits) <= TOLERANCE
    assert difference(ours, plain.logits) > 0.01


def test_transformers_reads_an_export_as_the_checkpoint_it_came_from(
    hf: Path, plain: Answer, tmp_path: Path
) -> None:
    convert(hf, tmp_path / "mlx")
    export(tmp_path / "mlx", target(tmp_path / "out"))
    opened = Oracle.open(tmp_path / "out")
    assert np.array_equal(opened.answer(PARTS).logits, plain.logits)
    original = Oracle.open(hf).model
    for mine, theirs in (
        (opened.model.config.text_config, original.config.text_config),
        (opened.model.config.vision_config, original.config.vision_config),
    ):
        known = theirs.to_dict()
        assert {key: mine.to_dict().get(key) for key in known} == known


def test_transformers_reads_an_export_of_mlx_vlms_folder(
    checkpoint: Callable[[Geometry], Path], tmp_path: Path
) -> None:
    """Quantized by its own converter, with what its config.json adds."""
    from mlx_vlm.convert import convert as their_convert
    from parity.checkpoints import respell

    old = respell(checkpoint(GEOMETRY), tmp_path / "old")
    their_convert(str(old), str(tmp_path / "mlx"), quantize=True, q_group_size=32, q_bits=4)
    export(tmp_path / "mlx", target(tmp_path / "out"))
    theirs = Oracle.open(tmp_path / "out").answer(PARTS)
    ours = Ours.open(tmp_path / "mlx").complete(theirs.token_ids, PICTURES)[0]
    assert difference(ours, theirs.logits) <= TOLERANCE
