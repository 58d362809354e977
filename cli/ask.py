"""`llavacot ask`: one question about one picture."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llavacot_mlx.cli.exits import ending_well
from llavacot_mlx.cli.model import Model, model_named
from llavacot_mlx.cli.plain import PlainView
from llavacot_mlx.cli.printable import printable
from llavacot_mlx.cli.view import NoView, Show, View
from llavacot_mlx.errors import UserError
from llavacot_mlx.events import Answered
from llavacot_mlx.plans import JudgeName, Method, Plan, Unit, plan_of
from llavacot_mlx.trace import Trace

if TYPE_CHECKING:
    from PIL import Image


HELP = """\
Ask about a picture. The answer comes in four stages: what is asked, what the picture shows, \
the reasoning, the conclusion.

\b
Examples:
  llavacot ask shapes.png "How many red circles are there?"
  llavacot ask chart.png "Which year was best?" --model ./llava-cot-4bit
  llavacot ask chart.png "Which year was best?" --answer-only
  llavacot ask chart.png "Which year was best?" --search swires
  curl -s https://example.com/a.jpg | llavacot ask - "What is this?" --json
"""

INTRODUCTION = """\
llavacot ask answers a question about a picture, in four stages:
what is asked, what the picture shows, the reasoning, the conclusion.
"""


def ask(
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE", help="A picture: PNG, JPEG, WebP or GIF; - reads it from stdin."
        ),
    ],
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="In quotes; - reads it from stdin.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|ID", help="A folder, or an id on the hub. [default: the demo model]"
        ),
    ] = None,
    search: Annotated[
        Method | None,
        typer.Option(
            help="greedy: always the likeliest token. sample: draw. best-of-n: the answer that the "
            "judge likes best. majority: the conclusion that most answers reach. stage-beam: the "
            "best of each stage. swires: several captions and reasonings, and back to the captions "
            "when none is good enough. All but greedy draw at temperature 0.6 and top-p 0.9 unless "
            "you say otherwise. [default: greedy]"
        ),
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="How many a search chooses from. [default: 4; stage-beam: 2]"
        ),
    ] = None,
    judge: Annotated[
        JudgeName | None,
        typer.Option(
            help="self: the model is asked whether what it wrote is right. logprob: how likely it "
            "found its own words. majority: how many answers conclude the same. [default: self]"
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", "--temp", help="More than 0 draws; alone it means --search sample."
        ),
    ] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Draw from the likeliest tokens only.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Stop after this many tokens.")] = 2048,
    seed: Annotated[int, typer.Option(help="The same seed draws the same answer.")] = 0,
    show: Annotated[
        Show | None,
        typer.Option(
            help="all adds a search's candidates and what the answer cost; answer is the "
            "conclusion. [default: all]"
        ),
    ] = None,
    answer_only: Annotated[
        bool, typer.Option("--answer-only", help="Print the answer and nothing else.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with everything in it.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Plain text, as when the output is not a terminal.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback when something goes wrong.")
    ] = False,
) -> None:
    with ending_well(debug=debug):
        plan = _plan(search, candidates, judge, temperature, top_p)
        _check_rest(max_tokens, show, as_json=as_json, answer_only=answer_only)
        if image == question == "-":
            raise UserError("IMAGE and QUESTION are both -; stdin can only be one of them")
        asked = _Asked(
            question=_question(question),
            image=_picture(image),
            search=plan.method,
            candidates=candidates,
            judge=judge,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            seed=seed,
        )
        chosen = model_named(model)
        if as_json or answer_only:
            trace = _answer(asked, chosen, _quiet_view())
        else:
            trace = _answer(asked, chosen, _view(show or Show.ALL, plan.steps[0].unit, plain=plain))
        trace = dataclasses.replace(trace, image=image, model=chosen.name)
        if as_json:
            _print_json(trace)
        elif answer_only:
            print(printable(_conclusion(trace)))
        elif show is Show.ANSWER:
            _conclusion(trace)


@dataclass(frozen=True)
class _Asked:
    """Everything that the command line says about the answer it wants."""

    question: str
    image: Image.Image
    search: Method
    candidates: int | None
    judge: JudgeName | None
    temperature: float | None
    top_p: float | None
    max_tokens: int
    seed: int


def _answer(asked: _Asked, model: Model, view: View) -> Trace:
    with view:
        view.waiting(f"loading {model.short_name}")
        # Imported here, where someone watches the time go by: mlx and the tokenizer are behind it.
        from llavacot_mlx.assistant import Assistant

        assistant = Assistant.load(model.folder)
        view.waiting("looking at the picture")
        for event in assistant.stream(
            asked.image,
            asked.question,
            search=asked.search,
            candidates=asked.candidates,
            judge=asked.judge,
            temperature=asked.temperature,
            top_p=asked.top_p,
            max_tokens=asked.max_tokens,
            seed=asked.seed,
        ):
            view.show(event)
    assert isinstance(event, Answered)
    return event.trace


def _plan(
    search: Method | None,
    candidates: int | None,
    judge: JudgeName | None,
    temperature: float | None,
    top_p: float | None,
) -> Plan:
    """What the flags mean together, as the engine will take them; a contradiction is an error."""
    if temperature is not None and not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"--temperature {temperature:g}: must be 0 or more, such as 0.6")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"--top-p {top_p:g}: must be more than 0 and at most 1, such as 0.9")
    if search is Method.SAMPLE and temperature == 0:
        raise UserError("--search sample with --temperature 0: drop one; 0 is greedy")
    if search is Method.GREEDY and temperature:
        raise UserError(
            f"--search greedy with --temperature {temperature:g}: greedy never draws; "
            "drop one, or --search sample"
        )
    if search in (None, Method.GREEDY) and not temperature and top_p is not None:
        raise UserError(f"--top-p {top_p:g}: greedy never draws; add --search sample")
    try:
        return plan_of(search, candidates, judge, temperature, top_p)
    except UserError as error:
        flags = {"--search": search, "--candidates": candidates, "--judge": judge}
        given = " ".join(f"{flag} {value}" for flag, value in flags.items() if value is not None)
        raise UserError(f"{given}: {error}") from None


def _check_rest(max_tokens: int, show: Show | None, *, as_json: bool, answer_only: bool) -> None:
    if max_tokens < 1:
        raise UserError(f"--max-tokens {max_tokens}: must be 1 or more")
    if as_json and answer_only:
        raise UserError("--json with --answer-only: drop one; the object has the answer in it")
    if show is not None and (as_json or answer_only):
        flag = "--json" if as_json else "--answer-only"
        raise UserError(f"--show {show} with {flag}: drop one; {flag} says already what to print")


def _picture(image: str) -> Image.Image:
    """The picture, read whole: a damaged one is reported before a model is loaded for it."""
    from llavacot_mlx.pictures import open_picture

    if image != "-":
        return open_picture(Path(image).expanduser())
    if sys.stdin.isatty():
        raise UserError(
            "IMAGE is -, but nothing is piped in; llavacot ask - QUESTION < picture.png"
        )
    return open_picture(sys.stdin.buffer.read())


def _question(question: str) -> str:
    if question == "-":
        question = sys.stdin.buffer.read().decode(errors="surrogateescape").rstrip("\r\n")
    if not question.strip():
        raise UserError('QUESTION is empty; ask something, such as "What does the picture show?"')
    try:
        question.encode()
    except UnicodeEncodeError:
        raise UserError("QUESTION is not UTF-8 text; check the terminal's encoding") from None
    return question


def _view(show: Show, unit: Unit, *, plain: bool) -> View:
    if plain or not _can_redraw(sys.stdout.isatty()):
        return PlainView(sys.stdout, show, unit)
    from llavacot_mlx.cli.render import LiveView

    return LiveView(sys.stdout, show, unit)


def _quiet_view() -> View:
    """For output that is printed in the end: only a line on stderr, should someone watch."""
    if not _can_redraw(sys.stderr.isatty()):
        return NoView()
    from llavacot_mlx.cli.render import LiveView

    return LiveView(sys.stderr, None)


def _can_redraw(terminal: bool) -> bool:
    return terminal and (os.environ.get("TERM") or "dumb") not in ("dumb", "unknown")


def _conclusion(trace: Trace) -> str:
    if not trace.answer:
        raise UserError(
            "the model wrote no conclusion, so there is no answer; "
            "see what it wrote with --show all, or raise --max-tokens"
        )
    return trace.answer


def _print_json(trace: Trace) -> None:
    # JSON is UTF-8 whatever the locale; a file name that is not becomes an escape.
    sys.stdout.buffer.write(trace.to_json().encode(errors="backslashreplace") + b"\n")
