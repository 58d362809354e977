"""The reported bytes of K/V are those that exist, and excess is refused before it is allocated."""

from __future__ import annotations

import mlx.core as mx
import pytest

from llavacot_mlx import demo
from llavacot_mlx.assistant import Assistant
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.kv_budget import KVBudget, KVLimits
from llavacot_mlx.model.kv_cache import KVCache, KVSegment
from llavacot_mlx.model.shared_prefix import KVPath, SharedPrefixCache
from llavacot_mlx.usage import Usage

QUESTION = "Is there a small red triangle?"  # its answer is short


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return Assistant.load(demo.model_path(), dtype="float32")


def test_the_parts_are_added_up_and_the_most_is_remembered() -> None:
    usage = Usage()
    budget = KVBudget(usage, KVLimits(budget=2_000_000_000))
    budget.reserve("images", 800_000_000)
    budget.reserve("prefixes", 400_000_000)
    budget.reserve("candidates", 600_000_000)
    budget.reserve("candidates", 0)
    budget.reserve("prefixes", 900_000_000)
    assert usage.kv_bytes == 1_800_000_000
    too_much = r"would take 2,010.25 MB, and the budget is 2,000.00 MB: take fewer"
    with pytest.raises(UserError, match=too_much):
        budget.reserve("candidates", 310_250_000)
    assert usage.kv_bytes == 1_800_000_000


def test_a_batch_tells_what_its_buffers_take() -> None:
    """Buffers are counted at the beginning, when they grow, and with copies for paths that left."""
    usage = Usage()
    prompt = KVSegment((mx.zeros((1, 2, 5, 8)),), (mx.zeros((1, 2, 5, 8)),), 5)
    own = KVSegment((mx.zeros((1, 2, 70, 8)),), (mx.zeros((1, 2, 70, 8)),), 70)
    paths = [KVPath((prompt,)), KVPath((prompt, own))]
    batch = SharedPrefixCache(paths, KVBudget(usage))
    buffers = [*batch._keys, *batch._values]
    assert usage.kv_bytes == sum(buffer.nbytes for buffer in buffers)
    new = [mx.zeros((2, heads, 1, 8)) for heads in (4, 2, 2)]
    batch.attend(0, *new)
    batch.advance(1)
    buffers = [*batch._keys, *batch._values]
    grown = sum(buffer.nbytes for buffer in buffers)
    assert usage.kv_bytes == grown
    left = batch.segment(0, 1)
    batch.keep([1, 0])
    batch.attend(0, *new)
    assert usage.kv_bytes == grown + left.nbytes


def test_a_text_cache_tells_before_it_grows() -> None:
    cache = KVCache(3, KVBudget(Usage(), KVLimits(budget=1000)))
    with pytest.raises(UserError, match=r"would take .* MB, and the budget is 0.00 MB"):
        cache.extend(0, mx.zeros((1, 2, 4, 8)), mx.zeros((1, 2, 4, 8)))
    assert cache.state() == []


@pytest.mark.slow
@pytest.mark.parametrize("search", ["greedy", "swires"])
def test_a_budget_is_kept_or_refused(assistant: Assistant, search: str) -> None:
    """A budget that is just enough suffices; one byte less raises one clear error line."""
    picture = demo.example_path()
    needed = assistant.ask(picture, QUESTION, search=search).usage.kv_bytes
    again = assistant.ask(picture, QUESTION, search=search, limits=KVLimits(budget=needed))
    assert again.usage.kv_bytes == needed
    with pytest.raises(UserError, match="take fewer candidates, fewer tokens or 8-bit K/V"):
        assistant.ask(picture, QUESTION, search=search, limits=KVLimits(budget=needed - 1))


def test_a_picture_beyond_the_budget_is_refused_before_it_is_encoded(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encoded(*arguments: object) -> None:
        raise AssertionError("the picture was encoded")

    monkeypatch.setattr(type(assistant._loaded.model), "image_features", encoded)
    with pytest.raises(UserError, match=r"would take .* MB, and the budget is 0.00 MB"):
        assistant.ask(demo.example_path(), QUESTION, limits=KVLimits(budget=1000))
    with pytest.raises(UserError, match="holds nothing"):
        KVLimits(budget=0)
