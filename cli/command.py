"""What our commands have in common on the command line."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand


class Command(TyperCommand):
    """A command that, given nothing at all, shows what to type instead of an error.

    typer keeps the type of the contexts below to itself.
    """

    def introduction(self) -> str:
        """What the command is for, and a command that runs as it is."""
        raise NotImplementedError

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args:
            typer.echo(self.introduction())
            typer.echo(f"All options: {ctx.command_path} --help")
            ctx.exit()
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]
