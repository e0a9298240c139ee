"""The report of an experiment: a summary over seeds, tables, and one page to show.

Knows no experiment: columns, figures and methods are data, so that classification
and diffusion share it. Rows come from ``results.json``, one for each method and seed.
Every method is compared with Retrain, and a second, independent Retrain gives the
noise floor: a gap below it means nothing.

``summarise`` turns rows into means, intervals and differences paired by seed;
``markdown_table``, ``rich_table`` and ``answer`` show them; ``write`` leaves
``table.md``, ``plots/*.png`` and a self-contained ``report.html`` in a folder.
"""

import base64
import dataclasses
import io
import json
import math
import os
import pathlib
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import matplotlib.figure
import numpy as np
import rich.box
import rich.table
import rich.text
import scipy.stats

WITHIN = "✓"  # marks a gap at or below the noise floor
MISSING = "—"


@dataclasses.dataclass(frozen=True)
class Column:
    """A metric of the rows; ``reference``: shown with its difference to Retrain."""

    key: str
    label: str
    unit: str
    decimals: int
    reference: bool = True
    description: str = ""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plot of the report; ``name`` is its file name without ``.png``."""

    name: str
    title: str
    caption: str
    draw: Callable[[], matplotlib.figure.Figure]


@dataclasses.dataclass(frozen=True)
class MethodNote:
    """What a method is: ``paper`` is a link, a text with an arXiv number, or empty."""

    label: str
    paper: str
    one_line: str


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over ``count`` seeds and the half-width of its interval, where known."""

    mean: float | None
    half_width: float | None
    count: int


@dataclasses.dataclass(frozen=True)
class MethodSummary:
    """A method over its seeds: estimates and differences to the reference by column."""

    method: str
    label: str
    seeds: int  # that ended well: the ones averaged
    diverged: int
    values: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]  # empty for the reference itself


@dataclasses.dataclass(frozen=True)
class Summary:
    """All methods in the order shown, and the names that have a role."""

    columns: tuple[Column, ...]
    methods: tuple[MethodSummary, ...]
    original: str
    reference: str
    floor: str
    gap: str
    level: float
    labels: Mapping[str, str]

    def label(self, method: str) -> str:
        """Name of a method as shown, whether or not it has a row."""
        plain = method.replace("_", " ")
        return self.labels.get(method, plain[:1].upper() + plain[1:])

    def get(self, method: str) -> MethodSummary | None:
        """Summary of one method, if it has a row."""
        return next((m for m in self.methods if m.method == method), None)

    @property
    def method_labels(self) -> dict[str, str]:
        """``{method: label}`` in the order shown, as the figures take it."""
        return {m.method: m.label for m in self.methods}

    @property
    def noise_floor(self) -> Estimate:
        """Gap between two independent Retrains."""
        floor = self.get(self.floor)
        missing = Estimate(None, None, 0)
        return floor.values.get(self.gap, missing) if floor else missing

    @property
    def ranking(self) -> list[tuple[float, MethodSummary]]:
        """``(gap, method)`` by rising gap: no baseline, none with a diverged seed."""
        baselines = (self.original, self.reference, self.floor)
        ranked = [
            (estimate.mean, m)
            for m in self.methods
            if m.method not in baselines and not m.diverged
            if (estimate := m.values.get(self.gap)) and estimate.mean is not None
        ]
        return sorted(ranked, key=lambda pair: pair[0])

    @property
    def within_floor(self) -> list[MethodSummary]:
        """Methods as close to Retrain as a second Retrain is, closest first."""
        floor = self.noise_floor.mean
        return [m for gap, m in self.ranking if floor is not None and gap <= floor]

    @property
    def best(self) -> list[MethodSummary]:
        """Methods within the noise floor, or else the one closest to Retrain."""
        return self.within_floor or [m for _, m in self.ranking[:1]]


