"""SalUn with a random mask: the control that tells whether saliency matters."""

import jax

from experiments.diffusion.generation import MakeLosses
from experiments.diffusion.methods import salun
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "Random mask", "", "SalUn with a random mask of the same density: the control."
)
Recipe = salun.Recipe


def build(recipe: Recipe, losses: MakeLosses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return salun.build(recipe, losses, steps, score=_random_scores)


def _random_scores(loss_fn, params, batches):
    """Saliency that knows nothing."""
    del loss_fn
    leaves, structure = jax.tree.flatten(params)
    key = jax.random.fold_in(jax.random.key(1), batches[0]["index"][0])
    keys = jax.random.split(key, len(leaves))
    scores = [
        jax.random.uniform(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, scores)
