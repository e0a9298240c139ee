"""Times the library beside PyTorch: ``python -m experiments.benchmarks``.

Each case runs ours and PyTorch's in turns. A case that fails is a row that says so.
"""

import dataclasses
import functools
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

import jax
import rich

from experiments.benchmarks import reference, results
from experiments.benchmarks.cases import CASES, scale_of
from experiments.benchmarks.measuring import FULL, QUICK, Row, guarded
from experiments.benchmarks.text_to_image import sd
from experiments.engine import cli

HERE = pathlib.Path(__file__).parent


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
    """Measures, prints each row as it comes, and writes all."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # else idle threads of torch spin
    accelerator = jax.default_backend() != "cpu"
    scale = scale_of(config.quick, config.large, accelerator, (FULL, QUICK))
    unet = functools.partial(sd, accelerator=accelerator, quick=config.quick)
    known = {**CASES, "sd": unet}
    machine, rows = results.this_machine(), []
    rich.print(f"{machine.name}: {machine.versions}")
    if not reference.available():
        rich.print("Without PyTorch: pip install 'mujax\\[bench]' to measure beside it.")
    out = config.out or (pathlib.Path("results/benchmarks") if config.quick else HERE)
    command = shlex.join(["python", "-m", "experiments.benchmarks", *sys.argv[1:]])
    for name in cli.choose(config.cases, known):
        for row in guarded(name, functools.partial(known[name], scale)):
            rows.append(row)
            print(line(row), flush=True)
        results.write(out, machine, command, rows)
    print(f"{out / results.PAGE}")


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
