"""`llavacot trace`: shows a finished search again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llavacot_mlx.atomic import check_can_write, write_file
from llavacot_mlx.checked import brief, shown
from llavacot_mlx.cli.exit_codes import check_usage, handle_errors
from llavacot_mlx.cli.gpu_advice import Work
from llavacot_mlx.cli.load_assistant import load_assistant
from llavacot_mlx.cli.next_steps import first_command
from llavacot_mlx.cli.options import DebugOption, PlainOption, ShowOption
from llavacot_mlx.cli.printable import printable, printable_line
from llavacot_mlx.cli.stdin import read_stdin
from llavacot_mlx.cli.units import format_bytes
from llavacot_mlx.cli.views.answer_view import ShowLevel
from llavacot_mlx.cli.views.choose_view import choose_view
from llavacot_mlx.cli.views.ending import no_conclusion
from llavacot_mlx.cli.views.search_view import unit_of
from llavacot_mlx.errors import UserError
from llavacot_mlx.trace.answer_events import trace_events
from llavacot_mlx.trace.file import MAX_TRACE_BYTES, StoredTrace, parse_trace, read_trace
from llavacot_mlx.trace.record import Trace

HELP = """\
Show a saved answer and the search behind it. llavacot ask --trace writes the file.

\b
Examples:
  llavacot trace search.json
  llavacot trace search.json --html search.html
  llavacot trace search.json --show stages
  llavacot trace search.json --replay
  llavacot ask shapes.png "How many?" --search swires --json | llavacot trace - --html page.html
