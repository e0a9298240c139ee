"""ESD: answers the class as the original, guided away from it, would."""

import dataclasses

from experiments.diffusion.generation import MakeLosses
from experiments.diffusion.optimisation import Optimisation, epochs, rate
from experiments.engine.recipes import FINITE, field
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "ESD",
    "arXiv:2303.07345",
    "Answers the class as the original, guided away from it, would.",
)


@dataclasses.dataclass(frozen=True)
class Recipe(Optimisation):
    """Numbers of ESD."""

    learning_rate: float = rate(2e-4)
    epochs: int = epochs(6)
    strength: float = field(1.0, "How far beyond the null condition to go.", FINITE)


def build(recipe: Recipe, losses: MakeLosses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.esd(losses(strength=recipe.strength).erase, recipe.adam(steps))
