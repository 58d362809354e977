"""Draws the README's pictures of the terminal: python docs/terminal_view.py

The answers in them are the demo model's own, to example pictures, on the machine that draws them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.text import Text

from llavacot_mlx import Assistant, Trace, demo
from llavacot_mlx.cli.next_steps import QUESTION
from llavacot_mlx.cli.views.panels import finished_answer, round_panel
from llavacot_mlx.cli.views.search_view import SearchProgress, retrace_line, unit_of
from llavacot_mlx.plan.plan import Settings, make_plan
from llavacot_mlx.trace.events import (
    CandidateEnded,
    CandidateScored,
    CandidatesKept,
    CandidateStarted,
    CandidateText,
    Retraced,
)

WIDTH = 80
SEARCHED = "Are there as many red shapes as blue shapes?"
# Hot enough that the demo model, which is sure of nearly everything, wavers.
SEARCH = Settings("swires", candidates=3, temperature=1.5, max_retraces=1)
SEED = 3


def main() -> None:
    assistant = Assistant.load(demo.model_path())
    answer = assistant.ask(demo.example_path(), QUESTION)
    _write("terminal_view.svg", svg(_command(answer, ""), [finished_answer(answer, WIDTH)]))
    found = assistant.ask(demo.example_path("busy"), SEARCHED, search=make_plan(SEARCH), seed=SEED)
    flags = (
        f" \\\n    --search {SEARCH.search} --candidates {SEARCH.candidates} "
        f"--temperature {SEARCH.temperature} --max-retraces {SEARCH.max_retraces} --seed {SEED}"
    )
    _write("terminal_search.svg", svg(_command(found, flags), search_panels(found)))


def svg(command: RenderableType, shown: list[RenderableType]) -> str:
    """The terminal after a command, as SVG."""
    console = Console(width=WIDTH, record=True, file=io.StringIO(), force_terminal=True)
    console.print(Group(command, *shown))
    return console.export_svg(title="llavacot", unique_id="llavacot")


def search_panels(trace: Trace) -> list[RenderableType]:
    """The rounds of a search as the terminal shows them, and then the chosen answer."""
    return [*_rounds(trace), Text("chosen:", style="dim"), finished_answer(trace, WIDTH)]


def _rounds(trace: Trace) -> Iterator[RenderableType]:
    progress = SearchProgress(unit_of(trace))
    for event in trace.events:
        match event:
            case CandidateStarted():
                progress.start_candidate(event)
            case CandidateText() | CandidateEnded() | CandidateScored():
                progress.update_candidate(event)
            case CandidatesKept():
                ended = progress.end_round(event)
                if ended is not None:
                    yield round_panel(ended, WIDTH)
                    if legend := progress.new_legend(ended):
                        yield Text(legend, style="dim")
            case Retraced():
                yield Text(retrace_line(event), style="yellow")


def _command(trace: Trace, flags: str) -> Text:
    image = Path(trace.image or "").name
    typed = f' ask {image} "{trace.question}"{flags}'
    return Text.assemble(("$ ", "dim"), ("llavacot", "bold"), typed)


def _write(name: str, text: str) -> None:
    target = Path(__file__).with_name(name)
    target.write_text(text, encoding="utf-8")
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
