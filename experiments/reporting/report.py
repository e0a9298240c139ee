"""The report of an experiment: one page to show, with its table and its plots.

Knows no experiment: columns, figures and methods are data. ``write`` leaves
``table.md``, ``plots/*.png``, a self-contained ``report.html`` and, for an index of
many studies, the summary as ``summary.json`` in a folder.
"""

import base64
import dataclasses
import io
import pathlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import matplotlib.figure

from experiments.files import to_json, write_atomically
from experiments.reporting import tables
from experiments.reporting.summary import Column, Summary, summarise


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plot of the report; ``name`` is its file name without ``.png``."""

    name: str
    title: str
    caption: str
    draw: Callable[[], matplotlib.figure.Figure]


@dataclasses.dataclass(frozen=True)
class Text:
    """A part of the report's details that is shown as it is, such as a table."""

    title: str
    text: str


@dataclasses.dataclass(frozen=True)
class MethodNote:
    """What a method is: ``paper`` is a link, a text with an arXiv number, or empty."""

    label: str
    paper: str
    one_line: str


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
    texts: Sequence[Text] = (),
    gap: str = "gap",
    summary: Summary | None = None,
) -> None:
    """Leaves ``table.md``, ``plots/NAME.png``, ``report.html`` and ``summary.json``.

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
      texts: further details.
      gap: key of the column that holds the distance to Retrain.
      summary: shown in place of the one over the rows, where a table is more than that.
    """
    notes = methods or {}
    labels = {method: entry.label for method, entry in notes.items()}
    if summary is None:
        summary = summarise(results["rows"], columns, gap=gap, labels=labels)
    (out / "plots").mkdir(parents=True, exist_ok=True)
    write_atomically(out / "table.md", tables.markdown_table(summary).encode())
    images = []
    for figure in figures:
        png = _png(figure.draw())
        write_atomically(out / "plots" / f"{figure.name}.png", png)
        images.append((figure, base64.b64encode(png).decode()))
    command = results["config"].get("command", "")
    command = command if isinstance(command, str) else shlex.join(command)
    page = template("report.html.jinja").render(
        title=title,
        description=description,
        answer=tables.answer(summary),
        summary=summary,
        table=[
            (m, tables.note(summary, m), tables.cells(summary, m))
            for m in summary.methods
        ],
        caption=tables.caption(summary),
        images=images,
        notes=[
            (notes[m], _paper_link(notes[m].paper)) for m in labels if summary.get(m)
        ],
        rows=results["rows"],
        shown=[[tables.run_number(row, c) for c in columns] for row in results["rows"]],
        config=to_json(results["config"]),
        environment=results["environment"],
        command=command,
        loading=loading,
        texts=texts,
    )
    write_atomically(out / "report.html", page.encode())
    kept = {
        "title": title,
        "description": description,
        "command": command,
        "summary": dataclasses.asdict(summary),
    }
    write_atomically(out / "summary.json", to_json(kept).encode())


def template(name: str) -> jinja2.Template:
    """A template of this folder, which escapes what it shows."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _paper_link(paper: str) -> str | None:
    """Address of a paper given as a link or by its arXiv number."""
    if re.fullmatch(r"https?://\S+", paper):
        return paper
    number = re.search(r"\b\d{4}\.\d{4,5}\b", paper)
    return f"https://arxiv.org/abs/{number[0]}" if number else None


def _png(figure: matplotlib.figure.Figure) -> bytes:
    """A figure as PNG, the same bytes for the same figure; frees its memory."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    for axes in figure.axes:  # not clear(), which older versions warn of on log axes
        figure.delaxes(axes)
    return buffer.getvalue()
