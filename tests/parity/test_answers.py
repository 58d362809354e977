"""The whole model against transformers: what it sees, what it reads, what it says.

Each case compares the projected vision output with its padding tiles, the logits of every row of
the prefill (so the rows before the image too) and 64 greedy tokens. The greedy tokens are exact, as
no case comes near a tie (`margin`), and they are what catches a mask or a cache lost in decoding.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from parity.checkpoints import (
    GEOMETRIES,
    TOKEN_ID,
    Geometry,
    Layout,
    Llama3Scaling,
    cast,
    relayout,
    respell,
    shard,
    write_checkpoint,
)
from parity.oracle import Oracle, Part, picture, picture_of
from parity.ours import Ours, check_equal

from llavacot_mlx.assistant import Assistant
from llavacot_mlx.model.kernels import CPU, use

TOKENS = 64
QUESTION = "How many red circles are there?"
LONG_TEXT = "What is to the left of the large blue square, and why? " * 6  # some 200 tokens

Checkpoints = Callable[[Geometry], Path]
Oracles = Callable[[Geometry], Oracle]
Ports = Callable[[Geometry], Ours]

FOUR_TILES, SCALED = GEOMETRIES["four-tiles"], GEOMETRIES["llama3-rope"]
EACH_GEOMETRY = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
ARRANGEMENTS = [
    pytest.param(geometry, *arrangement, id=f"{name}-{arrangement[0]}x{arrangement[1]}")
    for name, geometry in GEOMETRIES.items()
    for arrangement in geometry.arrangements
]


@pytest.fixture(scope="module")
def ours(checkpoint: Checkpoints) -> Ports:
    """`ours(geometry)`: our model of that checkpoint, opened once."""
    opened: dict[Geometry, Ours] = {}

    def of(geometry: Geometry) -> Ours:
        if geometry not in opened:
            opened[geometry] = Ours.open(checkpoint(geometry))
        return opened[geometry]

    return of


def check(hf: Oracle, port: Ours, parts: list[Part]) -> None:
    """Compare both sides on one user turn; the oracle's answer must be worth comparing."""
    theirs = hf.answer(parts, TOKENS)
    assert len(theirs.generated) == TOKENS
    assert len(set(theirs.generated)) >= 10, "the answer turns in a circle: change the seed"
    assert theirs.margin > 1e-5, "a near tie: change the seed"
    check_equal(port, theirs, [part for part in parts if not isinstance(part, str)])


@pytest.mark.parametrize(("geometry", "rows", "columns"), ARRANGEMENTS)
def test_one_picture_in_every_arrangement(
    geometry: Geometry, rows: int, columns: int, oracle: Oracles, ours: Ports
) -> None:
    """Every number of tiles in every arrangement, for every geometry."""
    image = picture_of(geometry, rows, columns)
    cut = ours(geometry).image_processor(image)
    assert (cut.rows, cut.columns) == (rows, columns)
    check(oracle(geometry), ours(geometry), [image, QUESTION])


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (517, 3), (29, 27), (333, 211)])
def test_odd_picture_sizes(size: tuple[int, int], oracle: Oracles, ours: Ports) -> None:
    """A pixel, a thread, a tile and a bit, a photograph."""
    check(oracle(SCALED), ours(SCALED), [picture(*size, seed=1), QUESTION])


@EACH_GEOMETRY
def test_no_picture(geometry: Geometry, oracle: Oracles, ours: Ports) -> None:
    """Without a picture the cross-attention layers are skipped, their MLPs too."""
    check(oracle(geometry), ours(geometry), [QUESTION])


def turns_with_several_pictures(geometry: Geometry) -> dict[str, list[Part]]:
    """User turns with pictures of different numbers of tiles in different places."""
    small, wide, tall, full = (
        picture_of(geometry, *arrangement) for arrangement in ((1, 1), (1, 2), (3, 1), (2, 2))
    )
    return {
        "adjacent": [small, wide, QUESTION],
        "adjacent, larger first": [full, small, QUESTION],
        "separated": [small, "The first.", wide, QUESTION],
        "separated, same tiles": [wide, "The first.", picture_of(geometry, 1, 2, 1), QUESTION],
        "two, text, one": [small, tall, "These are two.", wide, QUESTION],
        "one, text, two": [full, "This is one.", small, tall, QUESTION],
        "three": [wide, small, full, QUESTION],
        "after the question": [QUESTION, small, wide],
        "all apart": [QUESTION, wide, "The first.", small, "The second.", tall, "The third."],
    }


