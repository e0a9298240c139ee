"""Methods of parts: SalUn's mask, UFG's corrector and SEMU's cores in one.

The parts are the methods themselves: a mask is what SalUn starts with, cores are what
SEMU starts with, and a corrector is UFG's step.
"""

from typing import Any

import optax

from experiments.classification.methods import random_mask, salun, smallest_mask
from experiments.classification.optimisation import Losses
from experiments.engine import kernels
from mujax import methods, transforms

MASKS = {"salient": salun, "random": random_mask, "smallest": smallest_mask}


def relabelled(
    space: str, recipe: Any, losses: Losses, optimizer: optax.GradientTransformation
) -> methods.Method:
    """Random labels: SalUn's beside the retain set, or SEMU's cores without it."""
    if space == "cores":
        return _cores(recipe, losses, optimizer)
    options = {"exclude_true": recipe.exclude_true, "joint": recipe.joint}
    return methods.random_label(losses.train, optimizer, **options)


def bent(
    corrector: str,
    space: str,
    recipe: Any,
    losses: Losses,
    optimizer: optax.GradientTransformation,
    steps: int,
) -> methods.Method:
    """Retain steps that the forgetting gradient bends: UFG's corrector, or PCGrad's.

    In cores both gradients are those of the cores, and the model stays in evaluation
    mode as SEMU's does.
    """
    if corrector == "projection":

        def weight(step):
            return recipe.forget_weight * recipe.forget_decay ** (step // steps)

        options = {
            "combine": transforms.project_conflicting_updates(weight),
            "eval_loss_fn": losses.evaluation,
            "microbatch_size": 512,
        }
    else:
        options = recipe.corrector(losses, steps)
    if space == "full":
        return methods.ufg(losses.train, optimizer, **options)
    return _in_cores(_cores(recipe, losses, optimizer), losses, optimizer, options)


def masked(
    mask: str, method: methods.Method, recipe: Any, losses: Losses
) -> methods.Method:
    """The method on the weights that SalUn, or one of its controls, lets move."""
    if mask == "none":
        return method
    numbers = salun.Recipe(density=recipe.density)
    chooses = MASKS[mask].build(numbers, losses, 1)

    def init(params, model_state=(), forget_batches=None):
        chosen = chooses.init(params, model_state, forget_batches).mask
        return method.init(params, model_state, forget_batches, mask=chosen)

    return method._replace(init=init)


def _cores(
    recipe: Any, losses: Losses, optimizer: optax.GradientTransformation
) -> methods.Method:
    """SEMU."""
    return methods.semu(
        losses.train,
        optimizer,
        energy=recipe.energy,
        orthogonal=recipe.orthogonal,
        eval_loss_fn=losses.evaluation,
        rank=recipe.rank or None,
        few_shapes=True,
        overrides=kernels.parse(recipe.axes),
    )


def _in_cores(
    cores: methods.Method,
    losses: Losses,
    optimizer: optax.GradientTransformation,
    options: dict[str, Any],
) -> methods.Method:
    """UFG's steps on SEMU's cores instead of on the parameters."""

    def ufg(state: methods.State) -> methods.Method:
        def loss_fn(trained, model_state, batch, key):
            # What turns cores into parameters is in the state that a step is given.
            params, _ = cores.finish(state._replace(trained=trained))
            return losses.evaluation(params, model_state, batch, key)

        merged: dict[str, Any] = options | {"eval_loss_fn": loss_fn}
        return methods.ufg(loss_fn, optimizer, **merged)

    def init(params, model_state=(), forget_batches=None, *, mask=None):
        state = cores.init(params, model_state, forget_batches, mask=mask)
        begun = ufg(state).init(state.trained)
        return state._replace(opt_state=begun.opt_state)

    def step(state, batch, **given):
        return ufg(state).step(state, batch, **given)

    use = methods.ufg(losses.evaluation, optimizer, **options).data_use
    return methods.Method(init, step, cores.finish, use)
