"""Loss and gradients of training are PyTorch's: transformers with peft, in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from parity.checkpoints import GEOMETRIES, Geometry
from parity.oracle import Oracle, difference, picture_of
from parity.ours import TOLERANCE, Ours
from peft import LoraConfig, get_peft_model
from PIL import Image

from llavacot_mlx.checkpoint.adapter_config import FineTuneType
from llavacot_mlx.model.lora import LoRALinear
from llavacot_mlx.train.lora_setup import apply_lora
from llavacot_mlx.train.loss.feature_cache import compute_features
from llavacot_mlx.train.loss.loss_and_grad import loss_and_gradients
from llavacot_mlx.train.loss.step_inputs import Inputs
from llavacot_mlx.train.settings import LoRASettings, TrainSettings

GEOMETRY = GEOMETRIES["llama3-rope"]
RANK, SCALE = 4, 3.0
TEXT_LINEARS = r".*language_model\.layers\.\d+\..*(q|k|v|o|gate|up|down)_proj"
VISION_LINEARS = r".*vision_model\..*(q_proj|k_proj|v_proj|o_proj|fc1|fc2)|.*multi_modal_projector"


@dataclass(frozen=True)
class Row:
    """A conversation: what is asked, what is learned, and how its picture is cut."""

    question: str
    answer: str
    arrangement: tuple[int, int] | None = None

    @property
    def picture(self) -> Image.Image | None:
        return None if self.arrangement is None else picture_of(GEOMETRY, *self.arrangement)


ROWS = [
    Row("What is to the left of<|image|>the square?", "the user and the assistant", (2, 2)),
    Row("<|image|>How many circles?", "one\n\n the large blue square", (1, 1)),
    Row("Is there a red circle?", "the answer is in the picture."),
    Row("two\n\n<|image|>", "three", (1, 2)),
    Row("left", "one two three " * 12),
    Row("<|image|>right?", "<SUMMARY> four five " * 9, (3, 1)),
]
BATCHES = {
    "one row": ROWS[:1],
    "one row, one tile": ROWS[1:2],
    "two rows": ROWS[:2],
    "five rows": ROWS[1:],
    "no picture": [ROWS[2], ROWS[4]],
}


@dataclass(frozen=True)
class Encoded:
    """Rows as both sides read them."""

    rows: list[Row]
    ids: list[list[int]]
    first: list[int]  # of the tokens that are learned

    @classmethod
    def of(cls, rows: list[Row], oracle: Oracle) -> Encoded:
        def tokens(text: str) -> list[int]:
            return oracle.processor.tokenizer.encode(text, add_special_tokens=False)

        questions = [tokens(f"<|begin_of_text|>{row.question}<|eot_id|>") for row in rows]
        answers = [tokens(f"{row.answer}<|eot_id|>") for row in rows]
        ids = [question + answer for question, answer in zip(questions, answers, strict=True)]
        return cls(rows, ids, [len(question) for question in questions])

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids and token_kinds, (rows, tokens), longer than the longest row."""
        shape = (len(self.ids), max(map(len, self.ids)) + 5)
        ids, token_kinds = np.zeros(shape, np.int32), np.zeros(shape, np.uint8)
        for row, (its, first) in enumerate(zip(self.ids, self.first, strict=True)):
            ids[row, : len(its)] = its
            token_kinds[row, first : len(its)] = 1 + np.arange(len(its) - first) % 5
        return ids, token_kinds

    def inputs(self, ours: Ours, train_vision: bool) -> Inputs:
        pictures = []
        for row in self.rows:
            tiles = None if row.picture is None else ours.image_processor(row.picture)
            known = train_vision or tiles is None
            pictures.append(tiles if known else compute_features(ours.model, tiles))
        return Inputs.of(*self.padded(), pictures, ours.model.config)

    def loss(self, oracle: Oracle, model: torch.nn.Module) -> torch.Tensor:
        """The mean over learned tokens: rows with pictures in one batch, any others in another.

        That is how transformers computes a row without a picture as it would alone.
        """
        with_picture = [row.picture is not None for row in self.rows]
        total, learned = torch.zeros(()), 0
        for kind in (True, False):
            chosen = [i for i, this in enumerate(with_picture) if this == kind]
            if not chosen:
                continue
            texts = [oracle.processor.tokenizer.decode(self.ids[i]) for i in chosen]
            pictures = [[self.rows[i].picture] for i in chosen] if kind else None
            inputs = oracle.processor(
                text=texts,
                images=pictures,
                add_special_tokens=False,
                padding=True,
                padding_side="right",
                return_tensors="pt",
            )
            logits = model(**inputs).logits
            for row, i in enumerate(chosen):
                ids, first = self.ids[i], self.first[i]
                assert inputs["input_ids"][row, : len(ids)].tolist() == ids
                total = total + torch.nn.functional.cross_entropy(
                    logits[row, first - 1 : len(ids) - 1],
                    torch.tensor(ids[first:]),
                    reduction="sum",
                )
                learned += len(ids) - first
        return total / learned


