"""GDR-GMA: NegGrad+ without conflicts, that yields where the retain loss grows."""

import dataclasses
from typing import Any

from experiments.classification import optimisation
from experiments.classification.optimisation import Losses, Optimisation, Trial
from experiments.engine.recipes import NOT_NEGATIVE, field
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "GDR-GMA",
    "ACM MM 2024",
    "Both gradients without what conflicts, weighed by how well the retain set is "
    "kept; here with SGD.",
)


@dataclasses.dataclass(frozen=True)
class Recipe(Optimisation):
    """Numbers of GDR-GMA."""

    level: float = field(
        0.02, "Retain loss at which both gradients count alike.", NOT_NEGATIVE
    )
    slope: float = field(
        100.0, "How fast forgetting yields to a larger loss.", NOT_NEGATIVE
    )


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.gdr_gma(
        losses.train, recipe.sgd(steps), level=recipe.level, slope=recipe.slope
    )


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try, with runs of at most so many epochs."""
    return optimisation.suggest(trial, epochs, 1e-5, 0.05) | {
        "level": trial.suggest_float("level", 1e-4, 0.3, log=True)
    }
