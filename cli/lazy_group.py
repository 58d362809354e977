"""A group of commands that imports a command's module only when that command is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llavacot_mlx.cli.command import Group


class LazyCommands(Mapping[str, Any]):
    """Commands by name, each made by `make` when it is first looked up."""

    def __init__(self, names: Mapping[str, str], make: Callable[[str], Any]) -> None:
        self._names, self._make = names, make
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def lazy_group(summaries: Mapping[str, str], make: Callable[[str], Any]) -> type[Group]:
    """Returns the class of a group with these commands, in this order.

    `summaries` has each command's line in the group's help, so that `--help` imports none of them.
    """

    class LazyGroup(Group):
        def __init__(self, **options: Any) -> None:  # typer's own, passed on
            super().__init__(**options)
            self.commands = LazyCommands(summaries, make)  # type: ignore[assignment]

        def list_commands(self, ctx: Any) -> list[str]:
            return list(summaries)

        def format_commands(self, ctx: Any, formatter: Any) -> None:
            with formatter.section("Commands"):
                formatter.write_dl(list(summaries.items()))

    return LazyGroup
