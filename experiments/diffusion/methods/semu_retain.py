"""SEMU-retain: SEMU's cores, with the other classes beside the forgotten one."""

import dataclasses

from experiments.classification.methods import semu_retain
from experiments.diffusion.generation import MakeLosses
from experiments.diffusion.methods import semu
from experiments.diffusion.optimisation import epochs, rate
from experiments.engine.recipes import NOT_NEGATIVE, field
from mujax import methods

NOTE = semu_retain.NOTE


@dataclasses.dataclass(frozen=True)
class Recipe(semu.Cores):
    """Numbers of SEMU-retain."""

    learning_rate: float = rate(3e-3)
    epochs: int = epochs(4)
    forget_weight: float = field(
        1.0, "Weight of a relabelled example beside a retained one.", NOT_NEGATIVE
    )


def build(recipe: Recipe, losses: MakeLosses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    loss_fn = losses(forget_weight=recipe.forget_weight).relabelled
    method = methods.semu_retain(loss_fn, recipe.adam(steps), **recipe.bases(losses))
    return recipe.relabel(method)
