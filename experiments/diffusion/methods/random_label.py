"""Relabelling: the baseline that SalUn adds its mask to."""

import dataclasses

from experiments.classification.methods import random_label
from experiments.diffusion.generation import MakeLosses
from experiments.diffusion.optimisation import Relabelling, epochs, rate
from experiments.engine.recipes import NOT_NEGATIVE, field
from mujax import methods

NOTE = random_label.NOTE


@dataclasses.dataclass(frozen=True)
class Recipe(Relabelling):
    """Numbers of relabelling."""

    learning_rate: float = rate(2e-3)
    epochs: int = epochs(3)
    forget_weight: float = field(
        1.0, "Weight of a relabelled example beside a retained one.", NOT_NEGATIVE
    )


def build(recipe: Recipe, losses: MakeLosses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    loss_fn = losses(forget_weight=recipe.forget_weight).relabelled
    method = methods.random_label(loss_fn, recipe.adam(steps), joint=True)
    return recipe.relabel(method)
