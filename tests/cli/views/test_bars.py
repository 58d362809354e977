"""Progress bars, and what training shows beside them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from llavacot_mlx.cli.views.bars import CountBar
from llavacot_mlx.cli.views.panels import TextBlock, round_panel, stage_panel
from llavacot_mlx.cli.views.search_view import CandidateProgress, Round
from llavacot_mlx.cli.views.training import _COLORS
from llavacot_mlx.plan.plan import Unit
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.train.data.sample import TokenKind


@pytest.mark.parametrize("width", [60, 80, 120])
def test_times_say_which_they_are(width: int) -> None:
    """Two bare times stood side by side: `0:00:02 00:07`."""
    bar = CountBar("checking rows", 10)
    bar.advance()
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    console.print(bar._progress.get_renderable())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert " elapsed" in shown
    assert shown.count(":") < 3 or " left" in shown


@pytest.mark.parametrize("width", [24, 30, 60])
def test_a_title_that_is_too_long_ends_in_an_ellipsis(width: int) -> None:
    round = Round(Stage.REASONING, Unit.SENTENCE, 12)
    round.candidates = [CandidateProgress(number) for number in (1, 2)]
    console = Console(file=io.StringIO(), width=width)
    console.print(round_panel(round, width))
    first = console.file.getvalue().splitlines()[0]  # type: ignore[attr-defined]
    assert len(first) == width
    assert ("…" in first) == (len(round.title) > width - 6)


def test_no_color_of_text_that_matters_is_dim_or_dark_blue() -> None:
    assert {"dim", "blue"}.isdisjoint(
        color for kind, color in _COLORS.items() if kind is not TokenKind.MASKED
    )
    console = Console(file=io.StringIO(), width=40, force_terminal=True, color_system="standard")
    console.print(stage_panel(TextBlock(Stage.CAPTION, ["A picture."]), 40))
    assert "\x1b[34m" not in console.file.getvalue()  # type: ignore[attr-defined]
