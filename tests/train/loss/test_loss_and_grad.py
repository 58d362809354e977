"""Training reads a row as inference does, whatever stands beside it, and at any price in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from random_model import CONFIG, IMAGE_TOKEN_ID

from llavacot_mlx.checkpoint.adapter_config import FineTuneType
from llavacot_mlx.generate.prefill import PromptImages
from llavacot_mlx.model.kernels import CPU, use
from llavacot_mlx.model.kv_budget import KVBudget
from llavacot_mlx.model.linear import plain_weight
from llavacot_mlx.model.lora import LoRALinear
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.prompt.image_processor import Tiles
from llavacot_mlx.prompt.image_spans import visible_images
from llavacot_mlx.train.data.sample import TokenKind
from llavacot_mlx.train.lora_setup import apply_lora
from llavacot_mlx.train.loss import blocked_attention as attention
from llavacot_mlx.train.loss import loss_and_grad as forward
from llavacot_mlx.train.loss.feature_cache import compute_features
from llavacot_mlx.train.loss.loss_and_grad import Gradients, loss_and_gradients, loss_sums
from llavacot_mlx.train.loss.step_inputs import Inputs
from llavacot_mlx.train.settings import LoRASettings, TrainSettings
from llavacot_mlx.usage import Usage

# Length of a row, where its image token stands, and its picture's tiles; None without a picture.
Row = tuple[int, tuple[int, int] | None]
ROWS: list[Row] = [(30, (4, 1)), (22, None), (37, (0, 2)), (18, (1, 1)), (26, (9, 2))]


def tiles(count: int, seed: int) -> Tiles:
    pixels = np.random.default_rng(seed).standard_normal((count, 8, 8, 3)).astype(np.float32)
    return Tiles(pixels, 1, count, count)


def batch(
    rows: Sequence[Row], padding: int = 3
) -> tuple[np.ndarray, np.ndarray, list[Tiles | None]]:
    """Ids, token_kinds and pictures: about half of the later tokens are learned."""
    shape = (len(rows), max(length for length, _ in rows) + padding)
    ids, token_kinds = np.zeros(shape, np.int32), np.zeros(shape, np.uint8)
    pictures: list[Tiles | None] = []
    for row, (length, picture) in enumerate(rows):
        numbers = np.random.default_rng([length, 3])
        ids[row, :length] = numbers.integers(0, 100, length)
        kinds = numbers.integers(1, 6, length) * numbers.integers(0, 2, length)
        token_kinds[row, 10:length] = kinds[10:]
        if picture is not None:
            ids[row, picture[0]] = IMAGE_TOKEN_ID
        pictures.append(None if picture is None else tiles(picture[1], length))
    return ids, token_kinds, pictures


def inputs(model: Mllama, ids: np.ndarray, token_kinds: np.ndarray, pictures: list) -> Inputs:
    features = [None if p is None else compute_features(model, p) for p in pictures]
    return Inputs.of(ids, token_kinds, features, CONFIG)


@pytest.fixture
def fresh(model: Mllama) -> Mllama:
    """A model to be changed."""
    made = Mllama(CONFIG)
    made.update(tree_map(lambda array: array, model.parameters()))
    return made


def changed(model: Mllama, kind: FineTuneType = FineTuneType.LORA, dropout: float = 0.0) -> Mllama:
    """With LoRA layers whose changes are not zero."""
    apply_lora(
        model,
        TrainSettings(
            fine_tune_type=kind, lora_parameters=LoRASettings(rank=3, scale=2.0, dropout=dropout)
        ),
    )
    for path, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            key = mx.random.key(len(path))
            layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape, key=key)
    return model


def logits_of(model: Mllama, rows: Sequence[Row], ids: np.ndarray, padding: int = 3) -> np.ndarray:
    """(rows, tokens - 1, vocabulary): what training computes where every token is learned."""
    _, _, pictures = batch(rows, padding)
    everything = inputs(model, ids, np.ones_like(ids, np.uint8), pictures)
    states = forward._hidden_states(model, everything, forward._run_layer, None)
    logits = np.array(model.logits(states)).reshape(len(rows), ids.shape[1] - 1, -1)
    # Rows with pictures come first; back in their order.
    order = sorted(range(len(rows)), key=lambda row: rows[row][1] is None)
    return logits[np.argsort(order)]


def alone(model: Mllama, row: Row) -> np.ndarray:
    """(tokens, vocabulary): the logits of inference for one row."""
    ids, _, pictures = batch([row], padding=0)
    cut = tuple(picture for picture in pictures if picture is not None)
    usage = Usage()
    images = PromptImages.encode(model, cut, usage, KVBudget(usage))
    spans = images.spans(visible_images(ids[0].tolist(), IMAGE_TOKEN_ID), 0, ids.shape[1])
    cache = model.language_model.new_cache()
    return np.array(model.logits(model.hidden(mx.array(ids), cache, spans))[0])


def by_name(gradients: Gradients) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in tree_flatten(gradients)}


def check_same(some: Gradients, others: Gradients, tolerance: float = 1e-5) -> None:
    some, others = by_name(some), by_name(others)
    assert set(some) == set(others)
    for name, gradient in some.items():
        assert np.abs(gradient - others[name]).max() <= tolerance * np.abs(gradient).max(), name


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_row_is_read_as_in_inference(model: Mllama, count: int) -> None:
    """Also a row without a picture, beside rows with one."""
    rows = ROWS[:count]
    got = logits_of(model, rows, batch(rows)[0])
    for row, logits in zip(rows, got, strict=True):
        expected = alone(model, row)
        assert np.abs(logits[: row[0] - 1] - expected[:-1]).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("place", [11, 16])
def test_a_token_changes_no_logit_before_it(model: Mllama, count: int, place: int) -> None:
    rows = ROWS[:count]
    ids = batch(rows)[0]
    before = logits_of(model, rows, ids)
    ids[:, place] = (ids[:, place] + 1) % 100
    after = logits_of(model, rows, ids)
    assert np.array_equal(before[:, :place], after[:, :place])
    assert (before[:, place] != after[:, place]).any(axis=-1).all()


def test_padding_changes_nothing(fresh: Mllama) -> None:
    """Neither its length nor what stands in it."""
    model = changed(fresh)
    ids, token_kinds, pictures = batch(ROWS, padding=0)
    expected = loss_and_gradients(model, inputs(model, ids, token_kinds, pictures))
    ids, token_kinds, pictures = batch(ROWS, padding=29)
    for row, (length, _) in enumerate(ROWS):
        ids[row, length:] = 7
    got = loss_and_gradients(model, inputs(model, ids, token_kinds, pictures))
    assert got[0].loss.item() == pytest.approx(expected[0].loss.item(), rel=1e-5)
    check_same(expected[1], got[1])


def test_a_batch_is_the_sum_of_its_rows(fresh: Mllama) -> None:
    model = changed(fresh)
    whole, gradients = loss_and_gradients(model, inputs(model, *batch(ROWS)))
    parts = [loss_and_gradients(model, inputs(model, *batch([row]))) for row in ROWS]
    total = parts[0][0]
    for part, _ in parts[1:]:
        total = total + part
    for got, expected in zip(whole.arrays, total.arrays, strict=True):
        np.testing.assert_allclose(np.array(got), np.array(expected), rtol=1e-5, atol=1e-5)
    added = tree_map(lambda *arrays: sum(arrays[1:], arrays[0]), *(part for _, part in parts))
    check_same(added, gradients)


def test_the_reports_are_of_the_learned_tokens(model: Mllama) -> None:
    """Loss, count and hits of every kind, worked out from the logits of inference."""
    got = loss_sums(model, inputs(model, *batch(ROWS)))
    loss, count, correct = np.zeros((3, len(TokenKind)))
    for row in ROWS:
        ids, token_kinds, _ = batch([row], padding=0)
        logits = alone(model, row).astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        for place in np.flatnonzero(token_kinds[0]):
            kind, token = token_kinds[0, place], ids[0, place]
            loss[kind] -= logs[place - 1, token]
            count[kind] += 1
            correct[kind] += logs[place - 1].argmax() == token
    np.testing.assert_allclose(np.array(got.loss_by_kind), loss, rtol=1e-4)
    assert np.array_equal(np.array(got.count_by_kind), count)
    assert np.array_equal(np.array(got.correct_by_kind), correct)
    assert got.loss.item() == pytest.approx(loss.sum(), rel=1e-4)
    assert got.tokens.item() == count.sum()


@pytest.mark.parametrize("kind", list(FineTuneType))
def test_checkpointing_changes_no_gradient(fresh: Mllama, kind: FineTuneType) -> None:
    """Nor does dropout then differ between the two forward passes."""
    model = changed(fresh, kind, dropout=0.2 if kind != "full" else 0.0)
    read = inputs(model, *batch(ROWS))
    kept = loss_and_gradients(model, read, checkpoint=False, key=mx.random.key(3))
    again = loss_and_gradients(model, read, checkpoint=True, key=mx.random.key(3))
    assert kept[0].loss.item() == pytest.approx(again[0].loss.item(), rel=1e-6)
    check_same(kept[1], again[1])


def test_checkpointing_of_the_vision_tower(fresh: Mllama) -> None:
    apply_lora(fresh, TrainSettings(lora_parameters=LoRASettings(rank=3), train_vision=True))
    read = Inputs.of(*batch(ROWS), CONFIG)
    kept, again = (loss_and_gradients(fresh, read, checkpoint=c)[1] for c in (False, True))
    # lora_a has no gradient while lora_b is zero.
    assert by_name(kept)["vision_tower.transformer.layers.0.mlp.fc1.lora_b"].any()
    check_same(kept, again)


def test_a_trained_tower_sees_what_a_frozen_one_does(model: Mllama) -> None:
    frozen = loss_sums(model, inputs(model, *batch(ROWS)))
    trained = loss_sums(model, Inputs.of(*batch(ROWS), CONFIG))
    assert trained.loss.item() == pytest.approx(frozen.loss.item(), rel=1e-5)


def test_dropout_follows_from_the_key(fresh: Mllama) -> None:
    model = changed(fresh, dropout=0.3)
    read = inputs(model, *batch(ROWS[:2]))

    def loss(seed: int | None) -> float:
        mx.random.uniform()  # the global state has no part in it
        key = None if seed is None else mx.random.key(seed)
        return float(loss_and_gradients(model, read, key=key)[0].loss.item())

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)
    assert loss(None) == pytest.approx(loss_sums(model, read).loss.item(), rel=1e-6) != loss(1)


@pytest.mark.parametrize("kind", [FineTuneType.LORA, FineTuneType.FULL])
def test_blocks_of_learned_tokens_are_the_whole(fresh: Mllama, kind: FineTuneType) -> None:
    model = changed(fresh, kind)
    read = inputs(model, *batch(ROWS))
    expected = loss_and_gradients(model, read)
    got = loss_and_gradients(model, read, tokens_per_block=7)
    for some, others in zip(expected[0].arrays, got[0].arrays, strict=True):
        np.testing.assert_allclose(np.array(some), np.array(others), rtol=1e-5)
    check_same(expected[1], got[1])


@pytest.mark.parametrize("size", [1, 2_000, 40_000])
@pytest.mark.parametrize("causal", [True, False])
def test_blocks_of_attention_are_the_whole(causal: bool, size: int) -> None:
    """What is attended, and its gradients, are those of MLX's own attention."""
    rows, heads, kv_heads, n, m = 2, 6, 2, 33, 33 if causal else 70
    shapes = ((rows, heads, n, 8), (rows, kv_heads, m, 8), (rows, kv_heads, m, 8))
    keys = mx.random.split(mx.random.key(0), 4)
    operands = [2 * mx.random.normal(s, key=k) for s, k in zip(shapes, keys[:3], strict=True)]
    grad = mx.random.normal(shapes[0], key=keys[3])

    def mine(*operands: mx.array) -> mx.array:
        with use(replace(CPU, training_scores_bytes=size)):
            return attention.attend(*operands, causal)

    def theirs(*operands: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(
            *operands, scale=8**-0.5, mask="causal" if causal else None
        )

    got, expected = (mx.vjp(attend, operands, [grad]) for attend in (mine, theirs))
    for some, others in zip(got[0] + got[1], expected[0] + expected[1], strict=True):
        np.testing.assert_allclose(np.array(some), np.array(others), rtol=1e-3, atol=1e-5)


def test_a_quantized_base_learns(quantizable_model: Mllama) -> None:
    """QLoRA: its gradients are those of the same weights unpacked, and the bits stay."""
    packed = quantizable_model
    nn.quantize(packed.language_model, 32, 4)
    plain = unpacked(packed)
    read = inputs(packed, *batch(ROWS))
    before = dict(tree_flatten(packed.parameters()))
    got = loss_and_gradients(changed(packed), read)
    expected = loss_and_gradients(changed(plain), read)
    assert got[0].loss.item() == pytest.approx(expected[0].loss.item(), rel=1e-4)
    check_same(expected[1], got[1], tolerance=1e-3)
    after = dict(tree_flatten(packed.parameters()))
    path = "language_model.model.layers.1.self_attn.q_proj"
    assert mx.array_equal(before[f"{path}.weight"], after[f"{path}.linear.weight"]).item()


def test_16_bits_learn(fresh: Mllama) -> None:
    """Loss and gradients in bfloat16 are near those in float32, and matrices stay in float32."""
    fresh.set_dtype(mx.bfloat16)
    model = changed(fresh)
    read = inputs(model, *batch(ROWS))
    half, gradients = loss_and_gradients(model, read)
    assert {array.dtype for _, array in tree_flatten(gradients)} == {mx.float32}
    model.set_dtype(mx.float32)
    full, expected = loss_and_gradients(model, inputs(model, *batch(ROWS)))
    assert half.loss.item() == pytest.approx(full.loss.item(), rel=0.05)
    for name, gradient in by_name(expected).items():
        got = by_name(gradients)[name].ravel()
        similarity = got @ gradient.ravel() / np.linalg.norm(got) / np.linalg.norm(gradient)
        assert similarity > 0.9, name


def test_nothing_learned_is_no_gradient(fresh: Mllama) -> None:
    model = changed(fresh)
    ids, token_kinds, pictures = batch(ROWS[:2])
    got, gradients = loss_and_gradients(model, inputs(model, ids, 0 * token_kinds, pictures))
    assert got.tokens.item() == got.loss.item() == 0
    assert not any(gradient.any() for gradient in by_name(gradients).values())


def test_only_a_block_of_logits_is_in_memory(fresh: Mllama) -> None:
    """A trainer that keeps all logits takes, in the 11B, a gigabyte a thousand tokens and copy."""
    vocabulary = 50_000
    fresh.language_model.lm_head.weight = mx.random.normal((vocabulary, 48))
    model = changed(fresh)
    row: Row = (600, (0, 1))
    ids, token_kinds, pictures = batch([row])
    token_kinds[:, 10:600] = 1
    read = inputs(model, ids, token_kinds, pictures)
    mx.eval(model.parameters(), read.ids)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    loss_and_gradients(model, read, tokens_per_block=16)
    logits = 4 * vocabulary * 590
    assert mx.get_peak_memory() - before < logits / 2


@pytest.fixture
def quantizable_model(model: Mllama) -> Mllama:
    """A model of widths that groups of 32 divide, filled like `model`."""
    text = replace(CONFIG.text, hidden_size=64, intermediate_size=96, num_attention_heads=4)
    made = Mllama(replace(CONFIG, text=text))
    key = mx.random.key(0)
    for name, array in tree_flatten(made.parameters()):
        key, own = mx.random.split(key)
        noise = mx.random.normal(array.shape, key=own)
        value = 0.7 + 0.1 * noise if "norm" in name or "gate" in name.rpartition(".")[2] else noise
        if array.ndim > 1 and "embed" not in name:
            value = value / (array.size // array.shape[0]) ** 0.5
        made.load_weights([(name, value)], strict=False)
    return made


def unpacked(packed: Mllama) -> Mllama:
    """The same weights without bits."""
    made = Mllama(packed.config)
    modules = dict(packed.named_modules())
    for name, array in tree_flatten(made.parameters()):
        module = modules[name.rpartition(".")[0]]
        if isinstance(module, nn.QuantizedLinear):
            value = plain_weight(module)
        elif isinstance(module, nn.QuantizedEmbedding):
            value = module(mx.arange(array.shape[0]))
        else:
            value = module[name.rpartition(".")[2]]
        made.load_weights([(name, value)], strict=False)
    return made
