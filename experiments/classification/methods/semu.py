"""SEMU: cores of the forget gradient's singular directions, without retain data."""

import dataclasses
from typing import Any

from experiments.classification import optimisation
from experiments.classification.optimisation import Losses, Optimisation, Trial
from experiments.engine import kernels
from experiments.engine.recipes import COUNT_OR_0, SHARE_ABOVE_0, SWITCH, field
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "SEMU",
    "arXiv:2502.07587",
    "Trains a small core of the forget gradient's singular directions, without retain "
    "data.",
)


@dataclasses.dataclass(frozen=True)
class Recipe(Optimisation):
    """Numbers of SEMU."""

    energy: float = field(
        0.95,
        "Share of the squared singular values that the bases reach.",
        SHARE_ABOVE_0,
    )
    rank: int = field(
        0, "Fixed rank of every kernel; 0 takes it from the energy.", COUNT_OR_0
    )
    orthogonal: bool = field(
        True, "Remove the direction of the weights from the gradient first.", SWITCH
    )
    axes: str = field(
        "",
        "How kernels are seen as matrices where names and shapes do not tell, such as "
        "'blocks/*/w=batch:0;rows:1;columns:2 stem/w=none'.",
        kernels.AXES,
    )


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.semu(
        losses.train,
        recipe.sgd(steps),
        energy=recipe.energy,
        orthogonal=recipe.orthogonal,
        eval_loss_fn=losses.evaluation,
        rank=recipe.rank or None,
        few_shapes=True,
        overrides=kernels.parse(recipe.axes),
    )


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try, with runs of at most so many epochs."""
    # Without retain data, wrong labels ruin a model within an epoch of tiny steps.
    return optimisation.suggest(trial, epochs, 1e-6, 0.3) | {
        "energy": trial.suggest_float("energy", 0.5, 0.99),
        "orthogonal": trial.suggest_categorical("orthogonal", [False, True]),
    }
