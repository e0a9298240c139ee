"""What the figures of a report share: looks, panels, axes, points and bands."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from experiments.reporting.summary import Column, Estimate, MethodSummary, Summary

INK, MUTED, BAND = "#222222", "#6b6b6b", "#e9e9e9"
WIDTH = 10.0  # inches, for all: their text has one size when a page scales them
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^")
GREYS = {"original": "#6b6b6b", "retrain": "#222222", "retrain_again": "#9a9a9a"}

styled = matplotlib.rc_context(
    {
        "font.size": 11,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "grid.color": "#dddddd",
        "legend.frameon": False,
    }
)


class Look(NamedTuple):
    """How a method is drawn in every figure."""

    colour: str
    marker: str


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """A colour and marker for each method: greys for baselines, then by position.

    Example:
      >>> looks(["original", "salun", "semu"])["semu"]
      Look(colour='#D55E00', marker='o')
    """
    others = [m for m in methods if m not in GREYS]
    given = {m: Look(colour, "X") for m, colour in GREYS.items()}
    for i, method in enumerate(others):
        marker = MARKERS[i // len(PALETTE) % len(MARKERS)]
        given[method] = Look(PALETTE[i % len(PALETTE)], marker)
    return {m: given[m] for m in methods}


def blank(height: float) -> Figure:
    """An empty figure of the common width with its own canvas."""
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.08))
    FigureCanvasAgg(figure)
    return figure


def nothing(message: str) -> Figure:
    """A figure that says why it is empty."""
    figure = blank(1.5)
    figure.text(0.5, 0.5, message, ha="center", va="center", color=MUTED)
    return figure


def panels(
    shown: Sequence[str],
    methods: Mapping[str, str],
    draw: Callable[[Axes, str], None],
    xlabel: str,
    ylabel: str,
    share_y: bool = True,
    share_x: bool = True,
) -> Figure:
    """One small panel for each method, its name above in its colour."""
    across = min(len(shown), 3 if len(shown) in (5, 6, 9) else 4)
    down = -(-len(shown) // across)
    figure = blank(1.0 + 1.75 * down)
    style, first = looks(list(methods)), None
    for i, method in enumerate(shown):
        axes = figure.add_subplot(
            down, across, i + 1, sharey=first if share_y else None
        )
        first = first or axes
        draw(axes, method)
        axes.set_title(methods[method], color=style[method].colour, weight="bold")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.tick_params(labelleft=not share_y or i % across == 0)
        axes.tick_params(labelbottom=not share_x or i >= len(shown) - across)
    figure.supxlabel(xlabel, fontsize=11)
    figure.supylabel(ylabel, fontsize=11)
    return figure


def colour_key(figure: Figure, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """One line above the panels that says which colour is what."""
    handles = [Line2D([], [], label=name, **look) for name, look in entries.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))


def methods_axis(axes: Axes, labels: Sequence[str], shown: bool = True) -> None:
    """Methods from top to bottom, one thin line each."""
    axes.set_yticks(range(len(labels)), labels if shown else [])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)


def row_label(entry: MethodSummary) -> str:
    """Name on an axis; says how many runs diverged."""
    runs = entry.seeds + entry.diverged
    return entry.label + (f" ({entry.diverged}/{runs} div.)" if entry.diverged else "")


def mean_of(entry: MethodSummary, column: Column) -> float | None:
    """A method's mean of a column."""
    return entry.values[column.key].mean


def point(
    summary: Summary, entry: MethodSummary, column: Column
) -> tuple[float, float] | None:
    """Where a method stands in a metric, and the half-width of its bar."""
    anchor = summary.get(summary.reference)
    mean = mean_of(anchor, column) if anchor else None
    estimate = entry.values[column.key]
    if mean is not None and (paired := entry.differences.get(column.key)):
        estimate = Estimate(
            None if paired.mean is None else mean + paired.mean,
            paired.half_width,
            paired.count,
        )
    elif entry is anchor:
        estimate = Estimate(mean, None, estimate.count)
    if estimate.mean is None:
        return None
    return estimate.mean, estimate.half_width or 0.0


def retrain_band(axes: Axes, summary: Summary, column: Column) -> None:
    """The line of Retrain and how far a second Retrain strays from it."""
    anchor, floor = summary.get(summary.reference), summary.get(summary.floor)
    mean = mean_of(anchor, column) if anchor else None
    if mean is None:
        return
    axes.axvline(mean, color=INK, lw=1.2, zorder=1)
    stray = floor.differences[column.key] if floor else None
    if stray and stray.mean is not None:
        reach = abs(stray.mean) + (stray.half_width or 0.0)
        axes.axvspan(mean - reach, mean + reach, color=BAND, lw=0, zorder=0)


def visible_range(
    means: Sequence[float], halves: Sequence[float]
) -> tuple[float, float]:
    """A range over all points and bars but far outliers, which would flatten it."""
    points = np.asarray(means)
    centre = float(np.median(points))
    away = np.abs(points - centre)
    apart = away[away > 1e-9 * max(1.0, abs(centre))]  # more than rounding
    tolerance = 10 * float(np.median(apart)) if apart.size else 1.0
    reach, kept = np.minimum(halves, tolerance), away <= tolerance
    low, high = np.min((points - reach)[kept]), np.max((points + reach)[kept])
    margin = 0.06 * max(high - low, 1e-9 + 0.01 * abs(centre))
    return float(low - margin), float(high + margin)


def dot(
    axes: Axes, x: float, half: float, y: float, look: Look, decimals: int | None
) -> None:
    """A point with its bar; out of range, an arrow at the edge with its value."""
    low, high = axes.get_xlim()
    if low <= x <= high:
        style = {"color": look.colour, "ecolor": look.colour, "elinewidth": 1.8}
        axes.errorbar(x, y, xerr=half or None, fmt=look.marker, ms=6, **style)
        axes.set_xlim(low, high)
        return
    right = x > high
    edge = 0.98 if right else 0.02
    where = axes.get_yaxis_transform()
    axes.plot(edge, y, ">" if right else "<", color=look.colour, transform=where, ms=7)
    if decimals is not None:
        axes.annotate(
            f"{x:.{decimals}f}",
            (edge, y),
            (-7 if right else 7, 0),
            xycoords=where,
            textcoords="offset points",
            ha="right" if right else "left",
            va="center",
            color=look.colour,
            fontsize=9,
        )


def words(estimate: Estimate, column: Column) -> str:
    """An estimate beside its row."""
    if estimate.mean is None:
        return "—"
    text = f"{estimate.mean:.{column.decimals}f}"
    if estimate.half_width is None:
        return text
    return f"{text} ± {estimate.half_width:.{column.decimals}f}"


def over_seeds(
    runs: Sequence[Mapping[str, Sequence[float | None]]], name: str
) -> tuple[np.ndarray, ...] | None:
    """Epochs, mean, lowest and highest of the finite numbers of all seeds."""
    pairs = [
        (epoch, value)
        for run in runs
        for epoch, value in zip(run["epoch"], run[name], strict=False)
        if value is not None and np.isfinite(value)
    ]
    if not pairs:
        return None
    epochs, values = np.asarray(pairs, float).T
    ticks = np.unique(epochs)
    groups = [values[epochs == tick] for tick in ticks]
    reduced = [[f(group) for group in groups] for f in (np.mean, np.min, np.max)]
    return (ticks, *np.asarray(reduced))
