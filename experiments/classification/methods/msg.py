"""MSG: draws anew what forget and retain set treat alike, then fine-tunes."""

import dataclasses
from typing import Any

from experiments.classification import optimisation
from experiments.classification.optimisation import Losses, Optimisation, Trial
from experiments.engine.recipes import SHARE, field
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "MSG",
    "arXiv:2410.01276",
    "Draws anew the convolution weights whose two gradients are most alike, then "
    "fine-tunes.",
)


@dataclasses.dataclass(frozen=True)
class Recipe(Optimisation):
    """Numbers of MSG."""

    fraction: float = field(0.3, "Share of each kernel that is drawn anew.", SHARE)
    kept_rate: float = field(
        0.1, "Factor on the gradients of what is kept of kernels.", SHARE
    )


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.msg(
        losses.train,
        recipe.sgd(steps),
        fraction=recipe.fraction,
        kept_rate=recipe.kept_rate,
        eval_loss_fn=losses.evaluation,
    )


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try, with runs of at most so many epochs."""
    return optimisation.suggest(trial, epochs, 1e-3, 0.3) | {
        "fraction": trial.suggest_float("fraction", 0.05, 0.8),
        "kept_rate": trial.suggest_float("kept_rate", 0.0, 1.0),
    }
