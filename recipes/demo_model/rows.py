"""Makes training rows: token ids, the tokens with a loss, and the contents of the cells.

The step's number determines everything, so a resumed run sees the rows of an uninterrupted one.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from tiles import Fitted, fit
from tokenizer import BOS, EOT, HEADER, HEADER_END, IMAGE
from tokenizers import Tokenizer

from llavacot_mlx.demo.questions import LETTERS
from llavacot_mlx.demo.scenes import HORIZONTAL, VERTICAL
from llavacot_mlx.demo.world import (
    COLOURS,
    KINDS,
    SIZES,
    TRAIN,
    JudgeQuestion,
    Question,
    Scene,
    draw,
    judge_question,
    questions,
    scene,
    slips,
)
from llavacot_mlx.prompt.stages import Stage

BATCHES_A_CHUNK = 8  # a chunk's scenes are sorted by length before they are cut into batches
LENGTH_STEP = 32  # rows are padded to a multiple of this: few lengths to compile for
IGNORE = -100
PLACES = tuple(f"{row} {column}" for row in VERTICAL[3] for column in HORIZONTAL[3])
# What the auxiliary head says of each patch, with the number of classes.
CELL_HEADS = {
    "kind": 1 + len(KINDS),  # 0: nothing in this cell
    "colour": 1 + len(COLOURS),
    "size": 1 + len(SIZES),
    "place": len(PLACES),  # the patch's own cell
    "next": len(PLACES) + 1,  # the next cell with a shape in reading order, or the end
    "count": 7,  # shapes in the picture, asked of the class tokens alone
}
PATCH_HEADS = ("kind", "colour", "size", "place", "next")  # the others ask the class tokens alone
# Classes of tokens whose loss is logged separately.
TOKEN_CLASSES = (
    "unlearned",
    "frame",  # tags and ends
    "summary",
    "place",
    "size",
    "colour",
    "kind",
    "total",
    "caption",  # its other tokens
    "reasoning",
    "conclusion",
    "judge",
)
JUDGE_WEIGHT = 10.0  # a judge row has one token that counts, another row about a hundred
MISTAKEN = 0.5  # rows with many mistakes, for each judge row
MISTAKEN_WORDS = 0.15  # fraction of the meaningful words that are replaced in them
TURN = f"{HEADER}{{role}}{HEADER_END}\n\n{{content}}{EOT}"
ANSWERING = f"{HEADER}assistant{HEADER_END}\n\n"


@dataclass(frozen=True)
class Row:
    """One conversation. `classes` gives the class of each token, which decides its loss.

    `true` is what the auxiliary head should say at each token of a text with planted mistakes:
    0 at a wrong word, 1 at the others, IGNORE where it has no target.
    """

    token_ids: list[int]
    classes: list[int]
    true: list[int]


@dataclass(frozen=True)
class Batch:
    """Pictures and their rows; every picture has the same number of consecutive rows."""

    tiles: np.ndarray  # (pictures, tiles, 3, 64, 64) uint8
    ratio_ids: np.ndarray  # (pictures,)
    tile_mask: np.ndarray  # (pictures, tiles)
    cells: dict[str, np.ndarray]  # by head: (pictures, tiles * tokens), IGNORE where not asked
    token_ids: np.ndarray  # (rows, length); empty where only pictures were wanted
    classes: np.ndarray  # (rows, length)
    true: np.ndarray  # (rows, length)


def prompt(question: str) -> str:
    """The conversation up to where the assistant begins."""
    return BOS + TURN.format(role="user", content=IMAGE + question) + ANSWERING


def judge_prompt(asked: JudgeQuestion) -> str:
    """The conversation up to the judge's yes or no."""
    judged = prompt(asked.question.text) + asked.partial + EOT
    return judged + TURN.format(role="user", content=asked.text) + ANSWERING


