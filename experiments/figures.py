"""The plots of a report, each a pure function from numbers to a matplotlib Figure.

Figures are built without pyplot, so that nothing global is touched or left open.
A method keeps its colour and marker in every figure that names the same methods in
the same order; the colours are those of Okabe and Ito (2008), told apart by colour-
blind readers. Methods stand on an axis or above their own panel, so that no legend
of sixteen entries has to be looked up. What has no numbers is left out or said so.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from experiments.summary import Column, Estimate, MethodSummary, Summary

INK, MUTED, BAND = "#222222", "#6b6b6b", "#e9e9e9"
WIDTH = 10.0  # inches, for all: their text has one size when a page scales them
SPLITS = {"retain": "#0072B2", "test": "#009E73", "forget": "#D55E00"}
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "D", "^")
_BASELINES = {"original": "#6b6b6b", "retrain": "#222222", "retrain_again": "#9a9a9a"}

_style = matplotlib.rc_context(
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
    others = [m for m in methods if m not in _BASELINES]
    given = {m: Look(colour, "X") for m, colour in _BASELINES.items()}
    for i, method in enumerate(others):
        marker = _MARKERS[i // len(_PALETTE) % len(_MARKERS)]
        given[method] = Look(_PALETTE[i % len(_PALETTE)], marker)
    return {m: given[m] for m in methods}


@_style
def metric_comparison(summary: Summary) -> Figure:
    """Every metric of every method against Retrain, one panel a metric.

    A dot stands at Retrain's mean plus the difference to Retrain, and its bar is the
    interval of that difference, paired by seed: a bar off the line is a difference
    that seeds do not explain. The band reaches as far as a second Retrain's interval.
    A far outlier is an arrow with its value, so that it does not flatten the rest.
    Columns without ``reference`` are left out.

    Args:
      summary: of ``summary.summarise``.

    Returns:
      A figure of one panel for each column, all sharing the axis of methods.
    """
    columns = [c for c in summary.columns if c.reference]
    entries = [
        m
        for m in summary.methods
        if any(_point(summary, m, c) is not None for c in columns)
    ]
    if not entries:
        return _nothing("No finished run yet")
    across = min(len(columns), 4)
    down = -(-len(columns) // across)
    figure = _figure(down * (0.9 + 0.32 * len(entries)))
    style = looks([m.method for m in summary.methods])
    for i, column in enumerate(columns):
        axes = figure.add_subplot(down, across, i + 1)
        _methods_axis(axes, [_label(m) for m in entries], shown=i % across == 0)
        axes.set_title(column.label + (f" ({column.unit})" if column.unit else ""))
        _retrain_band(axes, summary, column)
        points = [_point(summary, m, column) for m in entries]
        shown = [p for p in points if p is not None]
        axes.set_xlim(_range(*zip(*shown, strict=True)) if shown else (0, 1))
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.ticklabel_format(axis="x", useOffset=False)
        for y, (entry, point) in enumerate(zip(entries, points, strict=True)):
            if point is not None:
                _dot(axes, *point, y, style[entry.method], column.decimals)
    return figure


@_style
def gap_chart(summary: Summary) -> Figure:
    """The gap to Retrain with its interval, smallest first, over the noise floor.

    Args:
      summary: of ``summary.summarise``, with its gap column.

    Returns:
      A figure of one panel; methods that only diverged stand last, as words.
    """
    column = next((c for c in summary.columns if c.key == summary.gap), None)
    entries = [m for m in summary.methods if m.method != summary.reference]
    if column is None or not any(_mean(m, column) is not None for m in entries):
        return _nothing("No gap to Retrain yet")
    entries.sort(key=lambda m: (_mean(m, column) is None, _mean(m, column) or 0.0))
    figure = _figure(1.1 + 0.34 * len(entries))
    axes = figure.add_subplot()
    _methods_axis(axes, [_label(m) for m in entries])
    axes.set_xlabel(
        f"{column.label} to {summary.label(summary.reference)}"
        + (f" ({column.unit})" if column.unit else "")
    )
    known = [m.values[column.key] for m in entries if _mean(m, column) is not None]
    means = [e.mean for e in known if e.mean is not None]
    _, most = _range([0.0, *means], [0.0, *(e.half_width or 0.0 for e in known)])
    axes.set_xlim(0.0, most)
    floor = summary.noise_floor.mean
    if floor is not None:
        axes.axvspan(0, floor, color=BAND, zorder=0, lw=0)
        axes.axvline(floor, color=MUTED, lw=1, zorder=1)
        axes.annotate(
            "noise floor",
            (floor, 1.0),
            (3, 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=MUTED,
        )
    style = looks([m.method for m in summary.methods])
    for y, entry in enumerate(entries):
        estimate = entry.values[column.key]
        if estimate.mean is not None:
            half = estimate.half_width or 0.0
            _dot(axes, estimate.mean, half, y, style[entry.method], None)
        axes.annotate(
            _words(estimate, column),
            (1.01, y),
            xycoords=("axes fraction", "data"),
            va="center",
            color=INK if estimate.mean is not None else MUTED,
        )
    return figure


@_style
def confidence_histograms(
    confidences: Mapping[tuple[str, str], Any], methods: Mapping[str, str]
) -> Figure:
    """How sure each model is of the true class, by split; one panel a method.

    A membership attack reads these numbers. Where forgetting worked, ``forget`` lies
    as it does under Retrain (the grey area), near ``test``. Shares are logarithmic,
    for most examples of most models are in the last bin.

    Args:
      confidences: ``{(method, split): p_y}`` with splits forget, retain, test and
        probabilities of the true class, pooled over seeds, of any shape.
      methods: ``{method: label}`` in the order shown.

    Returns:
      A figure of one panel for each method that has numbers.
    """
    bins = np.linspace(0.0, 1.0, 21)
    shares = {}
    for (method, split), values in confidences.items():
        values = np.asarray(values, float).ravel()
        values = values[np.isfinite(values)]
        if method in methods and split in SPLITS and values.size:
            counts, _ = np.histogram(np.clip(values, 0.0, 1.0), bins)
            shares[method, split] = counts / values.size
    shown = [m for m in methods if any((m, s) in shares for s in SPLITS)]
    if not shown:
        return _nothing("No confidences yet")
    least = min(h[h > 0].min() for h in shares.values())
    reference = shares.get(("retrain", "forget"))

    def draw(axes: Axes, method: str) -> None:
        axes.set_yscale("log", subs=[])
        axes.set_ylim(0.6 * least, 1.5)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g} %")
        base = 0.6 * least  # an empty bin reaches the floor of the axis
        if reference is not None:
            floor = np.maximum(reference, base)
            axes.stairs(floor, bins, baseline=base, fill=True, color="#dcdcdc")
        for split, colour in SPLITS.items():
            if (method, split) in shares:
                heights = np.maximum(shares[method, split], base)
                axes.stairs(heights, bins, baseline=None, color=colour, lw=1.6)

    figure = _panels(
        shown, methods, draw, "Confidence in the true class", "Share of examples"
    )
    entries: dict[str, Any] = {s: {"color": c, "lw": 2.5} for s, c in SPLITS.items()}
    if reference is not None:
        label = f"forget under {methods.get('retrain', 'Retrain')}"
        entries[label] = {"color": "#dcdcdc", "lw": 7}
    _key(figure, entries)
    return figure


@_style
def image_grids(
    images: Mapping[str, np.ndarray],
    methods: Mapping[str, str],
    classes: Sequence[str],
    forgotten: int,
) -> Figure:
    """Drawn images, a panel a method: a column for each class, the forgotten framed.

    Args:
      images: ``{method: uint8 (classes, rows, height, width, channels)}``.
      methods: ``{method: label}`` in the order shown.
      classes: names of the classes.
      forgotten: number of the class that had to be forgotten.

    Returns:
      A figure of one panel for each method that has images.
    """
    shown = [m for m in methods if m in images]
    if not shown:
        return _nothing("No images yet")
    columns = 3
    rows = -(-len(shown) // columns)
    margins = (0, 0), (0, 0), (1, 1), (1, 1), (0, 0)
    images = {m: np.pad(images[m], margins, constant_values=110) for m in shown}
    count, down, height, width, _ = images[shown[0]].shape
    figure = _figure(rows * (WIDTH / columns * down * height / (count * width) + 0.45))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, method in zip(panels, shown, strict=False):
        tiles = np.moveaxis(images[method], (1, 2), (0, 1))  # rows, height, classes
        picture = tiles.reshape(down * height, count * width, -1)
        if picture.shape[-1] not in (3, 4):
            picture = picture[..., 0]
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        frame = Rectangle(
            (forgotten * width - 0.5, -0.5),
            width,
            down * height,
            fill=False,
            color=SPLITS["forget"],
            lw=2,
            clip_on=False,
        )
        axes.add_patch(frame)
        axes.set_title(methods[method])
    return figure


@_style
def curves(
    curves: Mapping[tuple[str, Any], Mapping[str, Sequence[float | None]]],
    methods: Mapping[str, str],
    *,
    series: Sequence[str] = ("retain_accuracy", "test_accuracy", "forget_accuracy"),
    label: str = "Accuracy (%)",
    share_y: bool = True,
) -> Figure:
    """Training and unlearning by epoch, one panel a method: mean and range of seeds.

    Args:
      curves: ``{(method, seed): {"epoch": [...], name: [...]}}``; missing or not
        finite numbers are left out.
      methods: ``{method: label}`` in the order shown.
      series: names drawn, where a run has them; ``("loss",)`` for the losses.
      label: of the axis.
      share_y: give all panels one scale, which far outliers and first epochs may
        leave; not for losses of different objectives.

    Returns:
      A figure of one panel for each method that has numbers: a line is the mean over
      seeds, its band reaches from the lowest to the highest seed.
    """
    lines = {}
    for method in methods:
        runs = [run for (name, _), run in curves.items() if name == method]
        for name in series:
            line = _over_seeds([r for r in runs if name in r], name)
            if line is not None:
                lines[method, name] = line
    shown = [m for m in methods if any((m, s) in lines for s in series)]
    if not shown:
        return _nothing("No curves yet")
    splits = [s.removesuffix("_accuracy") for s in series]
    colours = [SPLITS.get(s, _PALETTE[i % 6]) for i, s in enumerate(splits)]

    def draw(axes: Axes, method: str) -> None:
        for name, colour in zip(series, colours, strict=True):
            if (method, name) in lines:
                epoch, mean, low, high = lines[method, name]
                marker = "o" if len(epoch) <= 12 else None
                axes.plot(epoch, mean, color=colour, lw=1.6, marker=marker, ms=3)
                axes.fill_between(epoch, low, high, color=colour, alpha=0.2, lw=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))

    figure = _panels(shown, methods, draw, "Epoch", label, share_y, share_x=False)
    if share_y:
        points = [y for line in lines.values() for y in line[1]]
        figure.axes[0].set_ylim(_range(points, [0.0] * len(points)))
    if len(series) > 1:
        used = [i for i, n in enumerate(series) if any((m, n) in lines for m in shown)]
        _key(figure, {splits[i]: {"color": colours[i], "lw": 2.5} for i in used})
    return figure


def _figure(height: float) -> Figure:
    """An empty figure of the common width with its own canvas."""
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.08))
    FigureCanvasAgg(figure)
    return figure


def _nothing(message: str) -> Figure:
    """A figure that says why it is empty."""
    figure = _figure(1.5)
    figure.text(0.5, 0.5, message, ha="center", va="center", color=MUTED)
    return figure


def _panels(
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
    figure = _figure(1.0 + 1.75 * down)
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


def _key(figure: Figure, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """One line above the panels that says which colour is what."""
    handles = [Line2D([], [], label=name, **look) for name, look in entries.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))


def _methods_axis(axes: Axes, labels: Sequence[str], shown: bool = True) -> None:
    """Methods from top to bottom, one thin line each."""
    axes.set_yticks(range(len(labels)), labels if shown else [])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)


def _label(entry: MethodSummary) -> str:
    """Name on an axis; says how many runs diverged."""
    runs = entry.seeds + entry.diverged
    return entry.label + (f" ({entry.diverged}/{runs} div.)" if entry.diverged else "")


def _mean(entry: MethodSummary, column: Column) -> float | None:
    """A method's mean of a column."""
    return entry.values[column.key].mean


