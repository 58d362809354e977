"""Draws the README's picture of the terminal: python docs/terminal_view.py

The answer in it is the demo model's own, to the example picture, on the machine that draws it.
"""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console, Group
from rich.text import Text

from llavacot_mlx import Assistant, Trace, demo
from llavacot_mlx.cli.next_steps import QUESTION
from llavacot_mlx.cli.views.panels import finished_answer

WIDTH = 80


def main() -> None:
    trace = Assistant.load(demo.model_path()).ask(demo.example_path(), QUESTION)
    target = Path(__file__).with_name("terminal_view.svg")
    target.write_text(svg(trace), encoding="utf-8")
    print(f"wrote {target}")


def svg(trace: Trace) -> str:
    """The terminal after `llavacot ask`, as SVG."""
    console = Console(width=WIDTH, record=True, file=io.StringIO(), force_terminal=True)
    command = Text.assemble(
        ("$ ", "dim"),
        ("llavacot", "bold"),
        f' ask {demo.example_path().name} "{trace.question}"',
    )
    console.print(Group(command, finished_answer(trace, WIDTH)))
    return console.export_svg(title="llavacot", unique_id="llavacot")


if __name__ == "__main__":
    main()
