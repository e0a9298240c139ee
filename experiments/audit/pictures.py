"""Figures of an audit: ROC curves, margins against Retrain's, KLOM, two audits."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.audit import audits
from experiments.audit.bank import Margins
from experiments.audit.scoring import Verdict
from experiments.reporting import drawing, report
from experiments.reporting.summary import Summary
from mujax import auditing

Banks = Mapping[str, Margins]
STROKES = ("-", "--", ":", "-.")


def figures(summary: Summary, banks: Banks) -> list[report.Figure]:
    """The figures of the report; none while there is nothing to compare."""
    labels = {m: x for m, x in summary.method_labels.items() if m in banks}
    if audits.REFERENCE not in banks or len(banks) == 1:  # too few models yet
        return []
    return [
        report.Figure(
            "roc",
            "Who was forgotten? ROC of the likelihood ratio",
            "Both axes are logarithmic: what counts is the left end, where few are "
            "accused wrongly. The dashed line is chance, where Retrain lies.",
            lambda: roc(banks, labels),
        ),
        report.Figure(
            "margins",
            "What is said of each forgotten example",
            "Mean margin of each example of the pool under the models that forgot it, "
            "against Retrain's. Above the line it is remembered, below it the method "
            "has overdone it.",
            lambda: margins(banks, labels),
        ),
        report.Figure(
            "klom",
            "Distance to Retrain by example",
            "Share of the forgotten examples whose divergence from Retrain's margins "
            "exceeds a value. The grey line is a second Retrain: noise.",
            lambda: divergences(banks, labels),
        ),
        report.Figure(
            "two_audits",
            "The gap in accuracies against the audit",
            "Methods with one gap may differ in what an attacker sees.",
            lambda: two_audits(summary),
        ),
    ]


@drawing.styled
def faithfulness(verdicts: Mapping[str, Verdict]) -> Figure:
    """How often each audit ranks a bad model above a good one, with its interval."""
    figure = drawing.blank(5.2)
    axes = figure.subplots()
    places = np.arange(len(verdicts))[::-1]
    areas = np.array([[100 * x for x in v[:3]] for v in verdicts.values()])
    low, high = areas[:, 0] - areas[:, 1], areas[:, 2] - areas[:, 0]
    spread = np.maximum([low, high], 0)
    axes.errorbar(areas[:, 0], places, xerr=spread, fmt="o", capsize=3)
    axes.axvline(50, linestyle="--", linewidth=1, color="0.6")
    axes.set_yticks(places, list(verdicts))
    axes.set_xlabel("bad above good, % of pairs")
    axes.set_xlim(right=102)
    return figure


@drawing.styled
def roc(banks: Banks, labels: Mapping[str, str]) -> Figure:
    """True against false positives of the likelihood ratio, one line a method."""
    figure = drawing.blank(5.2)
    axes, style = figure.add_subplot(), drawing.looks(list(labels))
    for method, label in labels.items():
        bank = banks[method]
        rates = auditing.roc(audits.ratios(bank), bank.member)
        axes.plot(*rates, label=label, **_line(style[method]))
    least = 1 / np.sum(~next(iter(banks.values())).member)
    axes.plot([least, 1], [least, 1], color=drawing.MUTED, ls="--", lw=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(least, 1)
    axes.set_ylim(least, 1.05)
    axes.set_xlabel("False positives")
    axes.set_ylabel("True positives")
    axes.grid()
    figure.legend(loc="outside right upper")
    return figure


@drawing.styled
def margins(banks: Banks, labels: Mapping[str, str]) -> Figure:
    """Mean margins of forgotten examples against Retrain's, one panel a method."""
    oracle = banks[audits.REFERENCE].pool.mean(0)
    style = drawing.looks(list(labels))

    def draw(axes: Axes, method: str) -> None:
        ours = audits.forgotten(banks[method]).mean(0)
        ends = [oracle.min(), oracle.max()]
        axes.plot(ends, ends, color=drawing.MUTED, lw=1)
        axes.plot(oracle, ours, ".", ms=3, alpha=0.5, color=style[method].colour)
        axes.set_xlim(*ends)

    shown = [method for method in labels if method != audits.REFERENCE]
    return drawing.panels(
        shown, labels, draw, "Mean margin under Retrain", "Mean margin", share_y=False
    )


@drawing.styled
def divergences(banks: Banks, labels: Mapping[str, str]) -> Figure:
    """Distribution of KLOM over forgotten examples, one line a method."""
    figure = drawing.blank(5.2)
    axes, style = figure.add_subplot(), drawing.looks(list(labels))
    oracle = banks[audits.REFERENCE].pool
    for method, label in labels.items():
        if method == audits.REFERENCE:
            continue
        values = np.sort(
            auditing.gaussian_klom(audits.forgotten(banks[method]), oracle)
        )
        share = 1 - np.arange(len(values)) / len(values)
        values = np.maximum(values, 1e-3)
        axes.plot(values, 100 * share, label=label, **_line(style[method]))
    axes.set_xscale("log")
    axes.set_xlabel("KLOM, nats")
    axes.set_ylabel("Examples above, %")
    axes.grid()
    figure.legend(loc="outside right upper")
    return figure


@drawing.styled
def two_audits(summary: Summary) -> Figure:
    """U-LiRA against the gap, one point a method."""
    figure = drawing.blank(6.0)
    axes, style = figure.add_subplot(), drawing.looks(list(summary.method_labels))
    for entry in summary.methods:
        gap, area = entry.values["gap"], entry.values["ratio"]
        if gap.mean is None or area.mean is None:
            continue
        look = style[entry.method]
        axes.errorbar(
            gap.mean,
            area.mean,
            xerr=gap.half_width,
            yerr=area.half_width,
            color=look.colour,
            marker=look.marker,
            label=entry.label,
            lw=1,
            ls="",
        )
    axes.axhline(50, color=drawing.MUTED, ls="--", lw=1)
    axes.set_xlabel("Gap in UA, RA and TA, points")
    axes.set_ylabel("U-LiRA, %")
    axes.grid()
    figure.legend(loc="outside right upper")
    return figure


def _line(look: drawing.Look) -> dict[str, Any]:
    """How a method's line looks: colours come again, in other strokes."""
    strokes: dict[str, str] = dict(zip(drawing.MARKERS, STROKES, strict=True))
    return {"color": look.colour, "ls": strokes.get(look.marker, "-"), "lw": 1.6}
