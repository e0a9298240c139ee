"""AMUN: the forget set's nearest adversarial examples, with the labels they get."""

import dataclasses
from typing import Any

from experiments.classification import optimisation
from experiments.classification.methods.boundary_shrink import pixels, with_pixels
from experiments.classification.optimisation import Losses, Optimisation, Trial
from experiments.engine.recipes import COUNT, POSITIVE, SHARE, field
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "AMUN",
    "arXiv:2503.00917",
    "Learns the nearest adversarial examples of the forget set, beside the retain set.",
)


@dataclasses.dataclass(frozen=True)
class Recipe(Optimisation):
    """Numbers of AMUN."""

    share: float = field(0.1, "Weight of the adversarial examples.", SHARE)
    size: float = field(0.5, "Radius of the first ball, pixels in [0, 1].", POSITIVE)
    radii: int = field(4, "Balls to look in, each twice as wide.", COUNT)
    attack_steps: int = field(10, "Steps of the attack in each ball.", COUNT)


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.amun(
        losses.train_outputs,
        recipe.sgd(steps),
        get_inputs=pixels,
        set_inputs=with_pixels,
        share=recipe.share,
        size=recipe.size,
        radii=recipe.radii,
        attack_steps=recipe.attack_steps,
        eval_outputs_fn=losses.evaluation_outputs,
    )


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try, with runs of at most so many epochs."""
    return optimisation.suggest(trial, epochs, 1e-4, 0.1) | {
        "share": trial.suggest_float("share", 0.02, 0.5, log=True)
    }
