"""DELETE: the original's outputs without the true class, on the forget set alone."""

from typing import Any

from experiments.classification import optimisation
from experiments.classification.optimisation import Losses, Optimisation, Trial
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "DELETE",
    "arXiv:2503.23751",
    "Learns the original's outputs without the true class, without retain data.",
)
Recipe = Optimisation


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.delete(
        losses.train_outputs,
        recipe.sgd(steps),
        eval_outputs_fn=losses.evaluation_outputs,
    )


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try, with runs of at most so many epochs."""
    return optimisation.suggest(trial, epochs, 1e-6, 0.05)
