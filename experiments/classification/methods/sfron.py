"""SFRon: salient, weighted ascent on the forget set between retain steps."""

import dataclasses
from typing import Any

import optax

from experiments.classification import optimisation
from experiments.classification.optimisation import Losses, Optimisation, Trial
from experiments.engine.programs import cosine_rate
from experiments.engine.recipes import COUNT, NOT_NEGATIVE, POSITIVE, field
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "SFRon",
    "arXiv:2409.19732",
    "Ascends, every few retain steps, on the weights that matter to the forget set.",
)


@dataclasses.dataclass(frozen=True)
class Recipe(Optimisation):
    """Numbers of SFRon."""

    epochs: int = field(5, "Epochs.", COUNT, value=True)
    forget_rate: float = field(
        0.01, "Rate of a forget step at the start; it falls along a cosine.", POSITIVE
    )
    every: int = field(5, "Retain steps for each forget step.", COUNT)
    power: float = field(
        0.5, "How much examples that are forgotten count less.", NOT_NEGATIVE
    )
    importance: float = field(
        1.0, "How much more a weight must matter to the forget set.", NOT_NEGATIVE
    )
    clip: float = field(7.0, "Largest norm of a forget step's gradient.", POSITIVE)


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    rate = cosine_rate(recipe.forget_rate, steps * recipe.epochs / recipe.every, True)
    return methods.sfron(
        losses.train_outputs,
        recipe.sgd(steps),
        optax.chain(optax.clip_by_global_norm(recipe.clip), optax.sgd(rate)),
        every=recipe.every,
        power=recipe.power,
        importance=recipe.importance,
        eval_outputs_fn=losses.evaluation_outputs,
    )


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try, with runs of at most so many epochs."""
    return optimisation.suggest(trial, epochs, 1e-3, 0.3) | {
        "forget_rate": trial.suggest_float("forget_rate", 1e-3, 1.0, log=True),
        "importance": trial.suggest_float("importance", 0.1, 3.0, log=True),
    }
