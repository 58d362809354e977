"""Draws the tree of a search: a dot for each candidate, and a line for the path taken.

This module computes where everything is; `page.html.j2` draws it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from llavacot_mlx.trace.record import NodeRecord, SearchRecord

_MAX_LEAVES = 64  # dots beside each other; a phone cannot show more
_PHONE = 320.0  # pixels that the drawing has on a phone; sizes below are pixels there
_LEAF = 26.0
_RADIUS = 9.0
_ROW = 50.0
_LABELS = 0.27  # of the width, at the left
_NUMBERED_UP_TO = 13  # leaves; with more, the numbers are too small on a phone


@dataclass(frozen=True)
class RetraceMark:
    """The dotted line to the left of a round that a retrace began."""

    x: float
    y: float
    round: int
    """Counted from 1."""


@dataclass(frozen=True)
class Edge:
    """The line from a node to one that continues it."""

    curve: str
    """The `d` of an SVG path."""
    on_path: bool


@dataclass(frozen=True)
class RowLabel:
    """The name of the stage that a row of nodes writes."""

    y: float
    text: str


@dataclass(frozen=True)
class Dot:
    """The circle of a node."""

    x: float
    y: float
    number: int
    css_class: str
    title: str


@dataclass(frozen=True)
class SearchTree:
    """Everything in the drawing, in units of its own: `scale` of them are a pixel on a phone."""

    retrace_marks: tuple[RetraceMark, ...]
    edges: tuple[Edge, ...]
    labels: tuple[RowLabel, ...]
    dots: tuple[Dot, ...]
    top: float
    bottom: float
    width: float
    scale: float
    dense: bool
    """Whether the numbers in the dots would be too small on a phone."""
    radius: float = _RADIUS

    @property
    def height(self) -> float:
        below = 18 * self.scale if self.retrace_marks else 0  # the marks stand under the tree
        return self.bottom + below - self.top

    @property
    def max_width(self) -> float:
        """In pixels."""
        return max(self.width, 400)


def search_tree(search: SearchRecord, path: Collection[int]) -> SearchTree | None:
    """Lays out the tree of a search; its dots link to the elements `c1`, `c2`, ….

    `path` has the nodes of the path taken. Rounds stand side by side, the first at the left.
    Returns None if a drawing would not help: no candidate continues another, or there are too many
    for a phone.
    """
    columns, depths = _columns(search.nodes), _depths(search.nodes)
    leaves = 1 + int(max(columns, default=0.0))
    if max(depths, default=0) == 0 or leaves > _MAX_LEAVES:
        return None
    layout = _lay_out(columns, depths, leaves)
    return SearchTree(
        retrace_marks=tuple(_retrace_marks(search, layout)),
        edges=tuple(_edges(search.nodes, path, layout)),
        labels=tuple(_labels(search.nodes, depths, layout)),
        dots=tuple(_dots(search, path, layout)),
        top=layout.top,
        bottom=layout.bottom,
        width=layout.width,
        scale=layout.scale,
        dense=leaves > _NUMBERED_UP_TO,
    )


@dataclass(frozen=True)
class _Layout:
    """Where the nodes are, in the units of the drawing."""

    x: Sequence[float]
    """The center of each node."""
    y: Sequence[float]
    row: float
    """From one row of nodes to the next."""
    width: float
    top: float
    bottom: float
    scale: float
    """Units per pixel on a phone; labels grow by it to stay readable there."""


def _lay_out(columns: Sequence[float], depths: Sequence[int], leaves: int) -> _Layout:
    width = max(leaves * _LEAF / (1 - _LABELS), _PHONE)
    indent = width * _LABELS + (width * (1 - _LABELS) - (leaves - 1) * _LEAF) / 2
    scale = width / _PHONE
    row = max(_ROW, 38 * scale)
    return _Layout(
        x=[indent + column * _LEAF for column in columns],
        y=[depth * row for depth in depths],
        row=row,
        width=width,
        top=-_RADIUS - 4,
        bottom=max(depths) * row + _RADIUS + 6,
        scale=scale,
    )


def _columns(nodes: Sequence[NodeRecord]) -> list[float]:
    """The column of each node: a leaf has one of its own, a parent stands above its children."""
    children: dict[int | None, list[int]] = {}
    for node in nodes:
        children.setdefault(node.parent, []).append(node.id)
    order: list[int] = []
    waiting = children.get(None, [])[::-1]
    while waiting:  # depth first, and without recursion: a path may have thousands of sentences
        node_id = waiting.pop()
        order.append(node_id)
        waiting += children.get(node_id, [])[::-1]
    columns = [0.0] * len(nodes)
    leaves = 0
    for node_id in order:
        if node_id not in children:
            columns[node_id] = leaves
            leaves += 1
    for node_id in reversed(order):
        if node_id in children:
            below = [columns[child] for child in children[node_id]]
            columns[node_id] = (below[0] + below[-1]) / 2
    return columns


def _depths(nodes: Sequence[NodeRecord]) -> list[int]:
    depths: list[int] = []
    for node in nodes:
        depths.append(0 if node.parent is None else depths[node.parent] + 1)
    return depths


def _retrace_marks(search: SearchRecord, layout: _Layout) -> Iterator[RetraceMark]:
    """One mark before each round but the first."""
    last_round = 0
    for choice in search.choices:
        if choice.round > last_round and choice.nodes:
            last_round = choice.round
            first = choice.nodes[0]
            below = [node.id for node in search.nodes if first in _lineage(search.nodes, node.id)]
            x = min(layout.x[node] for node in below) - _LEAF / 2
            y = layout.y[first] - layout.row * 0.45
            yield RetraceMark(x, y, choice.round + 1)


def _lineage(nodes: Sequence[NodeRecord], node: int | None) -> Iterator[int]:
    """A node and its ancestors, up to the first."""
    while node is not None:
        yield node
        node = nodes[node].parent


def _edges(nodes: Sequence[NodeRecord], path: Collection[int], layout: _Layout) -> Iterator[Edge]:
    for taken in (False, True):  # the path last, so that it lies on top
        for node in nodes:
            if node.parent is not None and (node.id in path) is taken:
                x, y = layout.x[node.id], layout.y[node.id]
                above, middle = layout.x[node.parent], y - layout.row / 2
                curve = f"M{above:.1f} {y - layout.row:.1f}C{above:.1f} {middle:.1f} "
                curve += f"{x:.1f} {middle:.1f} {x:.1f} {y:.1f}"
                yield Edge(curve, on_path=taken)


def _labels(
    nodes: Sequence[NodeRecord], depths: Sequence[int], layout: _Layout
) -> Iterator[RowLabel]:
    """The stage that each row writes, unless the row above writes the same."""
    label = ""
    stages: dict[int, str] = {}
    for node in nodes:
        if node.stage is not None:
            stages.setdefault(depths[node.id], node.stage.value.capitalize())
    for depth, stage in sorted(stages.items()):
        if stage != label:
            label = stage
            yield RowLabel(depth * layout.row, stage)


def _dots(search: SearchRecord, path: Collection[int], layout: _Layout) -> Iterator[Dot]:
    kept = {node for choice in search.choices for node in choice.kept}
    for node in search.nodes:
        name = "path" if node.id in path else "kept" if node.id in kept else "dropped"
        fate = "on the path taken" if name == "path" else name
        score = "" if node.score is None else f", {node.score:.2f}"
        if not node.closed:
            name += " cut"
        number = node.id + 1
        title = f"{number}: {fate}{score}"
        yield Dot(layout.x[node.id], layout.y[node.id], number, name, title)
