"""Fine-tuning: the baseline that goes on training without the forget set."""

import dataclasses

from experiments.classification.methods import finetune
from experiments.diffusion.generation import MakeLosses
from experiments.diffusion.optimisation import Optimisation, epochs
from mujax import methods

NOTE = finetune.NOTE


@dataclasses.dataclass(frozen=True)
class Recipe(Optimisation):
    """Numbers of fine-tuning."""

    epochs: int = epochs(3)


def build(recipe: Recipe, losses: MakeLosses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.finetune(losses().noise, recipe.adam(steps))
