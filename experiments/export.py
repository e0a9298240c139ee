"""An unlearned model in the form that the trained one came in.

``python -m experiments.export --unlearned FOLDER --like TRAINED --out NEW`` writes the
checkpoint of a study in the format, names, layouts and dtypes of the model that
``--checkpoint`` gave it.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from experiments.engine import cli
from experiments.engine.checkpoints import hand_back


@dataclasses.dataclass(frozen=True)
class Config:
    """Write an unlearned model in the form that the trained one came in.

    Examples:
      python -m experiments.export --unlearned FOLDER --like trained --out unlearned
    """

    unlearned: pathlib.Path
    """Checkpoint of a study, such as results/TASK/checkpoints/salun/seed_0."""
    like: pathlib.Path
    """The trained model, as it was given to --checkpoint."""
    out: pathlib.Path
    """File or folder to write; it must not be there."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(Config, export, "experiments.export", arguments)


def export(config: Config) -> None:
    """Writes the model and says what was written."""
    kind = hand_back(config.unlearned, config.like, config.out)
    print(f"{config.out}: {kind}, with the names of {config.like}")


if __name__ == "__main__":
    cli.leave(main())
