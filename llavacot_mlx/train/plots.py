"""Draws figures of datasets and of trainings as PNG files."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llavacot_mlx.atomic import check_can_write, write_file
from llavacot_mlx.errors import UserError
from llavacot_mlx.train.data.stats import Stats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

STATS_SIZE = (1600, 1000)
"""Width and height of the figure of `draw_stats`, in pixels."""
CURVE_SIZE = (1200, 700)
"""Width and height of the figures of `draw_curve` and `draw_curves`, in pixels."""

_DPI = 100
_BLUE, _ORANGE, _GRAY = "#2f6db5", "#d9752b", "#6b7280"
_STAGE_COLORS = ("#2f6db5", "#3a9d6e", "#d9752b", "#8a5bb5")
_KINDS = ("summary", "caption", "reasoning", "conclusion", "tags")  # of losses in the log
_KIND_COLORS = (*_STAGE_COLORS, _GRAY)
_BINS = 40
_MAX_SOURCES = 12  # bars; the last one stands for all other sources
_LEAST_SOURCES = 6  # bars that there is room for, even if there are fewer
_MAX_NAME = 24  # characters of a source's name
_SMOOTHED = 60  # points of a line; from twice as many on, the line shows running means


def check_can_draw(file: Path) -> None:
    """Raises UserError if `file` could not be drawn; call it before the work that needs the figure.

    matplotlib is installed only with `llavacot-mlx[plots]`.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError(
            f"{file}: matplotlib is needed to draw it: pip install 'llavacot-mlx[plots]'"
        ) from None
    check_can_write(file)


def draw_stats(stats: Stats, file: Path) -> None:
    """Draws the lengths of stages and rows, the sources, and the tiles.

    Raises UserError as `check_can_draw` does.
    """
    figure = new_figure(file, STATS_SIZE)
    grid = figure.add_gridspec(3, 4, height_ratios=(1, 1, 1.15))
    # Each stage has its own scale: on a common one, the short stages would be a single bar.
    for column, (stage, counts) in enumerate(stats.stages.items()):
        axes = figure.add_subplot(grid[0, column])
        _draw_histogram(axes, counts, int(counts.max(initial=1)), _STAGE_COLORS[column])
        axes.set_title(f"{stage.tag}, tokens an answer")
    axes = figure.add_subplot(grid[1, :])
    _draw_histogram(axes, stats.tokens, int(stats.tokens.max(initial=1)), _GRAY)
    axes.set_title("tokens per row, including the question and the image token")
    axes = figure.add_subplot(grid[2, :3])
    _draw_sources(axes, stats.sources)
    axes = figure.add_subplot(grid[2, 3])
    _draw_tiles(axes, stats.tiles)
    figure.suptitle(f"{stats.rows:,} rows, {stats.answers:,} answers", fontsize=15)
    save_figure(figure, file)


def draw_curve(rows: Sequence[Mapping[str, Any]], file: Path, title: str) -> None:
    """Draws the losses of a training log over its steps, and the validation's by stage beside them.

    `rows` are the rows of the log: each has a `step`, and `loss`, `val_loss` or neither. `title`
    says what was trained on what. Raises UserError as `check_can_draw` does.
    """
    figure = new_figure(file, CURVE_SIZE)
    stages = {kind: _points(rows, f"val_loss_{kind}") for kind in _KINDS}
    by_stage = any(steps.size for steps, _ in stages.values())
    axes, *beside = figure.subplots(1, 2 if by_stage else 1, squeeze=False)[0]
    _draw_training(axes, rows, _BLUE, "training")
    _draw_validation(axes, rows)
    _finish_curve(axes)
    axes.set_title("all tokens")
    for right in beside:
        for (kind, (steps, losses)), color in zip(stages.items(), _KIND_COLORS, strict=True):
            if not steps.size:
                continue
            right.plot(steps, losses, color=color, marker="o", markersize=4, label=kind)
        _finish_curve(right)
        right.set_title("validation, by stage")
    figure.suptitle(title.replace("$", r"\$"), fontsize=13)
    save_figure(figure, file)


def draw_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]], file: Path) -> None:
    """Draws the training losses of several runs in one figure, over their steps.

    `logs` maps the name of each run to its rows, as for `draw_curve`. Raises UserError as
    `check_can_draw` does.
    """
    figure = new_figure(file, CURVE_SIZE)
    axes = figure.add_subplot()
    for number, (name, rows) in enumerate(logs.items()):
        _draw_training(axes, rows, f"C{number}", name)
    _finish_curve(axes)
    save_figure(figure, file)


