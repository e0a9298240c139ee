"""NegGrad+: descends the retain loss and ascends the forget loss in one step."""

import dataclasses
from typing import Any

from experiments.classification import optimisation
from experiments.classification.optimisation import Losses, Optimisation, Trial
from experiments.engine.recipes import SHARE, field
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "NegGrad+", "arXiv:2302.09880", "Descends the retain and ascends the forget loss."
)


@dataclasses.dataclass(frozen=True)
class Recipe(Optimisation):
    """Numbers of NegGrad+."""

    retain_share: float = field(0.95, "Weight of the retain loss.", SHARE)


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.neggrad_plus(
        losses.train, recipe.sgd(steps), retain_share=recipe.retain_share
    )


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try, with runs of at most so many epochs."""
    return optimisation.suggest(trial, epochs, 1e-4, 0.1) | {
        "retain_share": trial.suggest_float("retain_share", 0.5, 0.999)
    }
