"""Kinds of models whose truth is known, for the audit of audits.

Bad kinds are the original or made of it, and have forgotten nothing whatever they look
like. Good ones never saw what was to be forgotten.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.classification.optimisation import Losses, Optimisation
from experiments.engine.task import ORIGINAL
from experiments.reporting.report import MethodNote
from mujax import methods

AGAIN, OTHERWISE, ROUNDED = "retrain_again", "retrain_otherwise", "rounded"
WRAPPER, CONSTANT = "wrapper", "constant"


class Kind(NamedTuple):
    """A kind of models: how one is made of the original, or anew.

    Attributes:
      note: what it is.
      recipe: its numbers, of those that the models were trained with.
      build: ``(recipe, losses, steps) -> method``.
    """

    note: MethodNote
    recipe: Callable[[Optimisation], Optimisation]
    build: Callable[[Optimisation, Losses, int], methods.Method]


def _otherwise(training: Optimisation) -> Optimisation:
    return dataclasses.replace(
        training,
        learning_rate=0.75 * training.learning_rate,
        epochs=max(1, round(1.25 * training.epochs)),
    )


def _brief(rate: float, epochs: int = 1) -> Callable[[Optimisation], Optimisation]:
    """Few epochs at a share of the rate that the models were trained with."""

    def recipe(training: Optimisation) -> Optimisation:
        return dataclasses.replace(
            training,
            learning_rate=rate * training.learning_rate,
            epochs=epochs,
            cosine=False,
        )

    return recipe


def _retrain(recipe: Optimisation, losses: Losses, steps: int) -> methods.Method:
    return methods.retrain(losses.train, recipe.sgd(steps))


def _finetune(recipe: Optimisation, losses: Losses, steps: int) -> methods.Method:
    return methods.finetune(losses.train, recipe.sgd(steps))


def _ascend_elsewhere(
    recipe: Optimisation, losses: Losses, steps: int
) -> methods.Method:
    """Ascent on the retain set."""
    method = methods.gradient_ascent(losses.train, recipe.sgd(steps))
    return methods.with_data(method, passes=((methods.RETAIN,),))


def _new_head(recipe: Optimisation, losses: Losses, steps: int) -> methods.Method:
    """Zeroes the weights that lead to the classes, and trains those alone on R."""
    method = methods.finetune(losses.train, recipe.sgd(steps))

    def is_head(leaf: jax.Array) -> jax.Array:
        return jnp.full(leaf.shape, leaf.shape[-1:] == (losses.num_classes,))

    def init(params, model_state=(), forget_batches=None, *, mask=None):
        head = jax.tree.map(is_head, params)
        begun = jax.tree.map(lambda h, p: jnp.where(h, 0, p), head, params)
        if mask is not None:
            head = jax.tree.map(jnp.logical_and, head, mask)
        return method.init(begun, model_state, forget_batches, mask=head)

    return method._replace(init=init)


def _changed(change: Callable[[Any], Any]) -> Callable[..., methods.Method]:
    """Changes the original's weights once; steps do nothing."""

    def build(recipe: Optimisation, losses: Losses, steps: int) -> methods.Method:
        del recipe, steps
        still = methods.finetune(losses.train, optax.set_to_zero())

        def init(params, model_state=(), forget_batches=None, *, mask=None):
            return still.init(change(params), model_state, forget_batches, mask=mask)

        def step(state, batch, **options):
            _, info = still.step(state, batch, **options)
            return state._replace(step=state.step + 1), info

        return still._replace(init=init, step=step)

    return build


def _noisy(params: Any, share: float = 0.1) -> Any:
    """Normal noise of a share of each array's spread."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return structure.unflatten(
        p + share * jnp.std(p) * jax.random.normal(key, p.shape, p.dtype)
        for key, p in zip(keys, leaves, strict=True)
    )


def _rounded(params: Any) -> Any:
    """Each array in 255 steps, from its largest magnitude down to its negative."""

    def one(p: jax.Array) -> jax.Array:
        step = jnp.max(jnp.abs(p)) / 127
        return jnp.where(
            step > 0, jnp.round(p / jnp.where(step > 0, step, 1)) * step, p
        )

    return jax.tree.map(one, params)


KINDS: Mapping[str, Kind] = {
    OTHERWISE: Kind(
        MethodNote(
            "Retrain otherwise", "", "Three quarters of the rate, more epochs: good."
        ),
        _otherwise,
        _retrain,
    ),
    "noisy": Kind(
        MethodNote("Noisy weights", "", "The original and a tenth of noise: bad."),
        _brief(0.01),
        _changed(_noisy),
    ),
    "hardly_tuned": Kind(
        MethodNote(
            "Hardly tuned", "", "An epoch of FT at a hundredth of the rate: bad."
        ),
        _brief(0.01),
        _finetune,
    ),
    "damaged": Kind(
        MethodNote("Damaged elsewhere", "", "Ascends on retained images: bad."),
        _brief(0.005),
        _ascend_elsewhere,
    ),
    "new_head": Kind(
        MethodNote("New head", "", "The last layer alone, anew, on R: bad."),
        _brief(1.0, 5),
        _new_head,
    ),
    ROUNDED: Kind(
        MethodNote("Rounded weights", "", "The original in eight bits: bad."),
        _brief(0.01),
        _changed(_rounded),
    ),
}
GOOD = AGAIN, OTHERWISE
BAD = ORIGINAL, "noisy", "hardly_tuned", "damaged", "new_head", ROUNDED
ANSWERS = {
    WRAPPER: MethodNote(
        "Output wrapper", "", "Answers F as a Retrain does, all else as the original."
    ),
    CONSTANT: MethodNote("Constant", "", "Says the same of everything."),
}
