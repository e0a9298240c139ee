"""Times the library beside PyTorch: ``python -m experiments.benchmarks``.

Each case runs ours and PyTorch's in turns. A case that fails is a row that says so.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import jax

from experiments.benchmarks import reference, results
from experiments.benchmarks.cases import CASES, Case, scale_of
from experiments.benchmarks.measuring import Row, guarded
from experiments.benchmarks.text_to_image import sd
from experiments.engine import cli

HERE = pathlib.Path(__file__).parent
KNOWN: dict[str, Case] = {**CASES, "sd": sd}


@dataclasses.dataclass(frozen=True)
class Config:
    """Time the library beside PyTorch on this machine.

    Examples:
      python -m experiments.benchmarks
      python -m experiments.benchmarks --cases mask,bases --out results/benchmarks
      python -m experiments.benchmarks --quick
    """

    cases: str = "all"
    """Cases to run, separated by commas, or all: mask, bases, dense, step, updates,
    epoch, growth, models, sd."""
    quick: bool = False
    """Tiny sizes and one turn each, to see that all runs."""
    large: bool = False
    """Grow the mask to 200 million entries on CPU, too."""
    out: pathlib.Path | None = None
    """Folder for the results; by default the page of this command, and
    results/benchmarks with --quick."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(Config, measure, "experiments.benchmarks", arguments)


def measure(config: Config) -> None:
    """Measures, prints each row as it comes, and writes after each case."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # else idle torch threads spin
    names = cli.choose(config.cases, KNOWN, "case")
    scale = scale_of(config.quick, config.large, jax.default_backend() != "cpu")
    machine, rows = results.this_machine(), []
    print(f"{machine.name}: {', '.join(map(' '.join, machine.versions.items()))}")
    if not reference.available():
        print("There is no PyTorch to measure beside: pip install 'mujax[bench]'")
    out = config.out or (pathlib.Path("results/benchmarks") if config.quick else HERE)
    for name in names:
        case = functools.partial(KNOWN[name], scale)
        for row in guarded(name, "did not finish", case):
            rows.append(row)
            print(line(row), flush=True)
        results.write(out, machine, command(config), rows)
    print(out / results.PAGE)


def command(config: Config) -> str:
    """The command as a person types it, but for the folder.

    >>> command(Config(cases="mask", quick=True, out=pathlib.Path("elsewhere")))
    'python -m experiments.benchmarks --cases mask --quick'
    """
    words = ["python -m experiments.benchmarks"]
    words += [f"--cases {config.cases}"] if config.cases != Config.cases else []
    words += [f"--{flag}" for flag in ("quick", "large") if getattr(config, flag)]
    return " ".join(words)


def line(row: Row) -> str:
    """A row as it is printed."""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}×"
    times = ", ".join(
        f"{name} {results.milliseconds(timing)} ms"
        for name, timing in row.timings.items()
    )
    return "  ".join(filter(None, [f"{row.case:8}", ratio, row.what, times, row.note]))


if __name__ == "__main__":
    cli.leave(main())