def summarise(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[Column],
    *,
    original: str = "original",
    reference: str = "retrain",
    floor: str = "retrain_again",
    gap: str = "gap",
    level: float = 0.95,
    labels: Mapping[str, str] | None = None,
) -> Summary:
    r"""Means over seeds with Student t intervals, and differences paired by seed.

    .. math:: \bar x \pm t_{(1 + level)/2,\, n - 1}\, s / \sqrt n

    Rows whose ``status`` is not ``"ok"`` count as diverged and are averaged nowhere;
    a value that is missing or not finite is left out. Of two rows of one method and
    seed the last one stands.

    Args:
      rows: mappings with ``method``, ``seed``, optionally ``status`` (``"ok"``,
        ``"diverged"``), and the columns' keys.
      columns: what to average, in the order shown.
      original: method that unlearned nothing; shown first where it has rows.
      reference: method that the others are compared with; shown second.
      floor: independent repetition of the reference; shown third.
      gap: key of the column that holds the distance to the reference.
      level: of the intervals, in (0, 1).
      labels: names to show, by method.

    Returns:
      The ``Summary``; other methods stand in the order of their first row.

    Raises:
      ValueError: ``level`` is outside (0, 1).

    Example:
      >>> rows = [{"method": "retrain", "seed": s, "ua": 4.0 + s} for s in range(3)]
      >>> rows += [{"method": "salun", "seed": s, "ua": 5.0 + s} for s in range(3)]
      >>> summary = summarise(rows, [Column("ua", "UA", "%", 2)])
      >>> estimate = summary.methods[1].values["ua"]
      >>> print(f"{estimate.mean:.2f} ± {estimate.half_width:.2f}")
      6.00 ± 2.48
      >>> summary.methods[1].differences["ua"]
      Estimate(mean=1.0, half_width=0.0, count=3)

    Reference:
      Student (1908), "The probable error of a mean".
    """
    if not 0 < level < 1:
        raise ValueError(f"Expected level={level} in (0, 1), such as 0.95.")
    runs: dict[str, dict[Any, Mapping[str, Any]]] = {}
    for row in rows:
        runs.setdefault(row["method"], {})[row["seed"]] = row
    finished = {
        method: {seed: r for seed, r in by_seed.items() if _ok(r)}
        for method, by_seed in runs.items()
    }

    def values(method: str, key: str) -> dict[Any, float]:
        by_seed = finished.get(method, {})
        numbers = {seed: _number(row.get(key)) for seed, row in by_seed.items()}
        return {seed: x for seed, x in numbers.items() if x is not None}

    def difference(method: str, key: str) -> Estimate:
        ours, theirs = values(method, key), values(reference, key)
        return _estimate([x - theirs[s] for s, x in ours.items() if s in theirs], level)

    summary = Summary(
        tuple(columns), (), original, reference, floor, gap, level, dict(labels or {})
    )
    methods = tuple(
        MethodSummary(
            method=method,
            label=summary.label(method),
            seeds=len(finished[method]),
            diverged=len(runs[method]) - len(finished[method]),
            values={
                c.key: _estimate(list(values(method, c.key).values()), level)
                for c in columns
            },
            differences={c.key: difference(method, c.key) for c in columns}
            if method != reference
            else {},
        )
        for method in _in_order(summary, runs)
    )
    return dataclasses.replace(summary, methods=methods)


