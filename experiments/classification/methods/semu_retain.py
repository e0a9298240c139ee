"""SEMU-retain: SEMU's cores, with the retain set beside the forget set."""

from experiments.classification.methods import semu
from experiments.classification.optimisation import Losses
from experiments.engine import kernels
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote("SEMU-retain", "arXiv:2502.07587", "SEMU with the retain set beside.")
Recipe = semu.Recipe


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.semu_retain(
        losses.train,
        recipe.sgd(steps),
        energy=recipe.energy,
        orthogonal=recipe.orthogonal,
        eval_loss_fn=losses.evaluation,
        rank=recipe.rank or None,
        few_shapes=True,
        overrides=kernels.parse(recipe.axes),
    )


suggest = semu.suggest
