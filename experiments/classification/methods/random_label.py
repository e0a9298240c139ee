"""Random labels: the baseline that SalUn adds its mask to."""

import dataclasses
from typing import Any

from experiments.classification import optimisation
from experiments.classification.optimisation import Losses, Optimisation, Trial
from experiments.engine.recipes import SWITCH, field
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "RL", "arXiv:1911.04933", "Trains on random labels for the forget set."
)


@dataclasses.dataclass(frozen=True)
class Recipe(Optimisation):
    """Numbers of relabelling."""

    exclude_true: bool = field(True, "Draw from the other labels only.", SWITCH)
    joint: bool = field(False, "Shuffle forget and retain examples together.", SWITCH)


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.random_label(
        losses.train,
        recipe.sgd(steps),
        exclude_true=recipe.exclude_true,
        joint=recipe.joint,
    )


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try, with runs of at most so many epochs."""
    return optimisation.suggest(trial, epochs, 1e-4, 0.1) | {
        "joint": trial.suggest_categorical("joint", [False, True]),
        "exclude_true": trial.suggest_categorical("exclude_true", [False, True]),
    }