def markdown_table(summary: Summary, *, differences: bool = True) -> str:
    r"""The summary as a Markdown table with its caption, padded for a terminal.

    Args:
      summary: what to show.
      differences: add the difference to the reference, in parentheses.

    Returns:
      Text that ends with a newline.

    Example:
      >>> rows = [{"method": "retrain", "seed": s, "ua": 4.0 + s} for s in range(3)]
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
        line = [name + _note(summary, entry)]
        for cell in _cells(summary, entry):
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
    return f"{table}\n\n{_caption(summary, differences=differences)}\n"


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
      >>> rows = [{"method": "retrain", "seed": s, "ua": 4.0 + s} for s in range(3)]
      >>> summary = summarise(rows, [Column("ua", "UA", "%", 2)])
      >>> table = rich_table(summary, pending=["salun"])
      >>> table.row_count
      2
    """
    table = rich.table.Table(
        box=rich.box.SIMPLE_HEAD,
        padding=0,
        caption=rich.text.Text(_caption(summary, short=True), style="dim"),
        caption_justify="left",
    )
    table.add_column("Method", overflow="fold")
    for column in summary.columns:
        table.add_column(rich.text.Text(column.label), justify="right", no_wrap=True)
    for method in _in_order(summary, [*summary.method_labels, *pending]):
        entry = summary.get(method)
        if entry is None:
            name = rich.text.Text(summary.label(method))
            table.add_row(name, *("…" for _ in summary.columns), style="dim")
            continue
        name = rich.text.Text(entry.label)
        name.append(_note(summary, entry), style="red" if entry.diverged else "dim")
        line = [name]
        for column, cell in zip(summary.columns, _cells(summary, entry), strict=True):
            text = rich.text.Text(cell.mark, style="green").append(cell.mean)
            if cell.interval and (column.reference or column.key == summary.gap):
                text.append(f"±{cell.interval}", style="dim")
            line.append(text)
        table.add_row(*line, style="bold" if entry in summary.best else None)
    return table


def answer(summary: Summary) -> str:
    r"""What the numbers say, in two sentences; a third names what diverged.

    Example:
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
    if lost := [f"{m.label}{_note(summary, m)}" for m in summary.methods if m.diverged]:
        sentences.append(f"Not ranked: {'; '.join(lost)}.")
    return " ".join(sentences)


def write(
    out: pathlib.Path,
    results: Mapping[str, Any],
    columns: Sequence[Column],
    *,
    title: str,
    description: str,
    figures: Sequence[Figure] = (),
    methods: Mapping[str, MethodNote] | None = None,
    loading: str = "",
) -> None:
    """Leaves ``table.md``, ``plots/NAME.png`` and a self-contained ``report.html``.

    Each file is replaced in one step: a reader, or a kill, never meets half a file.

    Args:
      out: folder, made if it is not there.
      results: ``config``, ``environment`` and ``rows``, as in ``results.json``;
        ``config["command"]``, a string or a list of words, tells how to reproduce.
      columns: what the table shows.
      title: of the page.
      description: one paragraph: data, scenario, what was compared.
      figures: drawn in order, each saved and embedded.
      methods: label, paper and a line on each method.
      loading: the lines of code that load a checkpoint.
    """
    notes = methods or {}
    labels = {method: entry.label for method, entry in notes.items()}
    summary = summarise(results["rows"], columns, labels=labels)
    (out / "plots").mkdir(parents=True, exist_ok=True)
    write_atomically(out / "table.md", markdown_table(summary).encode())
    images = []
    for figure in figures:
        png = _png(figure.draw())
        write_atomically(out / "plots" / f"{figure.name}.png", png)
        images.append((figure, base64.b64encode(png).decode()))
    command = results["config"].get("command", "")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        title=title,
        description=description,
        answer=answer(summary),
        summary=summary,
        table=[(m, _note(summary, m), _cells(summary, m)) for m in summary.methods],
        caption=_caption(summary),
        images=images,
        notes=[
            (notes[m], _paper_link(notes[m].paper)) for m in labels if summary.get(m)
        ],
        rows=results["rows"],
        shown=[
            [_format(_number(row.get(c.key)), c) for c in columns]
            for row in results["rows"]
        ],
        config=to_json(results["config"]),
        environment=results["environment"],
        command=command if isinstance(command, str) else shlex.join(command),
        loading=loading,
    )
    write_atomically(out / "report.html", page.encode())


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """Writes a file beside its place, then moves it there in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def to_json(value: Any) -> str:
    r"""Strict JSON, indented: not finite becomes null, arrays lists, the rest text.

    Example:
      >>> print(to_json({"loss": float("nan"), "out": pathlib.PurePosixPath("runs")}))
      {
        "loss": null,
        "out": "runs"
      }
    """
    text = json.dumps(value, default=lambda x: getattr(x, "tolist", x.__str__)())
    plain = json.loads(text, parse_constant=lambda _: None)
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)


