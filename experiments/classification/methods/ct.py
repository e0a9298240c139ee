"""CT: transposes the convolutions' windows, then fine-tunes."""

from typing import Any

from experiments.classification import optimisation
from experiments.classification.optimisation import Losses, Optimisation, Trial
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "CT", "arXiv:2410.01276", "Transposes every convolution's window, then fine-tunes."
)
Recipe = Optimisation


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.ct(losses.train, recipe.sgd(steps))


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try, with runs of at most so many epochs."""
    return optimisation.suggest(trial, epochs, 1e-3, 0.3)
