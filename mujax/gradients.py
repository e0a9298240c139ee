"""Gradients over a whole data set, in float32 and one batch at a time.

What the methods know of the data they must forget is a gradient: SalUn ranks its
entries, SEMU takes its singular directions, CUFG bends the retain gradient with it.
Each function here takes ``loss_fn(params, batch) -> scalar`` (the mean over the
batch) and any iterable of batches, which may have different sizes.

The same loss function compiles once, anew where what it sees besides its arguments (a
variable, an attribute) is another, and nothing of it stays when it goes;
:class:`jax.tree_util.Partial` binds arrays to it without compiling anew for their
values. Parameters are floating-point or complex arrays; what is no array (an Equinox
module's activation) passes through with None as its gradient. Outside ``jit`` a
gradient that is not finite is an error that names the leaf.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mujax._meshes import one_by_one, zeros_along
from mujax._programs import program
from mujax._trees import (
    PyTree,
    check_finite,
    check_inexact,
    is_array,
    wide,
    widened,
)

LossFn = Callable[[PyTree, PyTree], jax.Array]


def sum_gradients(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[PyTree],
    *,
    transform: Callable[[jax.Array], jax.Array] = jnp.asarray,
) -> PyTree:
    r"""Sums the gradients of the batches, each a mean over its batch.

    .. math:: G = \sum_b T(\nabla_\theta \ell(\theta; b))

    Args:
      loss_fn: ``(params, batch) -> scalar``, the mean loss of a batch.
      params: any tree of floating-point arrays.
      batches: an iterable of batches; inside ``jit`` a list or a tuple.
      transform: element-wise function T of each batch's gradient; identity by default.

    Returns:
      A float32 tree of the structure and shapes of ``params``: complex64 where they
      are complex, wider where they are, and on the devices where they are. As
      :func:`jax.grad` it has the conjugate of the direction of ascent in complex ones.

    Raises:
      ValueError: there is no batch or one of no example, a parameter is an integer, a
        boolean or a key, or, outside ``jit``, a gradient is not finite; the message
        names the leaf.

    Example:
      >>> loss_fn = lambda w, x: jnp.mean(w * x)
      >>> sum_gradients(loss_fn, jnp.float32(1), [jnp.ones(4), 2 * jnp.ones(2)])
      Array(3., dtype=float32)
    """
    add, count = program(_add_gradient, loss_fn, transform), 0
    total = jax.tree.map(lambda z: jnp.zeros_like(transform(z)), _zeros(params))
    for batch in batches:
        _check_any_example(batch)
        total = add(total, params, batch, 1.0)
        count += 1
    return _checked(total, count)


def mean_gradient(loss_fn: LossFn, params: PyTree, batches: Iterable[PyTree]) -> PyTree:
    r"""The gradient of the mean loss over all examples of the batches.

    .. math:: \bar g = \frac{1}{\sum_b n_b} \sum_b n_b \nabla_\theta \ell(\theta; b)

    Args:
      loss_fn: ``(params, batch) -> scalar``, the mean loss of a batch.
      params: any tree of floating-point arrays.
      batches: an iterable of batches, whose leaves lead with the example axis;
        a batch counts by its size :math:`n_b`.

    Returns:
      A tree as that of :func:`sum_gradients`.

    Raises:
      ValueError: as :func:`sum_gradients`.

    Example:
      >>> loss_fn = lambda w, x: jnp.mean(w * x)
      >>> mean_gradient(loss_fn, jnp.float32(1), [jnp.ones(3), 5 * jnp.ones(1)])
      Array(2., dtype=float32)
    """
    add, total, count = program(_add_gradient, loss_fn, jnp.asarray), _zeros(params), 0
    for batch in batches:
        size = num_examples(batch)
        total = add(total, params, batch, float(size))
        count += size
    return jax.tree.map(lambda g: g / count, _checked(total, count))


def mean_squared_gradient(
    loss_fn: LossFn, params: PyTree, batches: Iterable[PyTree]
) -> PyTree:
    r"""The mean over examples of their squared gradients: the diagonal Fisher.

    .. math:: F = \frac{1}{n} \sum_i \left( \nabla_\theta \ell(\theta; x_i) \right)^2

    Args:
      loss_fn: ``(params, batch) -> scalar``; it is given batches of one example.
      params: any tree of floating-point arrays.
      batches: an iterable of batches, whose leaves lead with the example axis.

    Returns:
      A float32 tree of the structure and shapes of ``params``, all entries >= 0; a
      complex gradient counts by its magnitude.

    Raises:
      ValueError: as :func:`sum_gradients`.

    Example:
      >>> loss_fn = lambda w, x: jnp.mean(w * x)
      >>> mean_squared_gradient(loss_fn, jnp.float32(0), [jnp.array([1.0, 3.0])])
      Array(5., dtype=float32)
    """
    add, count = program(_add_squares, loss_fn), 0
    total = jax.tree.map(jnp.real, _zeros(params))
    for batch in batches:
        total = add(total, params, batch)
        count += num_examples(batch)
    return jax.tree.map(lambda g: g / count, _checked(total, count))


def example_gradients(loss_fn: LossFn, params: PyTree, batch: PyTree) -> PyTree:
    r"""One gradient an example, :math:`g_i = \nabla_\theta \ell(\theta; \{x_i\})`.

    Args:
      loss_fn: ``(params, batch) -> scalar``; it is given batches of one example.
      params: any tree of floating-point arrays.
      batch: a tree whose leaves lead with the example axis of length n.

    Returns:
      A tree of the structure of ``params``; each leaf leads with an axis of length n.

    Example:
      >>> loss_fn = lambda w, x: jnp.mean(w * x)
      >>> example_gradients(loss_fn, jnp.float32(1), jnp.array([1.0, 2.0]))
      Array([1., 2.], dtype=float32)
    """
    num_examples(batch)

    def gradient(example):
        one = jax.tree.map(lambda x: x[None], example)
        return gradient_of(loss_fn, params, one)

    return jax.vmap(gradient)(one_by_one(batch, params))


def gradient_of(loss_fn: LossFn, params: PyTree, batch: PyTree) -> PyTree:
    """The gradient of one batch; None at what is no array in the parameters."""
    check_inexact(params, "params")
    leaves, structure = jax.tree.flatten(params)
    arrays = [leaf if is_array(leaf) else None for leaf in leaves]

    def loss(arrays):
        pairs = zip(arrays, leaves, strict=True)
        whole = [leaf if array is None else array for array, leaf in pairs]
        return loss_fn(structure.unflatten(whole), batch)

    return structure.unflatten(jax.grad(loss)(arrays))


def num_examples(batch: PyTree, name: str = "batch") -> int:
    """Length of the leading axis of a batch's leaves.

    Raises:
      ValueError: the leaves do not share one leading axis, or it is empty.
    """
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    shapes = {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}
    lengths = {path: shape[0] if shape else 0 for path, shape in shapes.items()}
    if not any(lengths.values()):
        raise ValueError(f"Got {name} of shapes {shapes}, wanted at least one example.")
    first = next(iter(lengths))
    for path, length in lengths.items():
        if length != lengths[first]:
            raise ValueError(
                f"{name}{path} has shape {shapes[path]}, {name}{first} has "
                f"{shapes[first]}; give all leaves the same leading axis, and bind "
                "what belongs to no example to the loss (jax.tree_util.Partial)."
            )
    return lengths[first]


def _check_any_example(batch: PyTree) -> None:
    """Raises for a batch of none: its mean is NaN, but its gradient is zero.

    Raises:
      ValueError: naming the leaf that leads with an empty axis.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if np.shape(leaf)[:1] == (0,):
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} has shape {np.shape(leaf)}, wanted "
                "at least one example; leave the batch out."
            )