def _draw_training(axes: Axes, rows: Sequence[Mapping[str, Any]], color: str, name: str) -> None:
    """Draws the reported losses; if there are many, faintly, with a running mean over them."""
    steps, losses = _points(rows, "loss")
    window = max(1, len(losses) // _SMOOTHED)
    if window > 1:
        axes.plot(steps, losses, color=color, alpha=0.25, linewidth=1)
        label = f"{name}, mean of {window} reports"
        axes.plot(steps, _running_mean(losses, window), color=color, label=label)
    elif losses.size:
        axes.plot(steps, losses, color=color, marker=".", label=name)


def _draw_validation(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws the validation losses; the legend has the last one's value."""
    steps, losses = _points(rows, "val_loss")
    if losses.size:
        label = f"validation, {losses[-1]:.3f} at the end"
        axes.plot(steps, losses, color=_ORANGE, marker="o", markersize=5, label=label)


def _finish_curve(axes: Axes) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    label_counts(axes.xaxis)
    style_axes(axes)
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        axes.legend(frameon=False)
    elif labels:
        axes.set_ylabel(f"loss of {labels[0]}, nats a token")  # a legend of one entry says no more
    if not handles:
        _draw_none(axes)


def new_figure(file: Path, size: tuple[int, int]) -> Figure:
    """An empty figure of `size` pixels. Raises UserError as `check_can_draw` does for `file`."""
    check_can_draw(file)
    from matplotlib.figure import Figure  # not pyplot, which would look for a screen

    width, height = size
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, layout="constrained")
    pads = {"w_pad": 0.15, "h_pad": 0.15, "wspace": 0.02, "hspace": 0.04}  # inches, then fractions
    figure.get_layout_engine().set(**pads)  # type: ignore[union-attr]
    return figure


def save_figure(figure: Figure, file: Path) -> None:
    """Writes a figure as a PNG file. Raises UserError when that fails."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the font lacks characters of a folder's name
        figure.savefig(buffer, format="png", dpi=_DPI)
    write_file(file, buffer.getvalue())


def _draw_histogram(axes: Axes, counts: np.ndarray, longest: int, color: str) -> None:
    """Draws a histogram of whole numbers up to `longest`, with a line at the median."""
    style_axes(axes)
    if not counts.size:
        _draw_none(axes)
        return
    width = max(1, math.ceil(longest / _BINS))
    axes.hist(counts, bins=range(0, longest + width + 1, width), color=color, alpha=0.85)
    median = float(np.median(counts))
    axes.axvline(median, color="black", linewidth=1, linestyle="--")
    axes.text(
        0.98,
        0.93,
        f"median {median:,.10g}\nmax {counts.max():,}",
        transform=axes.transAxes,
        ha="right",
        va="top",
    )
    axes.set_xlim(0, longest + width)
    label_counts(axes.xaxis)
    label_counts(axes.yaxis)


def _draw_sources(axes: Axes, sources: Mapping[str, int]) -> None:
    axes.set_title("rows by source (the first folder of the image path)")
    style_axes(axes, grid="x")
    if not sources:
        _draw_none(axes)
        return
    bars = list(sources.items())
    if len(bars) > _MAX_SOURCES:
        others = bars[_MAX_SOURCES - 1 :]
        rest = sum(rows for _, rows in others)
        bars = [*bars[: _MAX_SOURCES - 1], (f"{len(others)} others", rest)]
    names = [name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…" for name, _ in bars]
    positions = range(len(bars))  # not the names, because two may be shortened to the same one
    drawn = axes.barh(positions, [rows for _, rows in bars], color=_BLUE, height=0.7)
    # A $ in a folder's name would begin a formula.
    axes.set_yticks(positions, [name.replace("$", r"\$") for name in names])
    axes.bar_label(drawn, labels=[f"{rows:,}" for _, rows in bars], padding=4)
    # Room for a few bars in any case: a single one would fill the figure.
    axes.set_ylim(max(len(bars), _LEAST_SOURCES) - 0.5, -0.5)
    axes.margins(x=0.1)
    label_counts(axes.xaxis)


def _draw_tiles(axes: Axes, tiles: Mapping[int, int]) -> None:
    axes.set_title("rows by number of tiles of the image")
    style_axes(axes)
    if not tiles:
        _draw_none(axes)
        return
    axes.bar([str(count) for count in tiles], list(tiles.values()), color=_BLUE)
    label_counts(axes.yaxis)


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses of the rows with a finite loss."""
    found = [
        (row["step"], row[key])
        for row in rows
        if row.get(key) is not None and math.isfinite(row[key])
    ]
    points = np.array(found, dtype=np.float64).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of each value and up to `window - 1` values before it."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    stops = np.arange(1, len(values) + 1)
    starts = np.maximum(stops - window, 0)
    return (sums[stops] - sums[starts]) / (stops - starts)


def _draw_none(axes: Axes) -> None:
    """Writes "none" instead of a scale, for an empty figure."""
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", color=_GRAY)


def label_counts(axis: Axis) -> None:
    """Labels the axis with whole numbers, with a comma between thousands."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def style_axes(axes: Axes, grid: str = "y") -> None:
    """Removes the frame's top and right sides, and draws a faint grid."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis=grid, color="#e5e7eb")  # type: ignore[arg-type]
    axes.set_axisbelow(True)
