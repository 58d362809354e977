"""What our commands have in common: settings, and an introduction when no arguments are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand

TYPER_SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,  # help is plain text: it starts faster and copies better
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 100},
}


def introduced_by(introduction: str | Callable[[], str]) -> type[TyperCommand]:
    """The class of a command that prints `introduction` when it is given no arguments at all.

    The introduction says what the command is for, and has a command that runs as it is.
    """

    class Introduced(TyperCommand):
        # typer does not export the type of these contexts.
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if not args:
                typer.echo(introduction if isinstance(introduction, str) else introduction())
                typer.echo(f"All options: {ctx.command_path} --help")
                ctx.exit()
            return super().parse_args(ctx, args)

        def collect_usage_pieces(self, ctx: Any) -> list[str]:
            return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    return Introduced
