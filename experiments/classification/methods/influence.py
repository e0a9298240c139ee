"""Influence unlearning: one Newton step that takes the forget set out."""

import dataclasses
from typing import Any

from experiments.classification.optimisation import Losses, Trial
from experiments.engine.recipes import COUNT, POSITIVE, field
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "IU",
    "arXiv:2304.04934",
    "One step along the inverse Fisher matrix of the retain set.",
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Numbers of influence unlearning."""

    scale: float = field(
        0.1, "Length of the step; to first order the share of the forget set.", POSITIVE
    )
    damping: float = field(0.01, "Added to the Fisher matrix's diagonal.", POSITIVE)
    iterations: int = field(50, "Most iterations of conjugate gradients.", COUNT)
    epochs: int = field(1, "Times that the data are read.", COUNT, value=True)
    batch_size: int = field(64, "Examples of a batch.", COUNT)


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    del steps
    return methods.influence(
        losses.evaluation,
        scale=recipe.scale,
        damping=recipe.damping,
        iterations=recipe.iterations,
    )


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try, with runs of at most so many epochs."""
    del epochs
    return {
        "scale": trial.suggest_float("scale", 1e-3, 10.0, log=True),
        "damping": trial.suggest_float("damping", 1e-4, 1.0, log=True),
    }
