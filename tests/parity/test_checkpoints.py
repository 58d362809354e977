"""The random checkpoints can tell right from wrong: what a port could lose shows in the logits.

An equality with transformers on a checkpoint whose gates are closed, or whose text never leaves a
circle of two tokens, would pass whatever the port does. All is measured on transformers.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parity.checkpoints import (
    GEOMETRIES,
    IMAGE_TOKEN_ID,
    RENAMES,
    Geometry,
    relayout,
    respell,
    shard,
    tensor_names,
    write_checkpoint,
)
from parity.oracle import Oracle, difference, picture, picture_of

QUESTION = "How many red circles are there?"
EACH_GEOMETRY = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())


@EACH_GEOMETRY
def test_the_picture_changes_the_logits(
    geometry: Geometry, oracle: Callable[[Geometry], Oracle]
) -> None:
    """Another picture of the same size moves the last row's logits by more than 1 %."""
    for rows, columns in geometry.arrangements:
        one = picture_of(geometry, rows, columns)
        other = picture(*one.size, seed=1)
        logits = [oracle(geometry).answer([p, QUESTION]).logits[-1] for p in (one, other)]
        assert difference(logits[1], logits[0]) > 0.01


@EACH_GEOMETRY
def test_no_gate_is_nearly_closed(geometry: Geometry, oracle: Callable[[Geometry], Oracle]) -> None:
    """Every gate is at least a half, and no norm or bias has its neutral value."""
    for name, value in oracle(geometry).model.named_parameters():
        if name.split(".")[-1] in {"gate", "gate_attn", "gate_ffn"} or name.endswith("_gate"):
            assert value.abs().min() >= 0.5, name
        else:
            assert value.std() > 0.02, name


@pytest.mark.parametrize("name", [n for n, g in GEOMETRIES.items() if g.rope_scaling])
def test_scaled_positions_change_the_logits(
    name: str, oracle: Callable[[Geometry], Oracle], tmp_path: Path
) -> None:
    """The same weights without RoPE scaling give other logits within one short prompt."""
    geometry = GEOMETRIES[name]
    unscaled = Oracle.open(write_checkpoint(tmp_path / "hf", replace(geometry, rope_scaling=None)))
    parts = [picture_of(geometry, 1, 1), QUESTION]
    with_scaling, without = (o.answer(parts).logits for o in (oracle(geometry), unscaled))
    assert difference(without[-1], with_scaling[-1]) > 0.01


def test_the_absent_tiles_change_the_first_rows(oracle: Callable[[Geometry], Oracle]) -> None:
    """Rows before `<|image|>` attend to all tiles, also to those that the picture does not have.

    So a port that drops the absent tiles for them too is wrong; it has to show.
    """
    geometry = GEOMETRIES["four-tiles"]
    hf = oracle(geometry)
    image = picture_of(geometry, 1, 1)
    inputs = hf.inputs(hf.prompt([image, QUESTION]), [image])
    mask = inputs["cross_attention_mask"]
    first = inputs["input_ids"][0].tolist().index(IMAGE_TOKEN_ID)
    assert not mask[0, :first].any()
    with torch.inference_mode():
        theirs = hf.model(**inputs).logits[0].numpy()
        mask[0, :first] = mask[0, first]  # as if those rows saw the real tiles alone
        real_tiles_only = hf.model(**inputs).logits[0].numpy()
    assert difference(real_tiles_only[:first], theirs[:first]) > 0.01


def test_rewritten_folders_hold_the_same_model(
    checkpoint: Callable[[Geometry], Path],
    oracle: Callable[[Geometry], Oracle],
    tmp_path: Path,
) -> None:
    """transformers reads the other spelling, the nested names and the shards as the same model."""
    geometry = GEOMETRIES["llama3-rope"]
    source = checkpoint(geometry)
    parts = [picture_of(geometry, 2, 1), QUESTION]
    expected = oracle(geometry).answer(parts).logits
    rewritten = (
        respell(source, tmp_path / "respelled"),
        relayout(source, tmp_path / "nested", "nested"),
        shard(source, tmp_path / "sharded"),
    )
    for folder in rewritten:
        assert difference(Oracle.open(folder).answer(parts).logits, expected) == 0.0
    layouts = [
        tensor_names(relayout(source, tmp_path / f"layout-{name}", name)) for name in RENAMES
    ]
    assert len({frozenset(names) for names in layouts}) == len(RENAMES)