def _point(
    summary: Summary, entry: MethodSummary, column: Column
) -> tuple[float, float] | None:
    """Where a method stands in a metric, and the half-width of its bar."""
    anchor = summary.get(summary.reference)
    mean = _mean(anchor, column) if anchor else None
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


def _retrain_band(axes: Axes, summary: Summary, column: Column) -> None:
    """The line of Retrain and how far a second Retrain strays from it."""
    anchor, floor = summary.get(summary.reference), summary.get(summary.floor)
    mean = _mean(anchor, column) if anchor else None
    if mean is None:
        return
    axes.axvline(mean, color=INK, lw=1.2, zorder=1)
    stray = floor.differences[column.key] if floor else None
    if stray and stray.mean is not None:
        reach = abs(stray.mean) + (stray.half_width or 0.0)
        axes.axvspan(mean - reach, mean + reach, color=BAND, lw=0, zorder=0)


def _range(means: Sequence[float], halves: Sequence[float]) -> tuple[float, float]:
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


def _dot(
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


def _words(estimate: Estimate, column: Column) -> str:
    """An estimate beside its row."""
    if estimate.mean is None:
        return "—"
    text = f"{estimate.mean:.{column.decimals}f}"
    if estimate.half_width is None:
        return text
    return f"{text} ± {estimate.half_width:.{column.decimals}f}"


def _over_seeds(
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
