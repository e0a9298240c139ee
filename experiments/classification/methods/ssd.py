"""SSD: dampens the weights that matter to the forget set above all."""

import dataclasses
from typing import Any

from experiments.classification.optimisation import Losses, Trial
from experiments.engine.recipes import COUNT, POSITIVE, field
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "SSD",
    "arXiv:2308.07707",
    "Dampens, once, the weights that matter more to the forget set than to all.",
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Numbers of SSD."""

    threshold: float = field(
        10.0, "How much more a weight must matter to the forget set.", POSITIVE
    )
    dampening: float = field(1.0, "Factor on the ratio of importances.", POSITIVE)
    epochs: int = field(1, "Times that the data are read.", COUNT, value=True)
    batch_size: int = field(64, "Examples of a batch.", COUNT)


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    del steps
    return methods.ssd(
        losses.evaluation, threshold=recipe.threshold, dampening=recipe.dampening
    )


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try, with runs of at most so many epochs."""
    del epochs
    return {
        "threshold": trial.suggest_float("threshold", 0.5, 50.0, log=True),
        "dampening": trial.suggest_float("dampening", 0.1, 5.0, log=True),
    }
