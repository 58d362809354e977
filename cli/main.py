"""The `llavacot` command: what it can do, and where each part of it is."""

from __future__ import annotations

import io
import signal
import sys
from typing import Annotated

import typer

from llavacot_mlx import __version__
from llavacot_mlx.cli.command import Command
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
from llavacot_mlx.cli.next_steps import first_command

app = typer.Typer(
    name="llavacot",
    add_completion=False,
    rich_markup_mode=None,  # help is plain text: it starts faster and copies better
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


class _Ask(Command):
    def introduction(self) -> str:
        return f"{ask.INTRODUCTION}\n{_try_it()}"


class _Convert(Command):
    def introduction(self) -> str:
        return f"{convert.INTRODUCTION}\n{convert.EXAMPLE}"


class _Info(Command):
    def introduction(self) -> str:
        return f"{info.INTRODUCTION}\n{info.EXAMPLE}"


class _Trace(Command):
    def introduction(self) -> str:
        return f"{trace.INTRODUCTION}\n{trace.example()}"


class _Calibrate(Command):
    def introduction(self) -> str:
        return f"{calibrate.INTRODUCTION}\n{calibrate.EXAMPLE}"


class _LoRATrain(Command):
    def introduction(self) -> str:
        return f"{lora_train.INTRODUCTION}\n{lora_train.EXAMPLE}"


class _Fuse(Command):
    def introduction(self) -> str:
        return f"{fuse.INTRODUCTION}\n{fuse.EXAMPLE}"


class _Export(Command):
    def introduction(self) -> str:
        return f"{export.INTRODUCTION}\n{export.EXAMPLE}"


app.command(cls=_Ask, help=ask.HELP)(ask.ask)
app.command(cls=_Trace, help=trace.HELP)(trace.trace)
app.command(cls=_Convert, help=convert.HELP)(convert.convert)
app.command("lora-train", cls=_LoRATrain, help=lora_train.HELP)(lora_train.lora_train)
app.command(cls=_Fuse, help=fuse.HELP)(fuse.fuse)
app.command(cls=_Export, help=export.HELP)(export.export)
app.command(cls=_Info, help=info.HELP)(info.info)
app.command(cls=_Calibrate, help=calibrate.HELP)(calibrate.calibrate)
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
        typer.echo(_try_it())


def _try_it() -> str:
    return f"Try it now, a small demo model comes along:\n\n  {first_command()}\n"


def run() -> None:
    """What the installed `llavacot` runs."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a narrow locale gets "?", not a traceback
    # Being told to stop is no reason to leave a hidden cursor or a half-written folder behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with handle_errors(debug=False):
        app()
