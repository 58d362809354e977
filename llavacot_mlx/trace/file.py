"""Reads and writes trace files: a trace, and the image that was asked about.

The object that `--json` prints, and beside its keys
`"picture": {"media_type": "image/png", "base64": "…"}`: the bytes of the picture as they were
given. What `--json` printed is read as well; it has no picture.
"""

from __future__ import annotations

import base64
import copy
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llavacot_mlx.atomic import write_file
from llavacot_mlx.bounded_read import NotRegularError, TooLargeError, read_file
from llavacot_mlx.checked import checked, decode_text, parse_json
from llavacot_mlx.errors import UserError
from llavacot_mlx.prompt.stages import Closed, Stage, StageParser
from llavacot_mlx.trace.events import (
    CandidateEnded,
    CandidateScored,
    CandidatesKept,
    CandidateStarted,
    CandidateText,
    LoggedEvent,
    Noticed,
    Retraced,
)
from llavacot_mlx.trace.record import RULES, SearchRecord, Trace

MAX_TRACE_BYTES = 200_000_000
"""Of a trace file: far more than any search, and than nearly any picture. Read, it takes some times
as much."""
MAX_TRACED_IMAGE = 140_000_000
"""Bytes of a picture in a trace, where they take a third more, beside the search."""

_MEDIA_TYPES = {  # by the first bytes of a file; `?` is any byte
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF????WEBP": "image/webp",
    b"????ftyphei": "image/heic",
    b"????ftypmif1": "image/heif",
    b"????ftypavif": "image/avif",
    b"BM": "image/bmp",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
}


@dataclass(frozen=True)
class StoredTrace:
    """The contents of a trace file."""

    trace: Trace
    image_bytes: bytes | None
    """The image file as it was given, not decoded; None without an image."""


@dataclass(frozen=True)
class _StoredImage:
    """An image as it is stored in the file."""

    media_type: str
    base64: str


def write_trace(file: Path, trace: Trace, image_bytes: bytes | None) -> None:
    """Writes a trace file, and replaces an existing one.

    Raises UserError when that fails; the file is then as it was before. Call
    `atomic.check_can_write` to find out beforehand whether the file can be written.
    """
    value = trace.to_dict_with_log()
    if image_bytes is not None:
        encoded = base64.b64encode(image_bytes).decode("ascii")
        value["picture"] = {"media_type": media_type(image_bytes), "base64": encoded}
    text = json.dumps(value, ensure_ascii=False)
    # A file name that is not UTF-8 becomes an escape, which JSON understands.
    write_file(file, text.encode(errors="backslashreplace") + b"\n")


def read_trace(file: Path) -> StoredTrace:
    """Reads a trace file. Raises UserError that names the file, and the key that is wrong."""
    try:
        data = read_file(file.expanduser(), MAX_TRACE_BYTES)
    except FileNotFoundError:
        raise UserError(f"{file}: there is no such trace") from None
    except IsADirectoryError:
        raise UserError(f"{file}: a folder, not a trace") from None
    except (NotRegularError, TooLargeError) as problem:
        raise UserError(f"{file}: {problem.strerror}, so not a trace") from None
    except (OSError, RuntimeError, ValueError) as problem:  # such as ~nobody, or a NUL
        said = getattr(problem, "strerror", None) or problem
        raise UserError(f"{file}: cannot be read: {said}") from None
    return parse_trace(data, str(file))


def parse_trace(data: bytes, name: str) -> StoredTrace:
    """Parses the bytes of a trace file. Raises UserError that starts with `name`."""
    if not data.strip():
        raise UserError(f"{name}: empty")
    try:
        value = parse_json(decode_text(data), constants=False)
    except RecursionError:
        raise UserError(f"{name}: not a trace: nested too deep") from None
    except ValueError as problem:
        raise UserError(f"{name}: not JSON, so not a trace: {problem}") from None
    try:
        image_bytes = _pop_image(value)
        trace = Trace.from_dict(value)
        if not trace.events:
            trace = replace(trace, events=tuple(events_of_old_trace(trace)))
        return StoredTrace(trace, image_bytes)
    except UserError as problem:
        raise UserError(f"{name}: {problem}") from None


