"""Bad Teacher: the forget set from a random network, the rest from the original."""

from typing import Any

import jax

from experiments.classification import optimisation
from experiments.classification.optimisation import Losses, Optimisation, Trial
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "Bad Teacher",
    "arXiv:2205.08096",
    "Learns the forget set from a random network and the rest from the original.",
)
Recipe = Optimisation


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.bad_teacher(
        losses.train_outputs,
        recipe.sgd(steps),
        incompetent=losses.fresh(jax.random.key(0)),
        eval_outputs_fn=losses.evaluation_outputs,
    )


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try, with runs of at most so many epochs."""
    return optimisation.suggest(trial, epochs, 1e-5, 0.1)