def answer_row(tokenizer: Tokenizer, question: Question) -> Row:
    """The question and its reference answer; the whole answer has a loss."""
    start = len(prompt(question.text))
    text = prompt(question.text) + question.reply() + EOT
    encoded = tokenizer.encode(text, add_special_tokens=False)
    spans = [
        (start + inside.start(1), start + inside.end(1), stage)
        for stage in Stage
        if (inside := re.search(f"{stage.opening}(.*){stage.closing}", question.reply(), re.S))
    ]
    classes = []
    for begin, end in encoded.offsets:
        stage = next((stage for low, high, stage in spans if low <= begin and end <= high), None)
        learned = begin >= start
        word = text[begin:end].strip()
        classes.append(TOKEN_CLASSES.index(_class_of(stage, word) if learned else "unlearned"))
    return Row(encoded.ids, classes, [IGNORE] * len(classes))


def judge_row(tokenizer: Tokenizer, asked: JudgeQuestion) -> Row:
    """A judge's question; only the yes or no and the end of the turn have a loss."""
    text = judge_prompt(asked)
    before = tokenizer.encode(text, add_special_tokens=False)
    after = tokenizer.encode(asked.answer + EOT, add_special_tokens=False).ids
    assert len(after) == 2, "yes and no are one token each"
    start = len(prompt(asked.question.text)) + asked.partial.rindex(asked.judged)
    truth = asked.question.stage_text(asked.stage)
    wrong = _differing(asked.judged, truth)
    true = [IGNORE] * len(before.ids)
    if wrong is not None:
        places = [(start + low, start + high) for low, high in wrong]
        true = _true(before.offsets, start, start + len(asked.judged), places)
    learned = [TOKEN_CLASSES.index("judge"), TOKEN_CLASSES.index("frame")]
    return Row(before.ids + after, [0] * len(before.ids) + learned, [*true, IGNORE, IGNORE])


def mistaken_row(tokenizer: Tokenizer, question: Question, rng: random.Random) -> Row:
    """An answer with many words replaced; only the auxiliary head learns from it to find them."""
    start = len(prompt(question.text))
    letters = LETTERS[: len(question.choices)]
    reply, wrong = slips(question.reply(), MISTAKEN_WORDS, rng, letters)
    encoded = tokenizer.encode(prompt(question.text) + reply + EOT, add_special_tokens=False)
    places = [(start + low, start + high) for low, high in wrong]
    true = _true(encoded.offsets, start, start + len(reply), places)
    return Row(encoded.ids, [0] * len(true), true)


def _true(
    offsets: list[tuple[int, int]], start: int, end: int, wrong: list[tuple[int, int]]
) -> list[int]:
    """For each token, 0 if it overlaps a wrong span, and 1 otherwise, between start and end."""
    return [
        int(not any(low < stop and first < high for low, high in wrong))
        if start < stop <= end
        else IGNORE
        for first, stop in offsets
    ]


def _differing(text: str, truth: str) -> list[tuple[int, int]] | None:
    """Where the words of a text differ from the truth's; None if they do not pair up."""
    words, meant = text.split(" "), truth.split(" ")
    if len(words) > len(meant):
        return None
    places, start = [], 0
    for word, right in zip(words, meant, strict=False):
        if word.rstrip(".") != right.rstrip("."):
            places.append((start, start + len(word)))
        start += len(word) + 1
    return places if len(places) <= 3 else None  # more: an item is missing or too many


_WORDS = {
    **dict.fromkeys(("top", "middle", "bottom", "left", "center", "right"), "place"),
    **dict.fromkeys(SIZES, "size"),
    **dict.fromkeys(COLOURS, "colour"),
    **dict.fromkeys(KINDS, "kind"),
    **dict.fromkeys("123456", "total"),
}


def _class_of(stage: Stage | None, word: str) -> str:
    if stage is None:
        return "frame"
    return _WORDS.get(word, "caption") if stage is Stage.CAPTION else stage.value


