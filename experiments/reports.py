"""An index of many studies: ``python -m experiments.reports`` over a results folder.

``index.html`` puts the studies below the folder side by side, methods down and studies
across, with links to their reports. It computes nothing.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from experiments.engine import cli
from experiments.reporting import index


@dataclasses.dataclass(frozen=True)
class Config:
    """Put the studies of a folder side by side on one page.

    Examples:
      python -m experiments.reports
      python -m experiments.reports --results mine
    """

    results: pathlib.Path = pathlib.Path("results")
    """Folder that holds the studies, at any depth; index.html goes there."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(Config, write, "experiments.reports", arguments)


def write(config: Config) -> None:
    """Writes the page and says where it is."""
    studies = index.find(config.results)
    print(f"Index of {len(studies)}: {index.write(config.results, studies)}")


if __name__ == "__main__":
    cli.leave(main())