"""

INTRODUCTION = """\
llavacot trace shows a saved answer with every candidate of its search, in the
terminal or as an HTML page.
"""


def introduction() -> str:
    """Says what the command is for, and shows commands that can be run unchanged."""
    return (
        f"{INTRODUCTION}\n"
        "Save a search, then turn it into an HTML page:\n\n"
        f"  {first_command()} --search swires --trace search.json\n"
        "  llavacot trace search.json --html search.html\n"
    )


def trace(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A file from ask --trace or --json; - reads it from stdin."
        ),
    ],
    html: Annotated[
        str | None,
        typer.Option(
            metavar="OUT", help="Write a self-contained HTML page; - writes it to stdout."
        ),
    ] = None,
    replay: Annotated[
        bool,
        typer.Option(
            "--replay", help="Ask the question again, and check that the answer is the same."
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="PATH|ID",
            help="The model to replay with. [default: the one that the trace names]",
        ),
    ] = None,
    show: ShowOption = None,
    plain: PlainOption = False,
    debug: DebugOption = False,
) -> None:
    with handle_errors(debug=debug, work=Work.ANSWER):
        with check_usage():
            if html is not None and (show is not None or plain):
                flag = "--plain" if plain else f"--show {show}"
                raise UserError(f"{flag} with --html: drop one; a page has everything in it")
            if replay and (html is not None or show is not None):
                flag = "--html" if html is not None else f"--show {show}"
                raise UserError(
                    f"--replay with {flag}: drop one; --replay only compares the answers"
                )
            if model is not None and not replay:
                raise UserError(f"--model {model}: only has an effect with --replay; add it")
        if html not in (None, "-"):
            _check_page(Path(html), file)
        stored = _read(file)
        if replay:
            _replay(stored, file, model)
        elif html is None:
            _show(stored.trace, show or ShowLevel.ALL, plain=plain)
        else:
            _write_page(stored, html, file)


def _read(file: str) -> StoredTrace:
    if file != "-":
        return read_trace(Path(file))
    if sys.stdin.isatty():
        raise UserError("FILE is -, but nothing is piped in; llavacot trace - < search.json")
    return parse_trace(read_stdin("the trace", MAX_TRACE_BYTES), "stdin")


def _show(trace: Trace, show: ShowLevel, *, plain: bool) -> None:
    if show is ShowLevel.ANSWER and not trace.answer:
        raise UserError(no_conclusion(trace))
    if show is ShowLevel.ALL:
        model = trace.model if trace.adapter is None else f"{trace.model} with {trace.adapter}"
        about = [trace.image or "no picture", model, trace.search.method]
        facts = " · ".join([*map(printable_line, about), f"seed {trace.seed}"])
        print(f"{printable(trace.question.strip())}\n{facts}\n", flush=True)
    with choose_view(sys.stdout, show, unit_of(trace), plain=plain) as view:
        for event in trace_events(trace):
            view.show(event)


def _replay(stored: StoredTrace, file: str, model: str | None) -> None:
    """Asks again. Raises UserError if the answer differs from the saved one."""
    from llavacot_mlx.checkpoint.hub import find_here
    from llavacot_mlx.cli.resolve_model import resolve_adapted_model
    from llavacot_mlx.plan.plan_yaml import plan_from_dict
    from llavacot_mlx.search.judges.plugins import is_model

    before = stored.trace
    if before.image is not None and stored.image_bytes is None:
        raise UserError(f"{file}: there is no picture in it; use a file that ask --trace wrote")
    if before.interrupted:
        raise UserError(f"{file}: that answer was stopped, so there is no end to compare with")
    adapter = None if before.adapter is None else Path(before.adapter)
    named_in = file if model is None else None
    chosen = resolve_adapted_model(model or before.model, adapter, named_in=named_in)
    for judge in filter(is_model, plan_from_dict(before.search.plan).judges):
        find_here(judge, file, f"fetch it first: hf download {brief(judge)}")
    assistant = load_assistant(chosen)
    now = assistant.replay(before, stored.image_bytes)
    if now.token_ids != before.token_ids:
        pairs = zip(now.token_ids, before.token_ids, strict=False)
        same = next((index for index, (a, b) in enumerate(pairs) if a != b), None)
        shorter = min(len(now.token_ids), len(before.token_ids))
        index = shorter if same is None else same
        raise UserError(
            f"{file}: the answer is different now, from token {index} on: {shown(now.answer)}"
        )
    print(f"the same answer, token for token ({len(now.token_ids)} tokens)")


def _picture_beside(trace: Trace, file: str) -> Path | None:
    """The picture of a trace that does not hold it, if a file of its name lies beside the trace.

    Only the name counts, not its folder: a trace must not choose which files go into a page.
    """
    if file == "-" or trace.image in (None, "-"):
        return None
    assert trace.image is not None
    beside = Path(file).expanduser().parent / Path(trace.image).name
    return beside if beside.is_file() else None


def _check_page(out: Path, file: str) -> None:
    """Raises UserError if `out` exists and is not an HTML page, or is the trace itself."""
    check_can_write(out)
    page, source = out.expanduser(), Path(file).expanduser()
    if page.exists() and source.exists() and page.samefile(source):
        raise UserError(f"--html {out}: that is FILE itself; choose another name")
    if page.is_file() and page.stat().st_size:
        with page.open("rb") as stream:
            begin = stream.read(15)
        if begin.lower() != b"<!doctype html>":
            raise UserError(f"--html {out}: that file is not an HTML page; choose another name")


def _write_page(stored: StoredTrace, html: str, file: str) -> None:
    from llavacot_mlx.cli.html.page import page

    beside = None if stored.image_bytes is not None else _picture_beside(stored.trace, file)
    try:
        data = page(
            stored.trace,
            stored.image_bytes if beside is None else beside.read_bytes(),
            from_file=beside is not None,
        ).encode(errors="replace")
    except UserError as problem:  # of the picture
        raise UserError(f"{'stdin' if file == '-' else file}: {problem}") from None
    if html == "-":
        sys.stdout.buffer.write(data)
        return
    write_file(Path(html), data)
    said = f"wrote {printable_line(html)}, {format_bytes(len(data))}; any browser opens it"
    print(said, file=sys.stderr)
