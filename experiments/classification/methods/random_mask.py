"""SalUn with a random mask: a control that tells whether saliency matters."""

import jax
import jax.numpy as jnp

from experiments.classification.methods import salun
from experiments.classification.optimisation import Losses
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "Random mask", "", "SalUn with a random mask of the same density: a control."
)
Recipe = salun.Recipe


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return salun.build(recipe, losses, steps, score=_random_scores)


suggest = salun.suggest


def _random_scores(loss_fn, params, batches):
    """Saliency that knows nothing, another one for another forget set."""
    del loss_fn
    labels = jnp.concatenate([batch["label"] for batch in batches])
    told = jnp.sum(
        labels.astype(jnp.uint32) * jnp.arange(len(labels), dtype=jnp.uint32)
    )
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), told), len(leaves))
    scores = [
        jax.random.uniform(key, leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, scores)
