"""Which part of SalUn, SEMU and CUFG does what: ``python -m experiments.ablation``.

Every combination of a mask, a corrector, a space and a curriculum forgets the same
images, over seeds that redo training. The gaps to Retrain of all of them give the
effect of each part, and of each pair of parts beyond the sum of both.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from experiments.ablation import cells
from experiments.ablation.task import Ablation
from experiments.classification import config as classification
from experiments.classification import recipes
from experiments.classification.request import as_learned, fit, make_split
from experiments.engine import bench, cli, kernels
from experiments.engine.recipes import resolve


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Ablate the parts of SalUn, SEMU and CUFG: every combination beside Retrain.

    Examples:
      python -m experiments.ablation
      python -m experiments.ablation --seeds 2 --masks none,salient --orders none,easy
      python -m experiments.ablation --none-corrector-full-easy.threshold 0.3
      python -m experiments.ablation --help-method none_corrector_full_easy
    """

    HEADING: ClassVar[str] = "ablation"
    METHODS: ClassVar = cells.CELLS
    USUAL: ClassVar = ()

    seeds: int = 10
    """Number of seeds, from 0; effects need two at least."""
    train_size: int | None = 500
    """Learn from so many training images only, drawn at random once: fewer are
    remembered better, so that there is more to forget. None takes all."""
    masks: str = "all"
    """Masks, separated by commas: none, salient (SalUn's), random, smallest."""
    correctors: str = "all"
    """What forgets: none (random labels), corrector (UFG's), projection (PCGrad's)."""
    spaces: str = "all"
    """Where weights move: full, or cores (SEMU's)."""
    orders: str = "all"
    """Curricula: none, easy (to hard), hard (to easy), random."""
    methods: str = dataclasses.field(default="usual", metadata={"flag": None})

    @property
    def task(self) -> str:
        """Name of the task, for the default folder."""
        return f"ablation-{super().task}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(Config, ablate, "experiments.ablation", arguments)


def ablate(config: Config) -> None:
    """Runs the combinations that a configuration asks for, or what is missing."""
    config = _by_cells(config)
    chosen = cli.chosen(config)
    dataset = classification.load_data(config)
    split = make_split(config, dataset, range(config.seeds))
    dataset = as_learned(config, dataset, split)
    _, notes = fit({}, (), config, dataset, split)
    numbers = _resolve(config)
    left_out = cells.left_out(chosen, numbers, len(split.forget))
    chosen = [name for name in chosen if name not in left_out]
    if not chosen:
        name, why = next(iter(left_out.items()))
        raise cli.ConfigError(f"No combination is left to run: {name} {why}, …")
    notes += [f"{name} is not run: it {why}." for name, why in left_out.items()]
    task = Ablation(config, dataset, split, notes, left_out)
    kernels.check(task.shapes(), {name: numbers[name] for name in chosen})
    bench.run_study("experiments.ablation", config, task, numbers, chosen, notes)


def _by_cells(config: Config) -> Config:
    """The configuration with its levels as names of cells, so that more can follow."""
    wanted = {
        factor: cli.choose(getattr(config, f"{factor}s"), levels, factor)
        for factor, levels in cells.FACTORS.items()
    }
    names = [
        name
        for name, cell in cells.CELLS.items()
        if all(getattr(cell, factor) in levels for factor, levels in wanted.items())
    ]
    everything = {f"{factor}s": "all" for factor in cells.FACTORS}
    return dataclasses.replace(config, **everything, methods=",".join(names))


def _resolve(config: Config) -> dict[str, object]:
    """The numbers of every cell, and of training under ``"training"``."""
    training = recipes.TRAINING.get(config.dataset, recipes.DEFAULT_TRAINING)
    found = recipes.searched([config.recipe_task], config.recipes)
    return resolve(config.changes, training, cells.numbers(found))


if __name__ == "__main__":
    cli.leave(main())
