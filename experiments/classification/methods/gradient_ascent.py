"""Gradient ascent: the baseline that only undoes what the forget set taught."""

from typing import Any

from experiments.classification import optimisation
from experiments.classification.optimisation import Losses, Optimisation, Trial
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote("GA", "arXiv:2109.13398", "Ascends the loss of the forget set.")
Recipe = Optimisation


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.gradient_ascent(losses.train, recipe.sgd(steps))


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try, with runs of at most so many epochs."""
    return optimisation.suggest(trial, epochs, 1e-5, 0.05)
