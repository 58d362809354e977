"""The `llavacot` command: what it can do, and where each part of it is."""

from __future__ import annotations

import io
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from llavacot_mlx import __version__
from llavacot_mlx.cli.ask import HELP, INTRODUCTION, ask
from llavacot_mlx.cli.welcome import first_command

app = typer.Typer(
    name="llavacot",
    add_completion=False,
    rich_markup_mode=None,  # help is plain text: it starts faster and copies better
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


class _ExplainsItself(TyperCommand):
    """A command that, given nothing at all, shows how it is used instead of an error."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # typer hides ctx's type
        if not args:
            typer.echo(INTRODUCTION)
            typer.echo(_try_it())
            typer.echo(f"All options: {ctx.command_path} --help")
            ctx.exit()
        return super().parse_args(ctx, args)


app.command(cls=_ExplainsItself, help=HELP)(ask)


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
    """Ask about a picture and watch the answer come in four stages, on your own machine.

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
    app()
