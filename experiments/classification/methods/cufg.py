"""CUFG: UFG under a curriculum, from easy to hard forget examples."""

import dataclasses
from typing import Any, Literal, get_args

from experiments.classification.methods import ufg
from experiments.classification.optimisation import Losses, Trial
from experiments.engine.recipes import COUNT, field, one_of
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote("CUFG", "arXiv:2509.14633", "UFG under an easy-to-hard curriculum.")
Difficulty = Literal[
    "confidence", "el2n", "loss", "gradient_norm", "gradient_alignment", "random"
]


@dataclasses.dataclass(frozen=True)
class Recipe(ufg.Recipe):
    """Numbers of CUFG."""

    epochs: int = field(10, "Epochs of each curriculum stage.", COUNT, value=True)
    stages: int = field(3, "Number of curriculum stages.", COUNT)
    difficulty: Difficulty = field(  # noqa: RUF009
        "confidence", "Stages by this score.", one_of(*get_args(Difficulty))
    )


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.cufg(
        losses.train,
        recipe.sgd(steps, recipe.stages),
        stages=recipe.stages,
        **recipe.corrector(losses, steps),
    )


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try: up to five stages, of a third of the epochs at most."""
    return ufg.suggest(trial, -(-epochs // 3)) | {
        "stages": trial.suggest_int("stages", 2, 5),
        "difficulty": trial.suggest_categorical("difficulty", get_args(Difficulty)),
    }
