"""How many rows fit: from the memory, the weights, the K/V of a row, and the budget."""

from __future__ import annotations

import pytest
from PIL import Image

from llavacot_mlx.assistant import Assistant
from llavacot_mlx.batch import size as size_module
from llavacot_mlx.batch.size import MAX_BATCH_SIZE, default_batch_size, kv_bound
from llavacot_mlx.model.kv_budget import KVLimits
from llavacot_mlx.request import make_request

PICTURE = Image.new("RGB", (50, 28), "blue")


@pytest.mark.parametrize("search", ["greedy", "best-of-n", "stage-beam"])
def test_no_answer_takes_more_than_its_bound(assistant: Assistant, search: str) -> None:
    """Also alone; a random model writes to its limit."""
    for image in (PICTURE, None):
        for tokens in (5, 150):
            request = make_request(image, "What?", search=search, max_tokens=tokens, judge=None)
            trace = assistant.stream(request).result()
            assert 0 < trace.usage.kv_bytes <= kv_bound(assistant._loaded, request).total


def test_a_bound_counts_what_a_request_says(assistant: Assistant) -> None:
    loaded = assistant._loaded
    short, long = (
        kv_bound(loaded, make_request(PICTURE, "What?", max_tokens=tokens)) for tokens in (10, 300)
    )
    assert short.images == long.images > 0
    assert short.path < long.path
    endless = kv_bound(loaded, make_request(PICTURE, "What?", max_tokens=10**9))
    context = loaded.model.config.text.max_position_embeddings
    assert endless.path <= loaded.model.language_model.text_kv_bytes(context + 64)
    assert kv_bound(loaded, make_request(None, "What?")).images == 0
    several = kv_bound(loaded, make_request(PICTURE, "What?", search="best-of-n", candidates=7))
    assert several.paths > 7


def test_the_default_follows_from_memory(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = assistant._loaded
    request = make_request(PICTURE, "What?")
    bound = kv_bound(loaded, request).total

    def with_memory(count: int) -> int:
        monkeypatch.setattr(size_module, "available_memory", lambda: (count, "memory"))
        return default_batch_size(loaded, request)

    assert with_memory(10**12) == MAX_BATCH_SIZE
    assert with_memory(0) == 1
    sizes = [with_memory(weights_and(loaded, rows * bound)) for rows in (2, 8, 20)]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] < 20
    monkeypatch.setattr(size_module, "available_memory", lambda: (10**12, "memory"))
    assert default_batch_size(loaded, request, kv_budget=5 * bound + 1) == 5
    assert default_batch_size(loaded, request, kv_budget=1) == 1
    assert assistant.batch_size_for(request, 3 * bound) == 3


def weights_and(loaded: object, count: int) -> int:
    """A machine that has `count` bytes beside the weights."""
    from mlx.utils import tree_flatten

    model = loaded.model  # type: ignore[attr-defined]
    return count + sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def test_the_candidates_of_a_search_are_rows(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(size_module, "available_memory", lambda: (10**12, "memory"))
    request = make_request(PICTURE, "What?", search="best-of-n", candidates=4)
    bound = kv_bound(assistant._loaded, request).total
    assert default_batch_size(assistant._loaded, request, kv_budget=2 * bound) == 8


def test_bits_that_the_model_cannot_have_are_its_requests_error(assistant: Assistant) -> None:
    """The size is worked out all the same; the request then fails with one clear error."""
    plain, few = (make_request(PICTURE, "What?", limits=KVLimits(bits=bits)) for bits in (None, 8))
    assert kv_bound(assistant._loaded, few) == kv_bound(assistant._loaded, plain)
