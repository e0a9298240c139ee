"""Gradient ascent: the baseline that only undoes what the forget set taught."""

import dataclasses

from experiments.classification.methods import gradient_ascent
from experiments.diffusion.generation import MakeLosses
from experiments.diffusion.optimisation import Optimisation, epochs, rate
from mujax import methods

NOTE = gradient_ascent.NOTE


@dataclasses.dataclass(frozen=True)
class Recipe(Optimisation):
    """Numbers of gradient ascent."""

    learning_rate: float = rate(4e-4)
    epochs: int = epochs(4)


def build(recipe: Recipe, losses: MakeLosses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.gradient_ascent(losses().noise, recipe.adam(steps))
