"""The `llavacot` command: its subcommands, put together."""

from __future__ import annotations

import io
import signal
import sys
from typing import Annotated

import typer

from llavacot_mlx import __version__
from llavacot_mlx.cli.command import introduced_by
from llavacot_mlx.cli.commands import (
    ask,
    calibrate,
    convert,
    data,
    export,
    fuse,
    info,
    lora_train,
    trace,
)
from llavacot_mlx.cli.exit_codes import handle_errors
from llavacot_mlx.cli.next_steps import try_it

app = typer.Typer(
    name="llavacot",
    add_completion=False,
    rich_markup_mode=None,  # help is plain text: it starts faster and copies better
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


app.command(cls=introduced_by(ask.introduction), help=ask.HELP)(ask.ask)
app.command(cls=introduced_by(trace.introduction), help=trace.HELP)(trace.trace)
app.command(cls=introduced_by(convert.INTRODUCTION), help=convert.HELP)(convert.convert)
app.command("lora-train", cls=introduced_by(lora_train.INTRODUCTION), help=lora_train.HELP)(
    lora_train.lora_train
)
app.command(cls=introduced_by(fuse.INTRODUCTION), help=fuse.HELP)(fuse.fuse)
app.command(cls=introduced_by(export.INTRODUCTION), help=export.HELP)(export.export)
app.command(cls=introduced_by(info.INTRODUCTION), help=info.HELP)(info.info)
app.command(cls=introduced_by(calibrate.INTRODUCTION), help=calibrate.HELP)(calibrate.calibrate)
app.add_typer(data.app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llavacot {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def llavacot(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "-V", "--version", help="Show the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Ask about an image and watch the answer come in four stages, on your own machine.

    \b
    llavacot ask photo.jpg "What is unusual here?"
    llavacot ask --help
    """
    if context.invoked_subcommand is None:
        typer.echo(f"{context.get_help()}\n")
        typer.echo(try_it())


def run() -> None:
    """Runs the command line; the entry point of the installed `llavacot`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a narrow locale gets "?", not a traceback
    # Raised as an exception, so that no hidden cursor and no half-written folder stays behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with handle_errors(debug=False):
        app()
