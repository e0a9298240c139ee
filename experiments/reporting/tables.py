"""A summary as a Markdown table, as a table on the screen, and in two sentences."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import rich.box
import rich.table
import rich.text

from experiments.reporting.summary import (
    Column,
    Estimate,
    MethodSummary,
    Summary,
    in_order,
    number,
)

WITHIN = "✓"  # marks a gap at or below the noise floor
MISSING = "—"


def markdown_table(summary: Summary, *, differences: bool = True) -> str:
    r"""The summary as a Markdown table with its caption, padded for a terminal.

    Args:
      summary: what to show.
      differences: add the difference to the reference, in parentheses.

    Returns:
      Text that ends with a newline.

    Example:
      >>> rows = [{"method": "retrain", "seed": s, "ua": 4.0 + s} for s in range(3)]
      >>> from experiments.reporting.summary import summarise
      >>> table = markdown_table(summarise(rows, [Column("ua", "UA", "%", 2)]))
      >>> print("\n".join(table.splitlines()[:3]))
      | Method  |          UA |
      | :------ | ----------: |
      | Retrain | 5.00 ± 2.48 |
    """
    lines = [["Method", *(_escape(c.label) for c in summary.columns)]]
    for entry in summary.methods:
        name = _escape(entry.label)
        name = f"**{name}**" if entry in summary.best else name
        line = [name + note(summary, entry)]
        for cell in cells(summary, entry):
            text = f"{cell.mark} {cell.mean}".lstrip()
            text += f" ± {cell.interval}" if cell.interval else ""
            shown = differences and cell.difference
            line.append(f"{text} ({cell.difference})" if shown else text)
        lines.append(line)
    first, *others = (max(map(len, texts)) for texts in zip(*lines, strict=True))
    lines = [
        [line[0].ljust(first), *map(str.rjust, line[1:], others)] for line in lines
    ]
    lines.insert(1, [f":{'-' * (first - 1)}", *(f"{'-' * (n - 1)}:" for n in others)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{caption(summary, differences=differences)}\n"


def rich_table(summary: Summary, *, pending: Sequence[str] = ()) -> rich.table.Table:
    """The summary for a screen of 100 columns; cheap enough for a live display.

    Intervals stand with the gap and with what is compared to the reference; for
    the differences themselves there is no room.

    Args:
      summary: what to show, of all rows so far.
      pending: methods still to come; those without a row are shown dim with ``…``.

    Returns:
      A ``rich.table.Table``.

    Example:
      >>> from experiments.reporting.summary import summarise
      >>> rows = [{"method": "retrain", "seed": s, "ua": 4.0 + s} for s in range(3)]
      >>> summary = summarise(rows, [Column("ua", "UA", "%", 2)])
      >>> table = rich_table(summary, pending=["salun"])
      >>> table.row_count
      2
    """
    table = rich.table.Table(
        box=rich.box.SIMPLE_HEAD,
        padding=0,
        caption=rich.text.Text(caption(summary, short=True), style="dim"),
        caption_justify="left",
    )
    table.add_column("Method", overflow="fold")
    for column in summary.columns:
        table.add_column(rich.text.Text(column.label), justify="right", no_wrap=True)
    for method in in_order(summary, [*summary.method_labels, *pending]):
        entry = summary.get(method)
        if entry is None:
            name = rich.text.Text(summary.label(method))
            table.add_row(name, *("…" for _ in summary.columns), style="dim")
            continue
        name = rich.text.Text(entry.label)
        name.append(note(summary, entry), style="red" if entry.diverged else "dim")
        line = [name]
        for column, cell in zip(summary.columns, cells(summary, entry), strict=True):
            text = rich.text.Text(cell.mark, style="green").append(cell.mean)
            if cell.interval and (column.reference or column.key == summary.gap):
                text.append(f"±{cell.interval}", style="dim")
            line.append(text)
        table.add_row(*line, style="bold" if entry in summary.best else None)
    return table


def answer(summary: Summary) -> str:
    r"""What the numbers say, in two sentences; a third names what diverged.

    Example:
      >>> from experiments.reporting.summary import summarise
      >>> gaps = {"original": 2.0, "retrain_again": 0.6, "salun": 0.5, "cufg": 0.8}
      >>> rows = [{"method": m, "seed": 0, "gap": gap} for m, gap in gaps.items()]
      >>> summary = summarise(rows, [Column("gap", "Gap", "%", 2, reference=False)])
      >>> print(answer(summary).replace(". ", ".\n"))
      Salun is within the noise floor, the gap of 0.60 between two independent Retrains.
      The largest gap is 0.80, of Cufg; Original, which unlearned nothing, has 2.00.
    """
    reference, ranking = summary.label(summary.reference), summary.ranking
    floor, within = summary.noise_floor, summary.within_floor
    sentences = [f"No method has a gap to {reference} yet."]
    if ranking:
        (gap, closest), (_, furthest) = ranking[0], ranking[-1]
        best, noise = _gap(summary, closest.values[summary.gap]), _gap(summary, floor)
        noise = f"noise floor, the gap of {noise} between two independent {reference}s"
        if floor.mean is None:
            first = f"{closest.label} comes closest to {reference}, at a gap of {best}"
            first += f"; without a second {reference} the noise floor is unknown"
        elif within:
            verb = "is" if len(within) == 1 else "are"
            first = f"{_listed([m.label for m in within])} {verb} within the {noise}"
        else:
            times = f"{gap / floor.mean:.1f}" if floor.mean else ""
            times = f", {times} times that" if times not in ("", "1.0") else ""
            first = f"No method is within the {noise}"
            first += f"; {closest.label} comes closest, at {best}{times}"
        second = f"The largest gap is {_gap(summary, furthest.values[summary.gap])}"
        second += f", of {furthest.label}"
        original = summary.get(summary.original)
        if original and original.values[summary.gap].mean is not None:
            stands = _gap(summary, original.values[summary.gap])
            second += f"; {original.label}, which unlearned nothing, has {stands}"
        sentences = [f"{first}.", f"{second}."]
    if lost := [f"{m.label}{note(summary, m)}" for m in summary.methods if m.diverged]:
        sentences.append(f"Not ranked: {'; '.join(lost)}.")
    return " ".join(sentences)


class Cell(NamedTuple):
    """Texts of one table cell; empty where there is nothing to show."""

    mean: str
    interval: str
    difference: str
    mark: str


def cells(summary: Summary, entry: MethodSummary) -> list[Cell]:
    """A method's cells, one for each column."""
    cells = []
    for column in summary.columns:
        value = entry.values[column.key]
        interval = format_number(value.half_width, column, missing="")
        if not column.reference and not interval.strip("0."):
            interval = ""  # a constant, such as the share of trainable parameters
        difference = ""
        if column.reference and column.key in entry.differences:
            difference = entry.differences[column.key].mean
            difference = format_number(difference, column, missing="", sign="+")
        within = column.key == summary.gap and entry in summary.within_floor
        mark = WITHIN if within else ""
        cells.append(
            Cell(format_number(value.mean, column), interval, difference, mark)
        )
    return cells


