"""Several studies side by side: one page over a folder of results.

Knows no experiment: reports leave ``summary.json``, and studies with the same columns
share a table for each of them, methods down and studies across.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.errors import UserError
from experiments.files import write_atomically
from experiments.reporting import report, tables
from experiments.reporting.summary import (
    Column,
    Estimate,
    MethodSummary,
    Summary,
    in_order,
)


@dataclasses.dataclass(frozen=True)
class Study:
    """What a report said, and the folder that it lies in."""

    folder: pathlib.Path
    title: str
    description: str
    command: str
    summary: Summary


class Cell(NamedTuple):
    """What a method has in a study; None is no row."""

    shown: tables.Cell | None
    best: bool = False
    diverged: str = ""


class Table(NamedTuple):
    """A column of all studies: a row a method, with its label and its cells."""

    column: Column
    rows: Sequence[tuple[str, str, Sequence[Cell]]]


def find(folder: pathlib.Path) -> list[Study]:
    """The studies below a folder, by path.

    Raises:
      UserError: there is none, or one cannot be read.
    """
    found = sorted(folder.rglob("summary.json"))
    if not found:
        raise UserError(
            f"There is no study with a summary.json below {folder}. Give the folder "
            "that holds the studies, or run a study's command again: it computes "
            "nothing twice and leaves one."
        )
    return [_read(path) for path in found]


def write(folder: pathlib.Path, studies: Sequence[Study]) -> pathlib.Path:
    """Leaves ``index.html`` in a folder, with links to the reports; returns its path.

    Args:
      folder: where the page goes.
      studies: from :func:`find`; those with the same columns share tables.
    """
    groups: dict[Any, list[Study]] = {}
    for study in studies:
        kind = (study.summary.gap, *(c.key for c in study.summary.columns))
        groups.setdefault(kind, []).append(study)
    page = report.template("index.html.jinja").render(
        groups=[(group, compare(group)) for group in groups.values()],
        name=lambda study: os.path.relpath(study.folder, folder),
        answer=tables.answer,
        count=len(studies),
    )
    path = folder / "index.html"
    write_atomically(path, page.encode())
    return path


def compare(studies: Sequence[Study]) -> list[Table]:
    """A table for each column that the studies share; the distance to Retrain first."""
    first = studies[0].summary
    methods = in_order(first, (m.method for s in studies for m in s.summary.methods))
    labels = {m.method: m.label for s in studies for m in s.summary.methods}
    columns = sorted(first.columns, key=lambda column: column.key != first.gap)
    return [
        Table(
            column,
            [
                (
                    method,
                    labels[method],
                    [_cell(s.summary, method, column) for s in studies],
                )
                for method in methods
            ],
        )
        for column in columns
    ]


def _cell(summary: Summary, method: str, column: Column) -> Cell:
    entry = summary.get(method)
    if entry is None:
        return Cell(None)
    place = [c.key for c in summary.columns].index(column.key)
    shown = tables.cells(summary, entry)[place]
    runs = entry.seeds + entry.diverged
    diverged = f"diverged {entry.diverged} of {runs}" if entry.diverged else ""
    return Cell(shown, entry in summary.best and column.key == summary.gap, diverged)


def _read(path: pathlib.Path) -> Study:
    try:
        kept = json.loads(path.read_text())
        return Study(path.parent, **{**kept, "summary": _summary(kept["summary"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Run its study's "
            "command again, which writes it anew, or move it away."
        ) from error


def _summary(kept: Mapping[str, Any]) -> Summary:
    """A summary from its JSON."""

    def method(entry: Mapping[str, Any]) -> MethodSummary:
        estimates = {
            part: {key: Estimate(**value) for key, value in entry[part].items()}
            for part in ("values", "differences")
        }
        return MethodSummary(**{**entry, **estimates})

    columns = tuple(Column(**column) for column in kept["columns"])
    methods = tuple(map(method, kept["methods"]))
    return Summary(**{**kept, "columns": columns, "methods": methods})
