"""SalUn: relabelling on the weights that matter most to the forgotten class."""

import dataclasses
from typing import Any

from experiments.classification.methods import salun
from experiments.diffusion.generation import MakeLosses
from experiments.diffusion.methods import random_label
from experiments.engine.recipes import SHARE, field
from mujax import methods

NOTE = salun.NOTE


@dataclasses.dataclass(frozen=True)
class Recipe(random_label.Recipe):
    """Numbers of SalUn."""

    density: float = field(0.5, "Share of the parameters that may move.", SHARE)


def build(
    recipe: Recipe, losses: MakeLosses, steps: int, **options: Any
) -> methods.Method:
    """The method; ``steps`` are those of an epoch, options go to ``methods.salun``."""
    made = losses(forget_weight=recipe.forget_weight)
    method = methods.salun(
        made.relabelled,
        recipe.adam(steps),
        fraction=recipe.density,
        eval_loss_fn=made.guided,
        joint=True,
        **options,
    )
    return recipe.relabel(method)
