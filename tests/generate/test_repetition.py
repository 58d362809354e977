"""A path that only repeats itself is told from a long list."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

import pytest

from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.demo import model_path
from llavacot_mlx.generate.repetition import RepetitionDetector
from llavacot_mlx.prompt.tokenizer import Tokenizer


def detected_at(token_ids: Iterable[int]) -> int | None:
    """The number of tokens after which the path counts as repeating itself."""
    detector = RepetitionDetector()
    for count, token_id in enumerate(token_ids, 1):
        detector.push(token_id)
        if detector.repeating:
            return count
    return None


def beginning(count: int) -> list[int]:
    rng = random.Random(0)
    return [rng.randrange(1000) for _ in range(count)]


@pytest.mark.parametrize(
    ("period", "stretch"), [(1, 512), (2, 512), (7, 512), (100, 512), (170, 512), (300, 900)]
)
@pytest.mark.parametrize("before", [0, 1, 90, 700])
def test_a_cycle_is_detected(period: int, stretch: int, before: int) -> None:
    """After 512 tokens of it, and three times."""
    cycle = [1000 + number for number in range(period)]
    path = [*beginning(before), *itertools.islice(itertools.cycle(cycle), 2048)]
    assert detected_at(path) == before + stretch


def test_a_cycle_that_is_too_long_or_ends_is_none() -> None:
    cycle = [1000 + number for number in range(600)]
    assert detected_at(cycle * 4) is None
    assert detected_at([*beginning(20), *([1000] * 500), *beginning(20), *([1000] * 500)]) is None


def test_a_detector_that_goes_on_is_no_longer_repeating() -> None:
    detector = RepetitionDetector()
    for token_id in [5] * 600:
        detector.push(token_id)
    assert detector.repeating
    detector.push(6)
    assert not detector.repeating


def legitimate_texts() -> Iterable[str]:
    """200 lists, tables, grids and counts, most of them of more than 1,000 tokens."""
    rng = random.Random(1)
    words = ("red", "blue", "green", "small", "large", "circle", "square", "star", "EXIT", "0")
    for number in range(50):
        word = rng.choice(words)
        count = rng.randrange(120, 400)
        yield "\n".join(f"{row}. {word} {word}" for row in range(1, count))
        yield "| row | item | count |\n|---|---|---|\n" + "\n".join(
            f"| {row} | {word} | {rng.choice((0, 0, 0, 0, 1))} |" for row in range(count)
        )
        size = rng.randrange(10, 16)
        yield "\n".join(" ".join("0" for _ in range(size)) for _ in range(size)) + f"\n{number}"
        yield (
            ", ".join(str(row) for row in range(count))
            + f", so there are {count} of them. "
            + (f"Row {number} has a {word} {rng.choice(words)}. " * 12)
        )


def test_long_lists_and_tables_are_none() -> None:
    """None of 200 texts. A grid of more than 500 equal tokens would be one."""
    tokenizer = Tokenizer.load(model_path(), load_config(model_path()))
    found = [text for text in legitimate_texts() if detected_at(tokenizer.encode(text))]
    assert len(list(legitimate_texts())) == 200
    assert found == []
