"""SalUn-soft: random labels, with the weights that move least pulled back."""

import dataclasses

from experiments.classification.methods import salun
from experiments.classification.optimisation import Losses
from experiments.engine.recipes import SHARE, field
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "SalUn-soft",
    "arXiv:2310.12508",
    "RL that pulls the weights that moved least back to the original.",
)


@dataclasses.dataclass(frozen=True)
class Recipe(salun.Recipe):
    """Numbers of SalUn-soft."""

    density: float = field(
        0.5, "Share of the parameters pulled back at the start.", SHARE
    )


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.salun_soft(
        losses.train,
        recipe.sgd(steps),
        fraction=recipe.density,
        exclude_true=recipe.exclude_true,
        joint=recipe.joint,
        total_steps=steps * recipe.epochs,
    )


suggest = salun.suggest
