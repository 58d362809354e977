"""What is said about a retrace."""

from __future__ import annotations

import pytest

from llavacot_mlx.checked import KeyRules
from llavacot_mlx.cli.views.search_view import retrace_line
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.trace.event_log import event_from_dict
from llavacot_mlx.trace.events import Retraced

BACK = (Stage.CAPTION, 1, Stage.REASONING)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Retraced(*BACK, 2, 0.17, 0.85), "second best reasoning 0.17, needs 0.85"),
        (Retraced(*BACK, 1, None, 0.85), "best reasoning has no score, needs 0.85"),
        (Retraced(*BACK, 4, 0.9, 0.85, cut_off=True), "4th best reasoning was cut off"),
        (Retraced(Stage.CAPTION, 1), "not good enough"),
    ],
)
def test_why_a_search_goes_back(event: Retraced, line: str) -> None:
    assert retrace_line(event) == f"↩ {line}: back to the captions, round 2"


def test_the_event_of_an_older_log_is_read() -> None:
    value = {"event": "retraced", "stage": "caption", "round": 1}
    event = event_from_dict(value, KeyRules(defaults=False), "events[0]")
    assert event == Retraced(Stage.CAPTION, 1)