@pytest.mark.parametrize("turn", turns_with_several_pictures(FOUR_TILES))
@pytest.mark.parametrize("geometry", [FOUR_TILES, SCALED], ids=["four-tiles", "llama3-rope"])
def test_several_pictures(geometry: Geometry, turn: str, oracle: Oracles, ours: Ports) -> None:
    """Each picture is open from its place to the next; those that touch are open together."""
    check(oracle(geometry), ours(geometry), turns_with_several_pictures(geometry)[turn])


@pytest.mark.parametrize("arrangement", [(1, 1), (1, 2), (3, 1), (2, 2)])
def test_rows_before_the_picture(
    arrangement: tuple[int, int], oracle: Oracles, ours: Ports
) -> None:
    """They attend to all tiles, the absent ones included, and lose their MLP's output.

    So it is in transformers, and the weights were trained with it. Here some 200 rows come before
    the picture and take the greater part of the comparison.
    """
    parts = [LONG_TEXT, picture_of(SCALED, *arrangement), QUESTION]
    check(oracle(SCALED), ours(SCALED), parts)


@pytest.mark.parametrize("arrangement", [(1, 1), (1, 2)])
def test_small_pictures_keep_their_mask_while_decoding(
    arrangement: tuple[int, int], oracle: Oracles, ours: Ports
) -> None:
    """A picture of one or two tiles of four: new tokens must not see the absent tiles.

    mlx-vlm drops the cross-attention mask after the first token, so there such pictures agree with
    transformers for one to three tokens. The same mistake, made here on transformers, shows.
    """
    hf, image = oracle(FOUR_TILES), picture_of(FOUR_TILES, *arrangement)
    theirs = hf.answer([image, QUESTION], TOKENS)
    assert without_mask_while_decoding(hf, [image, QUESTION]) != theirs.generated
    check(hf, ours(FOUR_TILES), [image, QUESTION])


def without_mask_while_decoding(hf: Oracle, parts: list[Part]) -> list[int]:
    """Greedy tokens of transformers when every new token sees all tiles."""
    inputs = hf.inputs(hf.prompt(parts), [part for part in parts if not isinstance(part, str)])
    with torch.inference_mode():
        step = hf.model(**inputs, use_cache=True)
        ids = [step.logits[0, -1].argmax().item()]
        while len(ids) < TOKENS:
            step = hf.model(
                input_ids=torch.tensor([ids[-1:]]), past_key_values=step.past_key_values
            )
            ids.append(step.logits[0, -1].argmax().item())
    return ids


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_a_prompt_read_in_passes(rows: int, oracle: Oracles, ours: Ports) -> None:
    """A long prompt takes several forward passes; which rows they hold must not matter."""
    in_passes = replace(ours(SCALED), tokens_per_pass=rows)
    turns = turns_with_several_pictures(SCALED)
    check(oracle(SCALED), in_passes, [LONG_TEXT, *turns["two, text, one"]])
    check(oracle(SCALED), in_passes, turns["adjacent"])
    check(oracle(SCALED), in_passes, [LONG_TEXT])


def test_attention_in_blocks(oracle: Oracles, ours: Ports) -> None:
    """On the CPU queries are taken in blocks, so that a large picture's scores fit in memory."""
    turns = turns_with_several_pictures(FOUR_TILES)
    with use(replace(CPU, attention_scores_bytes=4 * 3 * 100 * 5)):  # blocks of about 5 queries
        for parts in (turns["three"], turns["all apart"], [LONG_TEXT]):
            check(oracle(FOUR_TILES), ours(FOUR_TILES), parts)


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("old", [False, True], ids=["new spelling", "old spelling"])
@pytest.mark.parametrize("layout", ["hub", "nested", "mlx"])
def test_every_way_of_writing_a_folder(
    layout: Layout,
    old: bool,
    sharded: bool,
    checkpoint: Checkpoints,
    oracle: Oracles,
    tmp_path: Path,
) -> None:
    """Names of three layouts, config.json in two spellings, one file or shards: one model."""
    folder = relayout(checkpoint(SCALED), tmp_path / "layout", layout)
    if old:
        folder = respell(folder, tmp_path / "spelling")
    if sharded:
        folder = shard(folder, tmp_path / "shards")
    check(oracle(SCALED), Ours.open(folder), [picture_of(SCALED, 1, 2), QUESTION])


def test_the_old_spelling_without_scaling(
    checkpoint: Checkpoints, oracle: Oracles, tmp_path: Path
) -> None:
    """`rope_scaling: null` beside `rope_theta`."""
    port = Ours.open(respell(checkpoint(FOUR_TILES), tmp_path / "old"))
    check(oracle(FOUR_TILES), port, [picture_of(FOUR_TILES, 1, 2), QUESTION])


