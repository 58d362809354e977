"""What the training loop says about its steps, with steps that are made up."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llavacot_mlx.cli.views.training import TrainingView
from llavacot_mlx.train.events import Event, Saved, Stepped, Warned
from llavacot_mlx.train.trainer import Training


def events_of(monkeypatch: pytest.MonkeyPatch, norms: list[float]) -> list[Event]:
    @contextmanager
    def batches(*_: object) -> Iterator[Iterator[Any]]:
        yield iter(())

    def step(training: Training, _: object) -> Stepped:
        return Stepped(training.done + 1, 6.5, 9, 1e3, norms[training.done], 0.1, 10**6)

    monkeypatch.setattr(Training, "_step", step)
    monkeypatch.setattr(Training, "_save", lambda training: Saved(training.done, Path("adapter")))
    fakes: dict[str, Any] = dict.fromkeys(("model", "optimizer", "validation", "adapter"))
    settings: Any = SimpleNamespace(steps_per_eval=100, save_every=100)
    training = Training(
        **fakes,
        settings=settings,
        steps=len(norms),
        inputs=SimpleNamespace(batches=batches),  # type: ignore[arg-type]
        origin={},
        workers=None,  # type: ignore[arg-type]
    )
    return list(training.run())


def test_a_model_that_learns_nothing_any_more_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rate so high that every gradient is 0 was not mentioned."""
    events = events_of(monkeypatch, [3.0, 900.0, *[0.0] * 9, 1.0, *[0.0] * 9])
    (warned,) = [event for event in events if isinstance(event, Warned)]
    assert events.index(warned) == 7
    assert "0 for 5 steps, since step 3: nothing is learned" in warned.text
    assert "lower --learning-rate" in warned.text
    out = io.StringIO()
    TrainingView(out, steps_per_report=10, quiet=False).show(warned)
    assert out.getvalue().startswith("warning: the gradient has been 0 for 5 steps")


@pytest.mark.parametrize("norms", [[1.0] * 9, [0.0, 0.0, 1.0] * 4, [1e-6] * 9, [0.0] * 4])
def test_a_model_that_learns_is_not(monkeypatch: pytest.MonkeyPatch, norms: list[float]) -> None:
    assert not [e for e in events_of(monkeypatch, norms) if isinstance(e, Warned)]
