"""Half precision: bfloat16 computes, float32 keeps."""

from typing import Literal

import jax
import jax.numpy as jnp

from experiments.models.border import Model

Precision = Literal["float32", "bfloat16"]


def computing_in(model: Model, precision: Precision) -> Model:
    """The model whose layers compute in a precision of their own.

    Parameters and inputs are rounded on their way in. Parameters, statistics,
    gradients and outputs keep their types, so that updates, scores and
    decompositions are made of float32. An input of one number an example, such as a
    diffusion step, is not rounded: bfloat16 takes 257 for 256. A Linen module says
    ``dtype=`` itself where its layers stand behind statistics, which are float32.

    Args:
      model: any model.
      precision: what its layers compute in.

    Example:
      >>> from flax import linen
      >>> from experiments.models import from_linen
      >>> dense = from_linen(linen.Dense(1, use_bias=False), input_shape=(1,))
      >>> apply = computing_in(dense, "bfloat16").apply
      >>> apply({"kernel": jnp.ones((1, 1))}, {}, jnp.array([[257.0]]), train=False)[0]
      Array([[256.]], dtype=float32)
    """
    if precision == "float32":
        return model
    dtype = jnp.dtype(precision)

    def rounded(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    def apply(params, model_state, x, *, train, key=None):
        inputs = jax.tree.map(lambda part: rounded(part) if part.ndim > 1 else part, x)
        low = jax.tree.map(rounded, params)
        out, moved = model.apply(low, model_state, inputs, train=train, key=key)
        kept = jax.tree.map(lambda new, old: new.astype(old.dtype), moved, model_state)
        return out.astype(jnp.float32), kept

    return Model(model.init, apply)
