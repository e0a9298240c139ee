"""SalUn on the least salient weights: a control that tells whether saliency matters."""

from experiments.classification.methods import smallest_mask
from experiments.diffusion.generation import MakeLosses
from experiments.diffusion.methods import salun
from mujax import methods

NOTE = smallest_mask.NOTE
Recipe = salun.Recipe


def build(recipe: Recipe, losses: MakeLosses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return salun.build(recipe, losses, steps, score=smallest_mask.unimportance)
