"""Unlearn from an image classifier, beside Retrain.

``python -m experiments.classification`` trains the original model, two Retrains and
every method over seeds, fills a table in as it goes, and leaves a folder with
results, plots, checkpoints and a report. Run again it computes what is missing.
"""

from collections.abc import Sequence

from experiments.classification.config import Config, load_data, resolve_recipes
from experiments.classification.request import as_learned, fit, make_split
from experiments.classification.task import Classification
from experiments.engine import bench, cli, kernels


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(Config, unlearn, "experiments.classification", arguments)


def unlearn(config: Config) -> None:
    """Runs the study that a configuration describes, or what of it is missing."""
    chosen = cli.chosen(config)
    dataset = load_data(config)
    split = make_split(config, dataset, range(config.seeds))
    dataset = as_learned(config, dataset, split)
    numbers, notes = fit(resolve_recipes(config), chosen, config, dataset, split)
    task = Classification(config, dataset, split, notes)
    kernels.check(task.shapes(), {name: numbers[name] for name in chosen})
    bench.run_study("experiments.classification", config, task, numbers, chosen, notes)


if __name__ == "__main__":
    cli.leave(main())
