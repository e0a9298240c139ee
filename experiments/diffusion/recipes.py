"""With which numbers a diffusion model is trained, and what the report says of methods.

The methods and their numbers are in the folder ``methods``.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.classification import recipes
from experiments.diffusion.generation import MakeLosses
from experiments.diffusion.methods import METHODS
from experiments.diffusion.optimisation import Optimisation
from experiments.engine.recipes import Changes, fields
from experiments.engine.recipes import resolve as resolve_as_given
from experiments.reporting.report import MethodNote
from mujax import methods

TRAINING: Mapping[str, Optimisation] = {
    "digits": Optimisation(learning_rate=2e-3, epochs=40, cosine=True),
    "fashion_mnist": Optimisation(learning_rate=1e-3, epochs=10, cosine=True),
    "cifar10": Optimisation(learning_rate=2e-4, epochs=500, batch_size=128),
}
"""Recipe of the original model and of Retrain, by data set."""

NOTES: Mapping[str, MethodNote] = recipes.BASELINE_NOTES | {
    name: method.NOTE for name, method in METHODS.items()
}


def resolve(
    changes: Changes, training: Any, chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """The numbers of every method, and of training under ``"training"``.

    Where an energy is given, a rank of the recipe's own would hide it.
    """
    found = dict(chosen)
    for name, recipe in chosen.items():
        given = {*changes.get("recipe", {}), *changes.get(name, {})}
        if "energy" in given & fields(recipe).keys():
            found[name] = dataclasses.replace(recipe, rank=0)
    return resolve_as_given(changes, training, found)


def retrain(recipe: Optimisation, losses: MakeLosses, steps: int) -> methods.Method:
    """Training anew, of Retrain and of the original model."""
    return methods.retrain(losses().noise, recipe.adam(steps))
