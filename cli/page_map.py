"""The tree of a search as a small drawing: every candidate a dot, the path taken a line."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from llavacot_mlx.trace import NodeRecord, SearchRecord

_MOST_LEAVES = 64  # dots beside each other; a phone cannot show more
_PHONE = 320.0  # pixels that the drawing has on a phone; sizes below are pixels there
_LEAF = 26.0
_RADIUS = 9.0
_ROW = 50.0
_LABELS = 0.27  # of the width, at the left
_NUMBERED_UP_TO = 13  # leaves; with more, the numbers are too small on a phone


def tree_map(search: SearchRecord, path: Collection[int]) -> str:
    """An `<svg>` whose dots lead to the elements `c1`, `c2`, …; empty where it would not help.

    That is where no candidate goes on from another, and where there are too many for a phone.
    `path` has the nodes of the path taken. Rounds stand side by side, the first at the left.
    """
    columns, depths = _columns(search.nodes), _depths(search.nodes)
    leaves = 1 + int(max(columns, default=0.0))
    if max(depths, default=0) == 0 or leaves > _MOST_LEAVES:
        return ""
    layout = _laid_out(columns, depths, leaves)
    dense = " dense" if leaves > _NUMBERED_UP_TO else ""
    parts = [
        *_steps_back(search, layout),
        *_edges(search.nodes, path, layout),
        *_labels(search.nodes, depths, layout),
        *_dots(search, path, layout),
    ]
    return (
        f'<svg class="map{dense}" viewBox="0 {layout.top:.0f} {layout.width:.0f} '
        f'{layout.bottom - layout.top:.0f}" style="max-width:{max(layout.width, 400):.0f}px;'
        f'--scale:{layout.scale:.2f}" role="img" aria-label="The tree of {len(search.nodes)} '
        f'candidates; the list below tells the same">{"".join(parts)}</svg>'
    )


@dataclass(frozen=True)
class _Layout:
    """Where everything is, in the drawing's own units."""

    x: Sequence[float]
    """Of each node's middle."""
    y: Sequence[float]
    row: float
    """From one row of nodes to the next."""
    width: float
    top: float
    bottom: float
    scale: float
    """How much larger than on a phone it is: labels grow by that, to be read there."""


def _laid_out(columns: Sequence[float], depths: Sequence[int], leaves: int) -> _Layout:
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
    """Where each node stands from left to right: leaves one beside the other, parents above."""
    children: dict[int | None, list[int]] = {}
    for node in nodes:
        children.setdefault(node.parent, []).append(node.id)
    order: list[int] = []
    waiting = children.get(None, [])[::-1]
    while waiting:  # depth first, and without recursion: a path may have thousands of sentences
        at = waiting.pop()
        order.append(at)
        waiting += children.get(at, [])[::-1]
    places = [0.0] * len(nodes)
    leaves = 0
    for at in order:
        if at not in children:
            places[at] = leaves
            leaves += 1
    for at in reversed(order):
        if at in children:
            below = [places[child] for child in children[at]]
            places[at] = (below[0] + below[-1]) / 2
    return places


def _depths(nodes: Sequence[NodeRecord]) -> list[int]:
    depths: list[int] = []
    for node in nodes:
        depths.append(0 if node.parent is None else depths[node.parent] + 1)
    return depths


def _steps_back(search: SearchRecord, layout: _Layout) -> Iterator[str]:
    """A line before each round but the first, with its number."""
    told = 0
    for choice in search.choices:
        if choice.round > told and choice.nodes:
            told = choice.round
            first = choice.nodes[0]
            below = [node.id for node in search.nodes if first in _lineage(search.nodes, node.id)]
            at = min(layout.x[node] for node in below) - _LEAF / 2
            top = layout.y[first] - layout.row * 0.45
            yield f'<path class="back" d="M{at:.1f} {top:.1f}V{layout.bottom:.1f}"/>'
            text = f"↩{choice.round + 1}"
            yield f'<text class="back" x="{at + 4:.1f}" y="{top + 8:.1f}">{text}</text>'


def _lineage(nodes: Sequence[NodeRecord], at: int | None) -> Iterator[int]:
    """A node and those that it goes on from, up to the first."""
    while at is not None:
        yield at
        at = nodes[at].parent


def _edges(nodes: Sequence[NodeRecord], path: Collection[int], layout: _Layout) -> Iterator[str]:
    for taken in (False, True):  # the path last, so that it lies on top
        for node in nodes:
            if node.parent is not None and (node.id in path) is taken:
                x, y = layout.x[node.id], layout.y[node.id]
                above, middle = layout.x[node.parent], y - layout.row / 2
                curve = f"M{above:.1f} {y - layout.row:.1f}C{above:.1f} {middle:.1f} "
                curve += f"{x:.1f} {middle:.1f} {x:.1f} {y:.1f}"
                yield f'<path class="edge{" path" if taken else ""}" d="{curve}"/>'


def _labels(nodes: Sequence[NodeRecord], depths: Sequence[int], layout: _Layout) -> Iterator[str]:
    """The stage that each row writes, where it is not that of the row above."""
    told = ""
    stages: dict[int, str] = {}
    for node in nodes:
        if node.stage is not None:
            stages.setdefault(depths[node.id], node.stage.value.capitalize())
    for depth, stage in sorted(stages.items()):
        if stage != told:
            told = stage
            yield f'<text class="row" x="0" y="{depth * layout.row:.1f}">{stage}</text>'


def _dots(search: SearchRecord, path: Collection[int], layout: _Layout) -> Iterator[str]:
    kept = {node for choice in search.choices for node in choice.kept}
    for node in search.nodes:
        name = "path" if node.id in path else "kept" if node.id in kept else "dropped"
        fate = "on the path taken" if name == "path" else name
        score = "" if node.score is None else f", {node.score:.2f}"
        if not node.closed:
            name += " cut"
        x, y, number = layout.x[node.id], layout.y[node.id], node.id + 1
        yield (
            f'<a href="#c{number}" tabindex="-1"><title>{number}: {fate}{score}</title>'
            f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS:.0f}"/>'
            f'<text class="number {name}" x="{x:.1f}" y="{y + 3.4:.1f}">{number}</text></a>'
        )
