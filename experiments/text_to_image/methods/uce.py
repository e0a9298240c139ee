"""UCE: cross-attention reads the forgotten prompts as those that take their place."""

import dataclasses
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.diffusion.generation import MakeLosses
from experiments.engine.recipes import COUNT, NOT_NEGATIVE, POSITIVE, field
from experiments.reporting.report import MethodNote
from mujax import diffusion, methods, roles

NOTE = MethodNote(
    "UCE",
    "arXiv:2308.14761",
    "Edits, in closed form, the keys and values that cross-attention makes of the "
    "forgotten prompts, token by token, into those of the first that may take their "
    "place.",
)
EDITED = ".*/attn2/to_[kv]/kernel"  # names of the weights that change


class States(NamedTuple):
    """States of texts, a row a token.

    Attributes:
      erased: of the forgotten captions in all wordings, (N, D).
      targets: of those that take their place in the same wordings, (N, D).
      preserved: of the other captions and of the empty prompt, (M, D).
    """

    erased: jax.Array
    targets: jax.Array
    preserved: jax.Array


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Numbers of UCE."""

    ridge: float = field(0.5, "Weight of staying where the kernels are.", POSITIVE)
    erase_weight: float = field(1.0, "Weight of a forgotten token.", NOT_NEGATIVE)
    preserve_weight: float = field(1.0, "Weight of another token.", NOT_NEGATIVE)
    epochs: int = field(
        1, "Epochs in which the loss is only looked at.", COUNT, value=True
    )
    batch_size: int = field(16, "Examples of a batch.", COUNT)


def build(
    recipe: Recipe, losses: MakeLosses, steps: int, states: States | None = None
) -> methods.Method:
    """The method; ``init`` edits, and the steps that follow say the loss alone."""
    del steps
    assert states is not None, "UCE needs to know what is read of the captions."
    loss_fn = losses().noise

    def edited(path, leaf):
        if not re.fullmatch(EDITED, roles.leaf_name(path)):
            return leaf
        return diffusion.edit_projection(
            leaf,
            *states,
            ridge=recipe.ridge,
            erase_weight=recipe.erase_weight,
            preserve_weight=recipe.preserve_weight,
        )

    def moves(path, leaf):
        fits = re.fullmatch(EDITED, roles.leaf_name(path)) is not None
        return jnp.full(leaf.shape, fits)

    def init(params, model_state=(), forget_batches=None, *, mask=None):
        del forget_batches
        moved = jax.tree.map_with_path(moves, params)
        trained = jax.tree.map_with_path(edited, params)
        if mask is not None:
            moved = jax.tree.map(jnp.logical_and, moved, mask)
            trained = jax.tree.map(jnp.where, moved, trained, params)
        state = methods.State(
            trained=trained,
            fixed=(),
            model_state=model_state,
            opt_state=(),
            mask=moved,
            forget_grads=None,
            step=jnp.zeros([], jnp.int32),
        )
        return jax.tree.map(jnp.copy, state)

    def step(state, batch, *, forget_batch=None, key=None):
        del forget_batch
        loss, (_, aux) = loss_fn(state.trained, state.model_state, batch, key)
        return state._replace(step=state.step + 1), methods.StepInfo(loss, aux)

    def finish(state):
        return state.trained, state.model_state

    use = methods.DataUse(passes=((methods.FORGET,),), epochs=1)
    return methods.Method(init, step, finish, use)