def cells(world: Scene, fitted: Fitted) -> dict[str, np.ndarray]:
    """The auxiliary heads' targets at each token of each tile: (tiles * tokens,) each."""
    side = 8  # patches along a tile
    tokens = side * side + 1
    result = {name: np.full((4, tokens), IGNORE, dtype=np.int64) for name in CELL_HEADS}
    by_place = {shape.place: shape for shape in world.shapes}
    names = world.layout.places()
    following = len(PLACES)
    what: dict[str, tuple[int, int, int, int, int]] = {}
    for place in reversed(names):
        shape = by_place.get(place)
        what[place] = (
            0 if shape is None else 1 + KINDS.index(shape.kind),
            0 if shape is None else 1 + tuple(COLOURS).index(shape.colour),
            0 if shape is None else 1 + SIZES.index(shape.size),
            PLACES.index(place),
            following,
        )
        if shape is not None:
            following = PLACES.index(place)
    for tile in range(fitted.rows * fitted.columns):
        tile_row, tile_column = divmod(tile, fitted.columns)
        result["next"][tile, 0] = following  # the class token: where the list begins
        result["count"][tile, 0] = len(world.shapes)
        for patch in range(side * side):
            row, column = divmod(patch, side)
            y = (tile_row * side + row + 0.5) * 8 / fitted.height
            x = (tile_column * side + column + 0.5) * 8 / fitted.width
            if x >= 1 or y >= 1:
                continue  # the black margin
            cell = int(y * world.layout.rows) * world.layout.columns + int(x * world.layout.columns)
            for name, value in zip(PATCH_HEADS, what[names[cell]], strict=True):
                result[name][tile, patch + 1] = value
    return {name: values.reshape(-1) for name, values in result.items()}


@lru_cache(maxsize=2)
def _chunk(number: int, size: int) -> tuple[tuple[Scene, int], ...]:
    """A chunk's scenes with their seeds, those with few shapes first."""
    seeds = [TRAIN.seed(number * size + index) for index in range(size)]
    worlds = [(scene(seed), seed) for seed in seeds]
    return tuple(sorted(worlds, key=lambda pair: len(pair[0].shapes)))


def training_batch(
    tokenizer: Tokenizer, step: int, part: int, pictures: int, parts: int, rows: int, judged: float
) -> Batch:
    """One part of a step: `pictures` of the step's `parts * pictures`, each with `rows` rows.

    `judged` is the fraction of rows that are judge questions.
    """
    chunk, item = divmod(step, BATCHES_A_CHUNK)
    order = list(range(BATCHES_A_CHUNK))
    random.Random(f"chunk {chunk}").shuffle(order)
    first = (order[item] * parts + part) * pictures
    chosen = _chunk(chunk, BATCHES_A_CHUNK * parts * pictures)[first : first + pictures]
    made: list[Row] = []
    for world, seed in chosen:
        rng = random.Random(f"rows {seed}")
        asked = questions(world, rng)
        for index in range(rows):
            # The last row of a picture is the judge's, as often as it takes.
            if index == rows - 1 and rng.random() < judged * rows:
                made.append(judge_row(tokenizer, judge_question(world, asked[index], rng)))
            elif index == rows - 2 and rng.random() < MISTAKEN * judged * rows:
                made.append(mistaken_row(tokenizer, asked[index], rng))
            else:
                made.append(answer_row(tokenizer, asked[index]))
    return assemble([world for world, _ in chosen], made)


def assemble(worlds: list[Scene], rows: list[Row]) -> Batch:
    """Draws the scenes, and pads the rows on the right to one length."""
    fitted = [fit(draw(world)) for world in worlds]
    heads = [cells(world, picture) for world, picture in zip(worlds, fitted, strict=True)]
    longest = max((len(row.token_ids) for row in rows), default=0)
    length = -(-longest // LENGTH_STEP) * LENGTH_STEP
    token_ids = np.zeros((len(rows), length), dtype=np.int64)
    classes = np.zeros((len(rows), length), dtype=np.int64)
    true = np.full((len(rows), length), IGNORE, dtype=np.int64)
    for index, row in enumerate(rows):
        true[index, : len(row.true)] = row.true
        token_ids[index, : len(row.token_ids)] = row.token_ids
        classes[index, : len(row.classes)] = row.classes
    return Batch(
        tiles=np.stack([picture.tiles for picture in fitted]),
        ratio_ids=np.array([picture.ratio_id for picture in fitted]),
        tile_mask=np.stack([np.arange(4) < picture.rows * picture.columns for picture in fitted]),
        cells={name: np.stack([head[name] for head in heads]) for name in CELL_HEADS},
        token_ids=token_ids,
        classes=classes,
        true=true,
    )
