"""SalUn: random labels on the weights that matter most to the forget set."""

import dataclasses
from collections.abc import Callable
from typing import Any

from experiments.classification.methods import random_label
from experiments.classification.optimisation import Losses, Trial
from experiments.engine.recipes import SHARE, field
from experiments.reporting.report import MethodNote
from mujax import methods, saliency

NOTE = MethodNote(
    "SalUn", "arXiv:2310.12508", "RL on the weights most salient to the forget set."
)


@dataclasses.dataclass(frozen=True)
class Recipe(random_label.Recipe):
    """Numbers of SalUn."""

    density: float = field(0.5, "Share of the parameters that may move.", SHARE)


def build(
    recipe: Recipe,
    losses: Losses,
    steps: int,
    score: Callable[..., Any] = saliency.gradient_saliency,
) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.salun(
        losses.train,
        recipe.sgd(steps),
        fraction=recipe.density,
        score=score,
        exclude_true=recipe.exclude_true,
        joint=recipe.joint,
        eval_loss_fn=losses.evaluation,
    )


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try, with runs of at most so many epochs."""
    return random_label.suggest(trial, epochs) | {
        "density": trial.suggest_float("density", 0.05, 0.95)
    }