class _Cell(NamedTuple):
    """Texts of one table cell; empty where there is nothing to show."""

    mean: str
    interval: str
    difference: str
    mark: str


def _cells(summary: Summary, entry: MethodSummary) -> list[_Cell]:
    """A method's cells, one for each column."""
    cells = []
    for column in summary.columns:
        value = entry.values[column.key]
        interval = _format(value.half_width, column, missing="")
        if not column.reference and not interval.strip("0."):
            interval = ""  # a constant, such as the share of trainable parameters
        difference = ""
        if column.reference and column.key in entry.differences:
            difference = entry.differences[column.key].mean
            difference = _format(difference, column, missing="", sign="+")
        within = column.key == summary.gap and entry in summary.within_floor
        mark = WITHIN if within else ""
        cells.append(_Cell(_format(value.mean, column), interval, difference, mark))
    return cells


def _note(summary: Summary, entry: MethodSummary) -> str:
    """What follows a method's label."""
    note = " (noise floor)" if entry.method == summary.floor else ""
    runs = entry.seeds + entry.diverged
    return note + (f", diverged ({entry.diverged} of {runs})" if entry.diverged else "")


def _caption(summary: Summary, *, differences: bool = True, short: bool = False) -> str:
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
        text += f" {column.label.lower()} of a second, independent {reference}"
    return f"{text}."


def _ok(row: Mapping[str, Any]) -> bool:
    """Whether a run ended well."""
    return row.get("status", "ok") == "ok"


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _estimate(values: Sequence[float], level: float) -> Estimate:
    """Mean and half-width of the Student t interval."""
    count = len(values)
    if not count:
        return Estimate(None, None, 0)
    with np.errstate(over="ignore", invalid="ignore"):  # 1e200 squared
        mean, deviation = np.mean(values), np.std(values, ddof=1) if count > 1 else None
    if deviation is None:
        return Estimate(_number(mean), None, count)
    quantile = scipy.stats.t.ppf((1 + level) / 2, count - 1)
    return Estimate(_number(mean), _number(quantile * deviation / count**0.5), count)


def _in_order(summary: Summary, methods: Iterable[str]) -> list[str]:
    """Original, reference and floor first, then the others as they came; no repeats."""
    names = dict.fromkeys(methods)
    first = (summary.original, summary.reference, summary.floor)
    return [m for m in first if m in names] + [m for m in names if m not in first]


def _format(
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


def _gap(summary: Summary, estimate: Estimate) -> str:
    """A gap as a sentence names it."""
    column = next(c for c in summary.columns if c.key == summary.gap)
    interval = _format(estimate.half_width, column, missing="")
    return _format(estimate.mean, column) + (f" ± {interval}" if interval else "")


def _listed(names: Sequence[str], most: int = 5) -> str:
    """``a``, ``a and b``, ``a, b and c``; of a long list the first ones."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _paper_link(paper: str) -> str | None:
    """Address of a paper given as a link or by its arXiv number."""
    if re.fullmatch(r"https?://\S+", paper):
        return paper
    number = re.search(r"\b\d{4}\.\d{4,5}\b", paper)
    return f"https://arxiv.org/abs/{number[0]}" if number else None


def _escape(text: str) -> str:
    """Text that Markdown takes literally, on one line."""
    return re.sub(r"([\\|<>*`\[\]])", r"\\\1", " ".join(text.split()))


def _png(figure: matplotlib.figure.Figure) -> bytes:
    """A figure as PNG, the same bytes for the same figure; frees its memory."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    figure.clear()
    return buffer.getvalue()