def theirs(name: str) -> str:
    """transformers' name of a module or weight of ours."""
    for old, new in (
        ("language_model.lm_head", "lm_head"),
        ("language_model.model", "model.language_model"),
        ("vision_tower", "model.vision_model"),
        ("multi_modal_projector", "model.multi_modal_projector"),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise AssertionError(name)


@pytest.fixture
def sides(
    checkpoint: Callable[[Geometry], Path],
) -> tuple[Ours, Oracle]:
    """Both opened anew: a test changes them."""
    folder = checkpoint(GEOMETRY)
    return Ours.open(folder), Oracle.open(folder)


def low_rank_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapted layers by path, their changes made such that every matrix has a gradient."""
    layers = {path: m for path, m in model.named_modules() if isinstance(m, LoRALinear)}
    for path, key in zip(layers, mx.random.split(mx.random.key(7), len(layers)), strict=True):
        layers[path].lora_b = 0.05 * mx.random.normal(layers[path].lora_b.shape, key=key)
        if "m" in layers[path]:
            layers[path].m = layers[path].m * mx.random.uniform(0.8, 1.2, layers[path].m.shape)
    return layers


def check_low_rank(
    sides: tuple[Ours, Oracle], kind: str, rows: list[Row], train_vision: bool = False
) -> None:
    """Every gradient of every adapted layer, and the loss."""
    ours, oracle = sides
    apply_lora(
        ours.model,
        TrainSettings(
            fine_tune_type=FineTuneType(kind),
            lora_parameters=LoRASettings(rank=RANK, scale=SCALE),
            train_vision=train_vision,
        ),
    )
    layers = low_rank_layers(ours.model)
    encoded = Encoded.of(rows, oracle)
    sums, gradients = loss_and_gradients(ours.model, encoded.inputs(ours, train_vision))
    flat = dict(tree_flatten(gradients))

    config = LoraConfig(
        r=RANK,
        lora_alpha=SCALE * RANK,
        use_dora=kind == "dora",
        target_modules=TEXT_LINEARS + (f"|{VISION_LINEARS}" if train_vision else ""),
    )
    model = get_peft_model(oracle.model, config).eval()
    parameters = dict(model.named_parameters())
    parts = {"lora_a": "lora_A.default.weight", "lora_b": "lora_B.default.weight"}
    if kind == "dora":
        parts["m"] = "lora_magnitude_vector.default.weight"
    names = {
        f"{path}.{part}": f"base_model.model.{theirs(path)}.{their_part}"
        for path in layers
        for part, their_part in parts.items()
    }
    assert set(flat) == set(names)
    assert set(names.values()) == {n for n, p in parameters.items() if p.requires_grad}
    weights = dict(tree_flatten(ours.model.parameters()))
    with torch.no_grad():
        for name, their_name in names.items():
            parameters[their_name].copy_(torch.tensor(np.array(weights[name]).T))
    loss = encoded.loss(oracle, model)
    loss.backward()

    learned = sums.tokens.item()
    assert sums.loss.item() / learned == pytest.approx(loss.item(), rel=TOLERANCE)
    seen = any(row.picture is not None for row in rows)
    for name, their_name in names.items():
        gradient = parameters[their_name].grad
        mine = np.array(flat[name]).T / learned
        if gradient is None or (not seen and "cross_attn" in name):
            assert not mine.any(), name
        else:
            assert gradient.any(), name
            assert difference(mine, gradient.numpy()) <= TOLERANCE, name


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES.keys())
def test_lora(sides: tuple[Ours, Oracle], rows: list[Row]) -> None:
    check_low_rank(sides, "lora", rows)


def test_dora(sides: tuple[Ours, Oracle]) -> None:
    check_low_rank(sides, "dora", BATCHES["five rows"])


def test_lora_of_the_vision_tower_too(sides: tuple[Ours, Oracle]) -> None:
    check_low_rank(sides, "lora", BATCHES["two rows"], train_vision=True)


def test_full(sides: tuple[Ours, Oracle]) -> None:
    """Every weight of the language model: embedding, norms, gates and output head as well."""
    ours, oracle = sides
    apply_lora(ours.model, TrainSettings(fine_tune_type=FineTuneType.FULL))
    encoded = Encoded.of(BATCHES["five rows"], oracle)
    sums, gradients = loss_and_gradients(ours.model, encoded.inputs(ours, train_vision=False))
    loss = encoded.loss(oracle, oracle.model)
    loss.backward()
    parameters = dict(oracle.model.named_parameters())
    learned = sums.tokens.item()
    assert sums.loss.item() / learned == pytest.approx(loss.item(), rel=TOLERANCE)
    flat = dict(tree_flatten(gradients))
    assert {theirs(name) for name in flat} == {
        name for name in parameters if "vision" not in name and "projector" not in name
    }
    for name, mine in flat.items():
        gradient = parameters[theirs(name)].grad
        assert gradient is not None, name
        assert difference(np.array(mine) / learned, gradient.numpy()) <= TOLERANCE, name
