"""Matches PEFT's patterns of modules without a regular expression engine.

PEFT runs the keys of `rank_pattern` and `alpha_pattern` as regular expressions, which can be
written so that they take years. This reads the part of their language that names of modules need:
characters, `.`, classes, groups, alternatives and repetitions. It follows all ways to match at
once, as sets of positions, so there is nothing to go back to; and it counts its steps.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from llavacot_mlx.checked import quoted
from llavacot_mlx.errors import UserError

_MAX_LENGTH = 1000  # characters of a pattern
_MAX_DEPTH = 50  # of groups in groups
_MAX_COUNT = 1000  # in braces
_MAX_STEPS = 10_000_000  # of all matches of an adapter, some seconds
_CLASSES = {
    "d": str.isdecimal,
    "w": lambda character: character.isalnum() or character == "_",
    "s": str.isspace,
}

T = TypeVar("T")

_Node = Callable[[str, set[int]], set[int]]
"""From a text and the positions before a part of a pattern to those after it."""


class ModulePatterns(Generic[T]):
    """Values by patterns of modules; the first pattern that matches gives the value."""

    def __init__(self, values: Mapping[str, T]) -> None:
        """Raises UserError for a pattern that is wrong, or that uses more of the language."""
        self._left = _MAX_STEPS
        self._values = [(self._matcher(pattern), value) for pattern, value in values.items()]

    def value_for(self, module: str, otherwise: T) -> T:
        """The value of the first pattern that matches a module's whole name, or its end after a
        dot, as in PEFT.

        Raises UserError for patterns that take too many steps.
        """
        return next((value for matches, value in self._values if matches(module)), otherwise)

    def _matcher(self, pattern: str) -> Callable[[str], bool]:
        if len(pattern) > _MAX_LENGTH:
            raise _error(pattern, "is too long")
        if re.fullmatch(r"[\w.]+", pattern):  # repeats nothing; there may be thousands of these
            plain = re.compile(rf"(?:.*\.)?{pattern}")
            return lambda module: plain.fullmatch(module) is not None
        node = _Parser(pattern, self._count).parse()

        def matches(module: str) -> bool:
            starts = {0, *(at + 1 for at, character in enumerate(module) if character == ".")}
            return len(module) in node(module, starts)

        return matches

    def _count(self, steps: int) -> None:
        self._left -= steps + 1
        if self._left < 0:
            raise UserError("the patterns of modules take too long to match")


def _error(pattern: str, what: str) -> UserError:
    return UserError(
        f"the pattern {quoted(pattern)} {what}; name the modules, such as layers.0.self_attn.q_proj"
    )


@dataclass
class _Parser:
    """Makes a node of a pattern, by recursive descent."""

    pattern: str
    count: Callable[[int], None]
    at: int = 0
    depth: int = 0

    def parse(self) -> _Node:
        node = self._alternatives()
        if self.at < len(self.pattern):
            raise _error(self.pattern, "has a bracket too many")
        return node

    def _alternatives(self) -> _Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _error(self.pattern, "has too many brackets")
        options = [self._sequence()]
        while self._takes("|"):
            options.append(self._sequence())
        self.depth -= 1

        def follow(text: str, starts: set[int]) -> set[int]:
            return set().union(*(option(text, starts) for option in options))

        return follow if len(options) > 1 else options[0]

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            parts.append(self._repeated(self._atom()))

        def follow(text: str, starts: set[int]) -> set[int]:
            for part in parts:
                starts = part(text, starts)
            return starts

        return follow

    def _repeated(self, node: _Node) -> _Node:
        if self._takes("*"):
            least, most = 0, None
        elif self._takes("+"):
            least, most = 1, None
        elif self._takes("?"):
            least, most = 0, 1
        elif self._takes("{"):
            least, most = self._braces()
        else:
            return node
        self._takes("?")  # a lazy repetition matches the same whole texts
        if self.at < len(self.pattern) and self.pattern[self.at] in "*+?{":
            raise _error(self.pattern, "repeats a repetition")

        def follow(text: str, starts: set[int]) -> set[int]:
            for _ in range(least):
                starts = node(text, starts)
            reached, new, rounds = set(starts), starts, 0
            while new and (most is None or rounds < most - least):
                self.count(len(new))
                new = node(text, new) - reached
                reached |= new
                rounds += 1
            return reached

        return follow

    def _braces(self) -> tuple[int, int | None]:
        inner, closing, rest = self.pattern[self.at :].partition("}")
        first, comma, last = inner.partition(",")
        if not closing or not all(part.isdecimal() or not part for part in (first, last)):
            raise _error(self.pattern, "has braces without numbers")
        self.at = len(self.pattern) - len(rest)
        least = int(first or 0)
        most = (int(last) if last else None) if comma else least
        if max(least, most or 0) > _MAX_COUNT or (most is not None and most < least):
            raise _error(self.pattern, "has a wrong number in braces")
        return least, most

    def _atom(self) -> _Node:
        character = self.pattern[self.at]
        self.at += 1
        if character == "(":
            if self._takes("?") and not self._takes(":"):
                raise _error(self.pattern, "looks around or back, which is not read here")
            node = self._alternatives()
            if not self._takes(")"):
                raise _error(self.pattern, "has a bracket without an end")
            return node
        if character == "^":
            return lambda text, starts: starts & {0}
        if character == "$":
            return lambda text, starts: starts & {len(text)}
        if character == ".":
            return self._one(lambda other: other != "\n")
        if character == "[":
            return self._one(self._class())
        if character == "\\":
            return self._one(self._escaped())
        if character in "*+?{":
            raise _error(self.pattern, "repeats nothing")
        return self._one(lambda other: other == character)

    def _one(self, accepts: Callable[[str], bool]) -> _Node:
        def follow(text: str, starts: set[int]) -> set[int]:
            self.count(len(starts))
            return {at + 1 for at in starts if at < len(text) and accepts(text[at])}

        return follow

    def _escaped(self) -> Callable[[str], bool]:
        if self.at == len(self.pattern):
            raise _error(self.pattern, "ends in a backslash")
        character = self.pattern[self.at]
        self.at += 1
        if character.lower() in _CLASSES:
            accepts = _CLASSES[character.lower()]
            return accepts if character.islower() else lambda other: not accepts(other)
        if character in string.ascii_letters + string.digits:
            raise _error(self.pattern, f"uses \\{character}, which is not read here")
        return lambda other: other == character

    def _class(self) -> Callable[[str], bool]:
        is_negated = self._takes("^")
        accepted: list[Callable[[str], bool]] = []
        while not accepted or not self._takes("]"):  # a first one is a character
            if self.at >= len(self.pattern):
                raise _error(self.pattern, "has a bracket without an end")
            first = self.pattern[self.at]
            self.at += 1
            if first == "\\":
                accepted.append(self._escaped())
                continue
            last = first
            if self.pattern[self.at : self.at + 1] == "-" and self.pattern[
                self.at + 1 : self.at + 2
            ] not in ("", "]", "\\"):
                last = self.pattern[self.at + 1]
                self.at += 2
            accepted.append(lambda other, first=first, last=last: first <= other <= last)  # type: ignore[misc]
        return lambda other: _any(accepted, other) != is_negated

    def _takes(self, character: str) -> bool:
        is_next = self.pattern[self.at : self.at + 1] == character
        self.at += is_next
        return is_next


def _any(predicates: Iterable[Callable[[str], bool]], character: str) -> bool:
    return any(accepts(character) for accepts in predicates)
