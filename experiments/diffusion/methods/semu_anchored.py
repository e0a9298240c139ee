"""SEMU-anchored: SEMU that learns from the frozen original."""

import dataclasses

from experiments.diffusion.generation import MakeLosses
from experiments.diffusion.methods import semu
from experiments.diffusion.optimisation import cosine, epochs, rate
from experiments.engine.recipes import FINITE, field
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "SEMU-anchored",
    "",
    "SEMU that learns from the frozen original, whose answers for the other classes it "
    "keeps on the forget images.",
)


@dataclasses.dataclass(frozen=True)
class Recipe(semu.Cores):
    """Numbers of SEMU-anchored."""

    learning_rate: float = rate(2e-3)
    epochs: int = epochs(24)
    cosine: bool = cosine(True)
    anchor: float = field(
        3.0, "Weight of keeping the original's answers for other classes.", FINITE
    )


def build(recipe: Recipe, losses: MakeLosses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    method = methods.semu(
        losses(anchor=recipe.anchor).anchored,
        recipe.adam(steps),
        with_original=True,
        **recipe.bases(losses),
    )
    return recipe.relabel(method)
