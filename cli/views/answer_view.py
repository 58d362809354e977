"""Which view of an answer a stream gets."""

from __future__ import annotations

import os
from typing import TextIO

from llavacot_mlx.cli.views.plain import PlainView
from llavacot_mlx.cli.views.view import Show, View
from llavacot_mlx.plan.plan import Unit


def answer_view(out: TextIO, show: Show, unit: Unit, *, plain: bool) -> View:
    """The live view where the stream is a terminal that can redraw, unless `plain`."""
    if plain or not can_redraw(out):
        return PlainView(out, show, unit)
    from llavacot_mlx.cli.views.live import LiveView

    return LiveView(out, show, unit)


def can_redraw(out: TextIO) -> bool:
    """Whether the stream is a terminal on which the cursor can go back up."""
    return out.isatty() and (os.environ.get("TERM") or "dumb") not in ("dumb", "unknown")
