"""SCRUB: leaves the original on the forget set, stays with it on the retain set."""

import dataclasses
from typing import Any

from experiments.classification import optimisation
from experiments.classification.optimisation import Losses, Optimisation, Trial
from experiments.engine.recipes import NOT_NEGATIVE, POSITIVE, SHARE, field
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "SCRUB",
    "arXiv:2302.09880",
    "Moves away from the original on the forget set and stays on the retain set.",
)


@dataclasses.dataclass(frozen=True)
class Recipe(Optimisation):
    """Numbers of SCRUB."""

    max_share: float = field(
        0.8, "Share of the epochs that also move away on the forget set.", SHARE
    )
    cross_entropy: float = field(0.99, "Weight of the retain loss.", NOT_NEGATIVE)
    stay: float = field(
        0.001, "Weight of staying with the original on the retain set.", NOT_NEGATIVE
    )
    temperature: float = field(4.0, "Temperature of the outputs compared.", POSITIVE)


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.scrub(
        losses.train_outputs,
        recipe.sgd(steps),
        max_steps=recipe.max_share * recipe.epochs * steps,
        cross_entropy=recipe.cross_entropy,
        stay=recipe.stay,
        temperature=recipe.temperature,
        eval_outputs_fn=losses.evaluation_outputs,
    )


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try, with runs of at most so many epochs."""
    return optimisation.suggest(trial, epochs, 1e-5, 0.05) | {
        "max_share": trial.suggest_float("max_share", 0.2, 1.0),
        "stay": trial.suggest_float("stay", 1e-4, 1.0, log=True),
    }