def events_of_old_trace(trace: Trace) -> Iterator[LoggedEvent]:
    """Yields a log for a trace that was written before traces had one.

    Each round's candidates start, write, end, are scored, and are chosen from. Such a trace does
    not say when a notice came, so notices come first.
    """
    for notice in trace.search.notices:
        yield Noticed(notice)
    if not trace.search.nodes:
        yield from trace.stage_events()
        return
    search, choices = trace.search, trace.search.choices
    stages = _stages_after(search)
    for choice, following in itertools.zip_longest(choices, choices[1:]):
        # Where candidates were dropped, a judge was asked, even if it came to no verdict.
        dropped = not set(choice.nodes) <= set(choice.kept)
        yield from _events_of_old_round(search, stages, choice.nodes, judged=dropped)
        yield CandidatesKept(choice.kept)
        next_round = choice.round if following is None else following.round
        if choice.back_to is not None or next_round > choice.round:
            yield Retraced(choice.back_to, choice.round + 1)
    chosen_from = sum(len(choice.nodes) for choice in choices)
    open_round = tuple(range(chosen_from, len(search.nodes)))
    yield from _events_of_old_round(search, stages, open_round, stopped=True)


def _events_of_old_round(
    search: SearchRecord,
    stages: Sequence[Stage | None],
    numbers: tuple[int, ...],
    *,
    judged: bool = False,
    stopped: bool = False,
) -> Iterator[LoggedEvent]:
    """Yields the events of the candidates `numbers` up to their scores.

    `stages` are those of `_stages_after`. With `judged`, candidates without a score have an event,
    too. With `stopped`, some may not have ended.
    """
    nodes = [search.nodes[number] for number in numbers]
    for node in nodes:
        stage = Stage.SUMMARY if node.parent is None else stages[node.parent]
        yield CandidateStarted(node.id, node.parent, stage, node.round)
    for node in nodes:
        if node.text:
            yield CandidateText(node.id, node.text)
        # A node has a stage only once it has ended.
        if not stopped or node.stage is not None:
            yield CandidateEnded(node.id, node.stage, node.closed, node.tokens)
    if not stopped:  # a round is judged as a whole
        judged = judged or any(node.score is not None for node in nodes)
    for node in nodes:
        if judged or node.score is not None:
            yield CandidateScored(node.id, node.score)


def _stages_after(search: SearchRecord) -> list[Stage | None]:
    """The stage that each node's children write: the open one of its path, or the next."""
    ends: list[tuple[StageParser, Stage | None]] = []  # of each path, its last closed stage, too
    found: list[Stage | None] = []
    for node in search.nodes:
        if node.parent is None:
            parser, closed = StageParser(exact=True), None
        else:
            before, closed = ends[node.parent]
            parser = copy.deepcopy(before)
        for event in parser.feed(node.text):
            if isinstance(event, Closed):
                closed = event.stage
        ends.append((parser, closed))
        following = Stage.SUMMARY if closed is None else closed.following
        found.append(parser.stage or following)
    return found


def media_type(image_bytes: bytes) -> str:
    """Returns the media type of an image file, from its first bytes."""
    for begin, name in _MEDIA_TYPES.items():
        pairs = zip(begin, image_bytes, strict=False)
        if len(image_bytes) >= len(begin) and all(want in (ord("?"), got) for want, got in pairs):
            return name
    return "application/octet-stream"


def _pop_image(value: Any) -> bytes | None:
    """Removes the image from the object that was read, and returns its bytes."""
    if not isinstance(value, dict) or "picture" not in value:
        return None
    stored = checked(_StoredImage, value.pop("picture"), RULES, "picture")
    try:
        return base64.b64decode(stored.base64, validate=True)
    except ValueError as problem:
        raise UserError(f"picture.base64: {problem}") from None
