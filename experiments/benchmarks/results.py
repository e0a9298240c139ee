"""The results of all machines: a file of rows for each, one page and a plot of each.

A run replaces the rows of the cases that it ran in its own machine's file, or the whole
file where the versions are others, and the page is made anew of all files.
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import matplotlib.figure
from matplotlib import ticker

from experiments import files
from experiments.benchmarks.measuring import OURS, THEIRS, Row, Timing
from experiments.reporting import drawing

PAGE = "RESULTS.md"
HEAD = """# Benchmarks

`python -m experiments.benchmarks` adds a section for the machine that it runs on.
Medians, with quartiles in brackets, of runs in turns with PyTorch in the same process,
after compilation. The ratio is PyTorch's time over ours: above 1, ours is faster. Read
ratios before times, which grow where other work shares the machine.
"""
VERSIONS = ("mujax", "jax", "flax", "optax", "torch")


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where rows come from.

    Attributes:
      name: of the device.
      versions: of what computes, by package; those that are missing are left out.
    """

    name: str
    versions: Mapping[str, str]


def this_machine() -> Machine:
    """The default device and what is installed."""
    device = jax.devices()[0]
    name = device.device_kind
    if device.platform == "cpu":
        name = f"{_processor()}, {os.cpu_count()} cores"
    versions = {"Python": platform.python_version()}
    for package in VERSIONS:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Machine(name, versions)


def _processor() -> str:
    """The processor's name, which Linux keeps in a file."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found[1] if found else platform.processor() or platform.machine()


def write(folder: pathlib.Path, machine: Machine, command: str, rows: Sequence[Row]):
    """Adds a machine's rows, and makes the page and the machine's plot anew."""
    folder.mkdir(parents=True, exist_ok=True)
    name = slug(machine.name)
    path = folder / f"{name}.json"
    old = json.loads(path.read_text()) if path.exists() else None
    record = merged(old, machine, command, rows)
    files.write_atomically(path, files.to_json(record).encode())
    records = {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))}
    files.write_atomically(folder / PAGE, page(records).encode())
    plot(folder / f"{name}.png", [_row(row) for row in record["rows"]])


def merged(
    old: Any, machine: Machine, command: str, rows: Sequence[Row]
) -> dict[str, Any]:
    """A machine's record after a run."""
    new = [_plain(row) for row in rows]
    record = dataclasses.asdict(machine)
    if old is None or old["versions"] != record["versions"]:
        return record | {"commands": [command], "rows": new}
    ran = {row.case for row in rows}
    kept = [row for row in old["rows"] if row["case"] not in ran]
    commands = [c for c in old["commands"] if c != command]
    return record | {"commands": [*commands, command], "rows": kept + new}


def _plain(row: Row) -> dict[str, Any]:
    """A row for JSON."""
    timings = {name: timing._asdict() for name, timing in row.timings.items()}
    return vars(row) | {"timings": timings}


def _row(plain: Mapping[str, Any]) -> Row:
    """The row that JSON holds."""
    timings = {name: Timing(**timing) for name, timing in plain["timings"].items()}
    return Row(**{**plain, "timings": timings})


def slug(name: str) -> str:
    """A machine's name as a file's.

    >>> slug("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def page(records: Mapping[str, Any]) -> str:
    """The page of all machines."""
    return "\n".join([HEAD, *(section(*item) for item in records.items())])


def section(name: str, record: Mapping[str, Any]) -> str:
    """A machine's part of the page."""
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    commands = " and ".join(f"`{command}`" for command in record["commands"])
    lines = [f"## {record['name']}", "", f"{versions}, by {commands}."]
    lines += [
        "",
        "| Case | What | Ratio | mujax, ms | PyTorch, ms | Wanted | Besides |",
    ]
    lines += ["| :-- | :-- | --: | --: | --: | :-- | :-- |"]
    for row in map(_row, record["rows"]):
        ratio = "" if row.ratio is None else f"**{row.ratio:.2f}**"
        times = [milliseconds(row.timings.get(name)) for name in (OURS, THEIRS)]
        cells = [row.case, row.what, ratio, *times, row.target, row.note]
        lines.append(f"| {' | '.join(cell.replace('|', '¦') for cell in cells)} |")
    return "\n".join([*lines, "", f"![Ratios on {record['name']}]({name}.png)", ""])


def milliseconds(timing: Timing | None) -> str:
    """Median and quartiles to three digits.

    >>> milliseconds(Timing(0.0123, 0.01312, 1.5, 7))
    '13.1 (12.3–1,500)'
    """
    if timing is None:
        return ""
    low, median, high = (_digits(1e3 * x) for x in timing[:3])
    return f"{median} ({low}–{high})"


def _digits(x: float) -> str:
    """Three digits, and no powers of ten."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


@drawing.styled
def plot(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Ratios as bars around 1, where PyTorch was there."""
    shown = [(row.what, row.ratio) for row in rows if row.ratio is not None]
    figure = matplotlib.figure.Figure((drawing.WIDTH, 1.2 + 0.35 * len(shown)))
    axes = figure.add_subplot()
    for place, (_, ratio) in enumerate(shown):
        colour = drawing.PALETTE[0 if ratio >= 1 else 1]
        axes.barh(place, ratio - 1, left=1, color=colour, height=0.6)
    axes.set_yticks(range(len(shown)), [what for what, _ in shown])
    axes.invert_yaxis()
    axes.axvline(1, color=drawing.INK, linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_xlabel("PyTorch's time over ours")
    figure.savefig(path, dpi=100, bbox_inches="tight")
