"""SalUn on the least salient weights: a control that tells whether saliency matters."""

import jax
import jax.numpy as jnp

from experiments.classification.methods import salun
from experiments.classification.optimisation import Losses
from experiments.reporting.report import MethodNote
from mujax import methods, saliency

NOTE = MethodNote(
    "Smallest mask", "", "SalUn on as many of the least salient weights: a control."
)
Recipe = salun.Recipe


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return salun.build(recipe, losses, steps, score=unimportance)


suggest = salun.suggest


def unimportance(loss_fn, params, batches):
    """Saliency in reverse."""
    scores = saliency.gradient_saliency(loss_fn, params, batches)
    return jax.tree.map(jnp.negative, scores)
