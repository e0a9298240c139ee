"""Boundary shrinking: the forget set learns the class across the nearest boundary."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from experiments.classification import optimisation
from experiments.classification.optimisation import Losses, Optimisation, Trial
from experiments.engine.recipes import POSITIVE, field
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "Boundary shrink",
    "arXiv:2303.11570",
    "Learns for each forget image the class across the nearest boundary, without "
    "retain data.",
)


@dataclasses.dataclass(frozen=True)
class Recipe(Optimisation):
    """Numbers of boundary shrinking."""

    size: float = field(0.1, "Step across the boundary, pixels in [0, 1].", POSITIVE)


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.boundary_shrink(
        losses.train_outputs,
        recipe.sgd(steps),
        get_inputs=pixels,
        set_inputs=with_pixels,
        size=recipe.size,
        eval_outputs_fn=losses.evaluation_outputs,
    )


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try, with runs of at most so many epochs."""
    return optimisation.suggest(trial, epochs, 1e-5, 0.05) | {
        "size": trial.suggest_float("size", 0.02, 0.5, log=True)
    }


def pixels(batch: Any) -> jax.Array:
    """The images of a batch, in [0, 1]."""
    return jnp.asarray(batch["image"], jnp.float32) / 255


def with_pixels(batch: Any, pixels: jax.Array) -> Any:
    """The batch with other images in their place."""
    return batch | {"image": 255 * pixels}
