"""l1-sparse: fine-tuning towards sparse weights."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from experiments.classification import optimisation
from experiments.classification.optimisation import Losses, Optimisation, Trial
from experiments.engine.recipes import NOT_NEGATIVE, field
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "l1-sparse", "arXiv:2304.04934", "Fine-tunes under a 1-norm that fades out."
)


@dataclasses.dataclass(frozen=True)
class Recipe(Optimisation):
    """Numbers of l1-sparse."""

    strength: float = field(
        5e-4, "Weight of the 1-norm at the start; it falls to 0.", NOT_NEGATIVE
    )


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""

    def strength(step):
        return recipe.strength * jnp.maximum(1 - step / (steps * recipe.epochs), 0)

    return methods.l1_sparse(losses.train, recipe.sgd(steps), strength=strength)


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try, with runs of at most so many epochs."""
    return optimisation.suggest(trial, epochs, 1e-3, 0.3) | {
        "strength": trial.suggest_float("strength", 1e-6, 1e-2, log=True)
    }
