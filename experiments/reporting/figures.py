"""The plots of a report, each a pure function from numbers to a matplotlib Figure.

Figures are built without pyplot, so that nothing global is touched or left open.
A method keeps its colour and marker in every figure that names the same methods in
the same order; the colours are those of Okabe and Ito (2008), told apart by colour-
blind readers. Methods stand on an axis or above their own panel, so that no legend
of sixteen entries has to be looked up. What has no numbers is left out or said so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from experiments.reporting import drawing
from experiments.reporting.summary import Summary

SPLITS = {"retain": "#0072B2", "test": "#009E73", "forget": "#D55E00"}


@drawing.styled
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
        if any(drawing.point(summary, m, c) is not None for c in columns)
    ]
    if not entries:
        return drawing.nothing("No finished run yet")
    across = min(len(columns), 4)
    down = -(-len(columns) // across)
    figure = drawing.blank(down * (0.9 + 0.32 * len(entries)))
    style = drawing.looks([m.method for m in summary.methods])
    for i, column in enumerate(columns):
        axes = figure.add_subplot(down, across, i + 1)
        drawing.methods_axis(
            axes, [drawing.row_label(m) for m in entries], shown=i % across == 0
        )
        axes.set_title(column.label + (f" ({column.unit})" if column.unit else ""))
        drawing.retrain_band(axes, summary, column)
        points = [drawing.point(summary, m, column) for m in entries]
        shown = [p for p in points if p is not None]
        axes.set_xlim(
            drawing.visible_range(*zip(*shown, strict=True)) if shown else (0, 1)
        )
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.ticklabel_format(axis="x", useOffset=False)
        for y, (entry, point) in enumerate(zip(entries, points, strict=True)):
            if point is not None:
                drawing.dot(axes, *point, y, style[entry.method], column.decimals)
    return figure


@drawing.styled
def gap_chart(summary: Summary) -> Figure:
    """The gap to Retrain with its interval, smallest first, over the noise floor.

    Args:
      summary: of ``summary.summarise``, with its gap column.

    Returns:
      A figure of one panel; methods that only diverged stand last, as words.
    """
    column = next((c for c in summary.columns if c.key == summary.gap), None)
    entries = [m for m in summary.methods if m.method != summary.reference]
    if column is None or not any(
        drawing.mean_of(m, column) is not None for m in entries
    ):
        return drawing.nothing("No gap to Retrain yet")
    entries.sort(
        key=lambda m: (
            drawing.mean_of(m, column) is None,
            drawing.mean_of(m, column) or 0.0,
        )
    )
    figure = drawing.blank(1.1 + 0.34 * len(entries))
    axes = figure.add_subplot()
    drawing.methods_axis(axes, [drawing.row_label(m) for m in entries])
    axes.set_xlabel(
        f"{column.label} to {summary.label(summary.reference)}"
        + (f" ({column.unit})" if column.unit else "")
    )
    known = [
        m.values[column.key] for m in entries if drawing.mean_of(m, column) is not None
    ]
    means = [e.mean for e in known if e.mean is not None]
    _, most = drawing.visible_range(
        [0.0, *means], [0.0, *(e.half_width or 0.0 for e in known)]
    )
    axes.set_xlim(0.0, most)
    floor = summary.noise_floor.mean
    if floor is not None:
        axes.axvspan(0, floor, color=drawing.BAND, zorder=0, lw=0)
        axes.axvline(floor, color=drawing.MUTED, lw=1, zorder=1)
        axes.annotate(
            "noise floor",
            (floor, 1.0),
            (3, 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=drawing.MUTED,
        )
    style = drawing.looks([m.method for m in summary.methods])
    for y, entry in enumerate(entries):
        estimate = entry.values[column.key]
        if estimate.mean is not None:
            half = estimate.half_width or 0.0
            drawing.dot(axes, estimate.mean, half, y, style[entry.method], None)
        axes.annotate(
            drawing.words(estimate, column),
            (1.01, y),
            xycoords=("axes fraction", "data"),
            va="center",
            color=drawing.INK if estimate.mean is not None else drawing.MUTED,
        )
    return figure


@drawing.styled
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
        return drawing.nothing("No confidences yet")
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

    figure = drawing.panels(
        shown, methods, draw, "Confidence in the true class", "Share of examples"
    )
    entries: dict[str, Any] = {s: {"color": c, "lw": 2.5} for s, c in SPLITS.items()}
    if reference is not None:
        label = f"forget under {methods.get('retrain', 'Retrain')}"
        entries[label] = {"color": "#dcdcdc", "lw": 7}
    drawing.colour_key(figure, entries)
    return figure


@drawing.styled
def image_grids(
    images: Mapping[str, np.ndarray],
    methods: Mapping[str, str],
    classes: Sequence[str],
    forgotten: int,
    framed: int = 1,
) -> Figure:
    """Drawn images, a panel a method: a column for each class, the forgotten framed.

    Args:
      images: ``{method: uint8 (classes, rows, height, width, channels)}``.
      methods: ``{method: label}`` in the order shown.
      classes: names of the classes.
      forgotten: number of the class that had to be forgotten.
      framed: how many from there on had to be.

    Returns:
      A figure of one panel for each method that has images.
    """
    shown = [m for m in methods if m in images]
    if not shown:
        return drawing.nothing("No images yet")
    columns = 3
    rows = -(-len(shown) // columns)
    margins = (0, 0), (0, 0), (1, 1), (1, 1), (0, 0)
    images = {m: np.pad(images[m], margins, constant_values=110) for m in shown}
    count, down, height, width, _ = images[shown[0]].shape
    figure = drawing.blank(
        rows * (drawing.WIDTH / columns * down * height / (count * width) + 0.45)
    )
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
            framed * width,
            down * height,
            fill=False,
            color=SPLITS["forget"],
            lw=2,
            clip_on=False,
        )
        axes.add_patch(frame)
        axes.set_title(methods[method])
    return figure


@drawing.styled
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
            line = drawing.over_seeds([r for r in runs if name in r], name)
            if line is not None:
                lines[method, name] = line
    shown = [m for m in methods if any((m, s) in lines for s in series)]
    if not shown:
        return drawing.nothing("No curves yet")
    splits = [s.removesuffix("_accuracy") for s in series]
    colours = [SPLITS.get(s, drawing.PALETTE[i % 6]) for i, s in enumerate(splits)]

    def draw(axes: Axes, method: str) -> None:
        for name, colour in zip(series, colours, strict=True):
            if (method, name) in lines:
                epoch, mean, low, high = lines[method, name]
                marker = "o" if len(epoch) <= 12 else None
                axes.plot(epoch, mean, color=colour, lw=1.6, marker=marker, ms=3)
                axes.fill_between(epoch, low, high, color=colour, alpha=0.2, lw=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))

    figure = drawing.panels(
        shown, methods, draw, "Epoch", label, share_y, share_x=False
    )
    if share_y:
        points = [y for line in lines.values() for y in line[1]]
        figure.axes[0].set_ylim(drawing.visible_range(points, [0.0] * len(points)))
    if len(series) > 1:
        used = [i for i, n in enumerate(series) if any((m, n) in lines for m in shown)]
        drawing.colour_key(
            figure, {splits[i]: {"color": colours[i], "lw": 2.5} for i in used}
        )
    return figure
