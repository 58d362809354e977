"""What our commands have in common and command groups: introductions, help in panels, usage errors.

typer does not export the types of its contexts and parameters, hence the Any below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from llavacot_mlx.cli import usage_errors
from llavacot_mlx.cli.defaults import check_flags, default_flags

_MAX_NAME_COLUMNS = 30  # of the column with an option's name in a help text
_MIN_HELP_COLUMNS = 36  # below, an option's help stands under its name

TYPER_SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,  # help is plain text: it starts faster and copies better
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 100},
}


class Command(TyperCommand):
    """A command whose usage errors are ours, and whose help has its options in panels."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.allow_extra_args = True  # they are refused below, with a hint
        is_top = ctx.parent is not None and ctx.parent.parent is None
        if is_top and not ctx.resilient_parsing:
            _set_defaults(ctx)
        try:
            rest = super().parse_args(ctx, list(args))
        except typer.TyperException as error:
            if ctx.resilient_parsing:
                raise
            raise usage_errors.in_our_words(error, ctx, args) from None
        if rest and not ctx.resilient_parsing:
            raise usage_errors.too_many_arguments(ctx, args)
        return rest

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces = super().collect_usage_pieces(ctx)
        return [piece.replace("{", "").replace("}", "") for piece in pieces]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_panels(self, ctx, formatter)


class Group(TyperGroup):
    """A group of commands, with the same usage errors."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, list(args))
        except typer.TyperException as error:
            if ctx.resilient_parsing:
                raise
            raise usage_errors.in_our_words(error, ctx, args) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        if args[0] not in self.commands and not ctx.resilient_parsing:
            raise usage_errors.no_such_command(ctx, list(self.commands), args)
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_panels(self, ctx, formatter)
        self.format_commands(ctx, formatter)


def _set_defaults(ctx: Any) -> None:
    """Gives the flags of a command the defaults of the configuration file."""
    flags = default_flags(ctx.info_name)
    if not flags:
        return
    names: dict[str, str] = {
        opt.removeprefix("--"): each.name
        for each in ctx.command.params
        for opt in each.opts
        if opt.startswith("--")
    }
    check_flags(ctx.info_name, flags, list(names))
    by_name: dict[str, Any] = {names[flag]: value for flag, value in flags.items()}
    ctx.default_map = by_name


def introduced_by(introduction: str | Callable[[], str]) -> type[Command]:
    """The class of a command that prints `introduction` when it is given no arguments at all.

    The introduction says what the command is for, and has a command that runs as it is.
    """

    class Introduced(Command):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if not args and not ctx.resilient_parsing:
                typer.echo(introduction if isinstance(introduction, str) else introduction())
                typer.echo(f"All options: {ctx.command_path} --help")
                ctx.exit()
            return super().parse_args(ctx, args)

    return Introduced


def _write_panels(command: Any, ctx: Any, formatter: Any) -> None:
    """Writes the arguments, then the options, those of a `rich_help_panel` under its name.

    rich itself would draw frames, and take longer to import than everything else here.
    """
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panel = getattr(parameter, "rich_help_panel", None) or usual
            panels.setdefault(panel, []).append(record)
    first = [name for name in ("Arguments", "Options") if name in panels]
    for name in (*first, *(name for name in panels if name not in first)):
        with formatter.section(name):
            _write_rows(formatter, panels[name])


def _write_rows(formatter: Any, rows: list[tuple[str, str]]) -> None:
    """Writes the names of options and their help, in two columns where there is room for two."""
    widest = min(_MAX_NAME_COLUMNS, max(len(name) for name, _ in rows))
    if formatter.width - widest >= _MIN_HELP_COLUMNS:
        formatter.write_dl(rows, col_max=_MAX_NAME_COLUMNS)
        return
    for name, help in rows:
        formatter.write(f"{'':>{formatter.current_indent}}{name}\n")
        with formatter.indentation(), formatter.indentation():
            formatter.write_text(help)