def _add_gradient(loss_fn, transform, total, params, batch, weight):
    """Adds a batch's gradient, transformed and weighted, to a total."""
    gradient = gradient_of(loss_fn, params, batch)
    return _add(total, gradient, lambda g: weight * transform(g))


def _add_squares(loss_fn, total, params, batch):
    """Adds the sum of a batch's squared example gradients to a total."""
    gradients = example_gradients(loss_fn, params, batch)
    return _add(total, gradients, lambda g: jnp.sum(jnp.abs(g) ** 2, 0))


def _add(total: PyTree, gradient: PyTree, function: Callable[..., Any]) -> PyTree:
    """``total + function(gradient)`` leaf by leaf, in the dtype of sums."""
    return jax.tree.map(lambda t, g: t + function(widened(g)), total, gradient)


def _zeros(params: PyTree) -> PyTree:
    """The total before the first batch, so that all batches share one program."""
    check_inexact(params, "params")
    return jax.tree.map(
        lambda p: zeros_along(p, wide(jnp.result_type(p))) if is_array(p) else None,
        params,
    )


def _checked(total: PyTree, count: int) -> PyTree:
    """The total, if there was a batch and, outside of jit, all is finite."""
    if count == 0:
        raise ValueError("Got no batch, wanted at least one; is the data set empty?")
    check_finite(total, "the gradient of params")
    return total