def note(summary: Summary, entry: MethodSummary) -> str:
    """What follows a method's label."""
    note = " (noise floor)" if entry.method == summary.floor else ""
    runs = entry.seeds + entry.diverged
    return note + (f", diverged ({entry.diverged} of {runs})" if entry.diverged else "")


def caption(summary: Summary, *, differences: bool = True, short: bool = False) -> str:
    """How to read the table."""
    counts = [m.seeds for m in summary.methods if m.seeds] or [0]
    low, high = min(counts), max(counts)
    seeds = f"{low} to {high} seeds" if low < high else f"{high} seeds"
    seeds = "one seed" if (low, high) == (1, 1) else seeds
    interval = f" ± {100 * summary.level:g} % interval" if high > 1 else ""
    keys = [c.key for c in summary.columns]
    if short:
        mark = f"; {WITHIN} within the noise floor" if summary.gap in keys else ""
        return f"Mean{interval} over {seeds}{mark}"
    reference = summary.label(summary.reference)
    interval += " (Student t)" if high > 1 else ""
    text = f"Mean{interval} over {seeds}"
    if differences and any(c.reference for c in summary.columns):
        text += f"; in parentheses the difference to {reference}, paired by seed"
    if percent := [c.label for c in summary.columns if c.unit == "%"]:
        text += f". In %: {', '.join(percent)}"
    if summary.gap in keys:
        column = summary.columns[keys.index(summary.gap)]
        meaning = column.description.rstrip(".") or f"distance to {reference}"
        text += f". {column.label}: {meaning}"
        text += f". {WITHIN}: at or below the noise floor, which is the"
        name = column.label if column.label.isupper() else column.label.lower()
        text += f" {name} of a second, independent {reference}"
    return ". ".join([text, *_own_errors(summary)]) + "."


def _own_errors(summary: Summary) -> list[str]:
    """What is known of the standard errors that single runs have, in sentences."""
    sentences = []
    for column in summary.columns:
        errors = {
            m.label: m.errors[column.key]
            for m in summary.methods
            if column.key in m.errors
        }
        if not errors:
            continue
        large = {label: error for label, error in errors.items() if error > 1}
        small = [e for label, e in errors.items() if label not in large]
        parts = [f"of up to {format_number(max(small), column)}"] if small else []
        if large:
            listed = [f"{k} ({format_number(v, column)})" for k, v in large.items()]
            parts.append(f"of more than a point for {', '.join(listed)}")
        what = f"{column.label} of one run has a standard error"
        sentences.append(f"{what} {', and '.join(parts)}")
    return sentences


def format_number(
    value: float | None, column: Column, *, missing: str = MISSING, sign: str = ""
) -> str:
    """A number with the column's decimals and a true minus; never −0."""
    if value is None:
        return missing
    digits = f".{column.decimals}f" if abs(value) < 1e6 else ".1e"
    text = f"{value:{sign}{digits}}"
    if not text.strip("+-0."):
        return text.lstrip("+-")
    return text.replace("-", "−")


def run_number(row: Mapping[str, Any], column: Column) -> str:
    """What one run has in a column, with its standard error where it has one."""
    text = format_number(number(row.get(column.key)), column)
    error = number(row.get(column.error)) if column.error else None
    return text if error is None else f"{text} ± {format_number(error, column)}"


def _gap(summary: Summary, estimate: Estimate) -> str:
    """A gap as a sentence names it."""
    column = next(c for c in summary.columns if c.key == summary.gap)
    interval = format_number(estimate.half_width, column, missing="")
    return format_number(estimate.mean, column) + (f" ± {interval}" if interval else "")


def _listed(names: Sequence[str], most: int = 5) -> str:
    """``a``, ``a and b``, ``a, b and c``; of a long list the first ones."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _escape(text: str) -> str:
    """Text that Markdown takes literally, on one line."""
    return re.sub(r"([\\|<>*`\[\]])", r"\\\1", " ".join(text.split()))
