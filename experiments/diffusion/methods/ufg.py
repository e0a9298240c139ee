"""UFG: retain steps corrected by the forgetting gradient."""

import dataclasses

from experiments.classification.methods import ufg
from experiments.diffusion.generation import MakeLosses
from experiments.diffusion.optimisation import Optimisation, epochs
from experiments.engine.recipes import FINITE, field
from mujax import methods, transforms

NOTE = ufg.NOTE


@dataclasses.dataclass(frozen=True)
class Recipe(Optimisation):
    """Numbers of UFG."""

    epochs: int = epochs(3)
    threshold: float = field(-1.0, "Cosine above which the corrector fires.", FINITE)
    correction: float = field(0.2, "Weight of the forgetting direction.", FINITE)


def build(recipe: Recipe, losses: MakeLosses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    # The two gradients are nearly opposite here, so that the published divisor, the
    # norm of their unweighted sum, is close to zero and blows single steps up.
    combine = transforms.correct_updates(
        recipe.threshold, recipe.correction, weighted_norm=True
    )
    return methods.ufg(
        losses().noise, recipe.adam(steps), combine=combine, sampled=True
    )
