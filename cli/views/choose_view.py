"""Chooses the view of an answer for an output stream."""

from __future__ import annotations

import os
from typing import TextIO

from llavacot_mlx.cli.views.answer_view import (
    AnswerView,
    ShowLevel,
    SilentView,
    Waited,
    not_measured,
)
from llavacot_mlx.cli.views.plain import PlainView
from llavacot_mlx.plan.plan import Unit


def choose_view(
    out: TextIO, show: ShowLevel, unit: Unit, *, plain: bool, waited: Waited = not_measured
) -> AnswerView:
    """The live view if the stream is a terminal that can redraw, and the plain one otherwise.

    With `plain`, the plain one in any case. `waited` says how long the person has waited.
    """
    if plain or not _can_redraw(out):
        return PlainView(out, show, unit, waited)
    from llavacot_mlx.cli.views.live import LiveView

    return LiveView(out, show, unit, waited)


def status_view(out: TextIO) -> AnswerView:
    """A line that says what is being done, gone at the end; nothing if nobody watches the stream.

    It is for an answer that is printed in one piece at the end.
    """
    if not _can_redraw(out):
        return SilentView()
    from llavacot_mlx.cli.views.live import LiveView

    return LiveView(out, None)


def _can_redraw(out: TextIO) -> bool:
    """Whether the stream is a terminal on which the cursor can go back up."""
    return out.isatty() and (os.environ.get("TERM") or "dumb") not in ("dumb", "unknown")
