"""SEMU: trains cores of the forget gradient's singular directions, without the rest."""

import dataclasses
from typing import Any

from experiments.classification.methods import semu
from experiments.diffusion.generation import MakeLosses
from experiments.diffusion.optimisation import (
    Relabelling,
    cosine,
    epochs,
    next_class,
    rate,
)
from experiments.engine.recipes import COUNT_OR_0, NOT_NEGATIVE, SHARE_ABOVE_0, field
from mujax import methods

NOTE = semu.NOTE


@dataclasses.dataclass(frozen=True)
class Cores(Relabelling):
    """Numbers of a method that trains cores."""

    energy: float = field(
        0.95,
        "Share of the squared singular values that the bases reach.",
        SHARE_ABOVE_0,
    )
    rank: int = field(
        9, "Fixed rank of every kernel; 0 takes it from the energy.", COUNT_OR_0
    )

    def bases(self, losses: MakeLosses) -> dict[str, Any]:
        """The options of ``mujax.methods.semu`` that these numbers stand for."""
        return dict(
            energy=self.energy,
            rank=self.rank or None,
            basis_loss_fn=losses().guided,
        )


@dataclasses.dataclass(frozen=True)
class Recipe(Cores):
    """Numbers of SEMU.

    For classes 3 and 7 of digits a rate of 5e-4 is enough: it sees no other class.
    """

    learning_rate: float = rate(7e-4)
    epochs: int = epochs(8)
    cosine: bool = cosine(True)
    next_class: bool = next_class(False)
    forget_weight: float = field(1.0, "Weight of the loss.", NOT_NEGATIVE)


def build(recipe: Recipe, losses: MakeLosses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    loss_fn = losses(forget_weight=recipe.forget_weight).relabelled
    method = methods.semu(loss_fn, recipe.adam(steps), **recipe.bases(losses))
    return recipe.relabel(method)
