"""With which numbers a classifier is trained and forgets, for each task.

The files in ``configs`` hold the numbers that a search against a validation Retrain
found for each task, beside the gap that they reached there (``python -m
experiments.tune``); those of ResNet-18 and the fast network on CIFAR-10 are chosen by
hand, near the published ones. A method without a recipe there takes its own defaults,
which are close to the published ones, too; the methods are in the folder ``methods``.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.classification.methods import METHODS
from experiments.classification.optimisation import Losses, Optimisation
from experiments.engine import recipes
from experiments.reporting.report import MethodNote
from mujax import methods

TRAINING: Mapping[str, Optimisation] = {
    "digits": Optimisation(learning_rate=0.1, epochs=30, cosine=True),
    "fashion_mnist": Optimisation(
        learning_rate=0.2, epochs=12, batch_size=128, cosine=True
    ),
}
"""Recipe of the original model and of Retrain, by data set."""

DEFAULT_TRAINING = Optimisation(
    learning_rate=0.1, epochs=182, batch_size=256, cosine=True
)

BASELINE_NOTES: dict[str, MethodNote] = {
    "original": MethodNote(
        "Original", "", "The model trained on everything, before unlearning."
    ),
    "retrain": MethodNote(
        "Retrain", "", "Trained anew without the forget set: exact unlearning."
    ),
    "retrain_again": MethodNote(
        "Retrain again",
        "",
        "A second, independent Retrain: its gap to the first is the noise floor.",
    ),
}
NOTES: Mapping[str, MethodNote] = BASELINE_NOTES | {
    name: method.NOTE for name, method in METHODS.items()
}

CONFIGS = pathlib.Path(__file__).parent / "configs"
"""Searched recipes, one file a task; ``python -m experiments.tune`` writes them."""


def retrain(recipe: Optimisation, losses: Losses, steps: int) -> methods.Method:
    """Training anew, of Retrain and of the original model."""
    return methods.retrain(losses.train, recipe.sgd(steps))


def searched(tasks: Sequence[str], path: pathlib.Path | None = None) -> dict[str, Any]:
    """The recipe of every method: the searched one, or the defaults.

    Args:
      tasks: names of files in ``configs``, of which the first that exists counts.
      path: a file of recipes to take instead, which must.

    Raises:
      RecipeError: the file is not one of recipes.
    """
    found = {name: method.Recipe() for name, method in METHODS.items()}
    known = {file.stem: file for file in CONFIGS.glob("*.json")}
    for source in [path] if path else [known[task] for task in tasks if task in known]:
        return found | recipes.read(source, METHODS)
    return found