def test_patches_as_wide_as_there_are_channels(tmp_path: Path) -> None:
    """Patches of three pixels: the convolution's shape does not tell its layout, its name does."""
    geometry = Geometry(seed=4, tile=12, patch=3)
    source = write_checkpoint(tmp_path / "hf", geometry)
    hf = Oracle.open(source)
    for layout in ("hub", "nested", "mlx"):
        port = Ours.open(relayout(source, tmp_path / layout, layout))
        check(hf, port, [picture_of(geometry, 2, 1), QUESTION])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_16_bits_read_as_float32(
    dtype: torch.dtype, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    """They are upcast before anything is computed, as transformers does."""
    folder = cast(checkpoint(SCALED), tmp_path / "cast", dtype)
    check(Oracle.open(folder), Ours.open(folder), [picture_of(SCALED, 1, 2), QUESTION])


def some_geometry(seed: int) -> Geometry:
    """A random Mllama, all its sizes drawn."""
    values = np.random.default_rng(seed)

    def one_of(*choices: int | float) -> int:
        return choices[values.integers(len(choices))]

    layers, vision_layers = one_of(3, 5, 7), one_of(2, 3, 4)
    kv_heads, group, head = one_of(1, 2, 3), one_of(1, 2, 3), one_of(6, 10, 14)
    vision_heads = one_of(1, 2, 3, 5)
    patch = one_of(4, 7, 10)
    chosen = values.permutation(layers)[: one_of(1, 2, 3)]
    return Geometry(
        seed=seed,
        tile=patch * one_of(2, 3, 4),
        patch=patch,
        max_tiles=one_of(1, 2, 3, 4, 5),
        vision_width=vision_heads * one_of(6, 9),
        vision_heads=vision_heads,
        vision_layers=vision_layers,
        global_layers=one_of(1, 2, 3),
        vision_mlp=one_of(17, 50),
        vision_eps=one_of(1e-6, 1e-5, 1e-2),
        intermediate_layers=tuple(
            int(n) for n in values.permutation(vision_layers)[: one_of(1, 2, 3)]
        ),
        width=kv_heads * group * head,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        layers=layers,
        cross_layers=tuple(int(n) for n in sorted(chosen)),
        mlp=one_of(64, 75),
        rms_eps=one_of(1e-6, 1e-5, 1e-2),
        rope_theta=one_of(100.0, 10_000.0),
        rope_scaling=Llama3Scaling(factor=one_of(4.0, 32.0), original_max_position_embeddings=32)
        if one_of(0, 1)
        else None,
    )


@pytest.mark.parametrize("seed", range(12))
def test_random_geometries(seed: int, tmp_path: Path) -> None:
    """Sizes nobody chose, with a picture and without: vision, every row, every token."""
    geometry = some_geometry(seed)
    folder = write_checkpoint(tmp_path, geometry)
    hf, port = Oracle.open(folder), Ours.open(folder)
    arrangement = geometry.arrangements[seed % len(geometry.arrangements)]
    image = picture_of(geometry, *arrangement)
    for parts in ([image, QUESTION], [QUESTION], [LONG_TEXT, image, QUESTION]):
        theirs = hf.answer(parts, TOKENS)
        assert theirs.margin > 1e-6, "a near tie: change the seed"
        check_equal(port, theirs, [part for part in parts if not isinstance(part, str)])


def test_the_assistant_says_the_same_and_stops_at_the_same_token(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    """From a picture and a question to token ids through the public API, stop tokens in force.

    The head's row of `<|eot_id|>` is that of a token said early, a little stronger, so that it is
    the next token in its place.
    """
    folder = checkpoint(FOUR_TILES)
    hf = Oracle.open(folder)
    image = picture_of(FOUR_TILES, 1, 2)
    said = hf.answer([image, QUESTION], TOKENS).generated
    last = next(n for n in range(5, TOKENS) if said[n] not in said[:n])
    with torch.no_grad():
        head = hf.model.lm_head.weight
        head[TOKEN_ID["<|eot_id|>"]] = 1.01 * head[said[last]]
    ending = tmp_path / "ending"
    hf.model.generation_config.eos_token_id = [TOKEN_ID["<|eot_id|>"], TOKEN_ID["<|eom_id|>"]]
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        ending.mkdir(exist_ok=True)
        (ending / name).write_bytes((folder / name).read_bytes())
    hf.model.save_pretrained(ending)
    theirs = hf.answer([image, QUESTION], TOKENS)
    assert theirs.generated == [*said[:last], TOKEN_ID["<|eot_id|>"]]
    trace = Assistant.load(ending, dtype="float32").ask(image, QUESTION, max_tokens=TOKENS)
    assert list(trace.prompt_token_ids) == theirs.token_ids
    assert list(trace.token_ids) == theirs.generated
