"""The `llavacot` command, assembled from its subcommands."""

from __future__ import annotations

import io
import signal
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.main import get_command

import llavacot_mlx.cli.started  # noqa: F401  # before the slow imports
from llavacot_mlx import __version__
from llavacot_mlx.cli.command import TYPER_SETTINGS, introduced_by
from llavacot_mlx.cli.exit_codes import handle_errors
from llavacot_mlx.cli.lazy_group import lazy_group
from llavacot_mlx.cli.next_steps import try_it
from llavacot_mlx.cli.terminal_size import ignore_exported_size

SUMMARIES = {
    "ask": "Ask about an image.",
    "trace": "Show a saved answer and the search behind it.",
    "convert": "Convert a Hugging Face checkpoint or PEFT adapter to MLX.",
    "lora-train": "Fine-tune a model on four-stage answers.",
    "fuse": "Merge an adapter into a model's weights.",
    "export": "Export a model or an adapter to the Hugging Face format.",
    "info": "Show a model's size and the memory that an answer needs.",
    "calibrate": "Calibrate a judge's threshold for --search swires.",
    "data": "Check training data, or show its statistics.",
    "eval": "Measure a model on benchmarks.",
}
"""The first sentence of each command's help; `llavacot --help` imports no command."""


def _make_command(name: str) -> Any:
    """Imports a command's module and makes the command of its function."""
    function = name.replace("-", "_")
    module = import_module(f"llavacot_mlx.cli.commands.{function}")
    if hasattr(module, "app"):  # a group of its own
        return get_command(module.app)
    introduction = getattr(module, "introduction", None) or module.INTRODUCTION
    single = typer.Typer(**TYPER_SETTINGS)
    single.command(name, cls=introduced_by(introduction), help=module.HELP)(
        getattr(module, function)
    )
    return get_command(single)


_SETTINGS = {**TYPER_SETTINGS, "add_completion": True}  # of shells
app = typer.Typer(name="llavacot", cls=lazy_group(SUMMARIES, _make_command), **_SETTINGS)


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
    # SIGTERM becomes an exception, so that no hidden cursor or half-written folder stays behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    ignore_exported_size()
    with handle_errors(debug=False):
        code = app(prog_name="llavacot", standalone_mode=False)
    sys.exit(code)
