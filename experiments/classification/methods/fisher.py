"""Fisher forgetting: noise on the weights that the retain set does not mind."""

import dataclasses
from typing import Any

from experiments.classification.optimisation import Losses, Trial
from experiments.engine.recipes import COUNT, NOT_NEGATIVE, field
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "Fisher",
    "arXiv:1911.04933",
    "Adds, once, clamped noise where the retain set does not mind it.",
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Numbers of Fisher forgetting."""

    noise: float = field(1e-6, "Variance of the noise times information.", NOT_NEGATIVE)
    cap: float = field(1e-3, "Largest standard deviation of the noise.", NOT_NEGATIVE)
    epochs: int = field(1, "Times that the data are read.", COUNT, value=True)
    batch_size: int = field(64, "Examples of a batch.", COUNT)


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    del steps
    return methods.fisher(
        losses.evaluation,
        noise=recipe.noise,
        cap=recipe.cap,
        num_classes=losses.num_classes,
    )


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try, with runs of at most so many epochs."""
    del epochs
    return {
        "noise": trial.suggest_float("noise", 1e-9, 1e-3, log=True),
        "cap": trial.suggest_float("cap", 1e-4, 0.1, log=True),
    }
