"""Gradients over a whole data set, in float32 and one batch at a time.

What the methods know of the data they must forget is a gradient: SalUn ranks its
entries, SEMU takes its singular directions, CUFG bends the retain gradient with it.
Each function here takes ``loss_fn(params, batch) -> scalar`` (the mean over the
batch) and any iterable of batches, which may have different sizes. The same loss
function compiles once; :class:`jax.tree_util.Partial` binds arrays to it without
compiling anew for their values.
"""

from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from mujax._trees import PyTree

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
      A float32 tree of the structure and shapes of ``params``.

    Raises:
      ValueError: there is no batch.

    Example:
      >>> loss_fn = lambda w, x: jnp.mean(w * x)
      >>> sum_gradients(loss_fn, jnp.float32(1), [jnp.ones(4), 2 * jnp.ones(2)])
      Array(3., dtype=float32)
    """
    loss_fn, total, count = _bound(loss_fn), _zeros(params), 0
    for batch in batches:
        total = _add_gradient(total, loss_fn, params, batch, transform=transform)
        count += 1
    _check_any(count)
    return total


def mean_gradient(loss_fn: LossFn, params: PyTree, batches: Iterable[PyTree]) -> PyTree:
    r"""The gradient of the mean loss over all examples of the batches.

    .. math:: \bar g = \frac{1}{\sum_b n_b} \sum_b n_b \nabla_\theta \ell(\theta; b)

    Args:
      loss_fn: ``(params, batch) -> scalar``, the mean loss of a batch.
      params: any tree of floating-point arrays.
      batches: an iterable of batches, whose leaves lead with the example axis;
        a batch counts by its size :math:`n_b`.

    Returns:
      A float32 tree of the structure and shapes of ``params``.

    Raises:
      ValueError: there is no batch.

    Example:
      >>> loss_fn = lambda w, x: jnp.mean(w * x)
      >>> mean_gradient(loss_fn, jnp.float32(1), [jnp.ones(3), 5 * jnp.ones(1)])
      Array(2., dtype=float32)
    """
    loss_fn, total, count = _bound(loss_fn), _zeros(params), 0
    for batch in batches:
        size = num_examples(batch)
        total = _add_gradient(total, loss_fn, params, batch, float(size))
        count += size
    _check_any(count)
    return jax.tree.map(lambda g: g / count, total)


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
      A float32 tree of the structure and shapes of ``params``, all entries >= 0.

    Raises:
      ValueError: there is no batch.

    Example:
      >>> loss_fn = lambda w, x: jnp.mean(w * x)
      >>> mean_squared_gradient(loss_fn, jnp.float32(0), [jnp.array([1.0, 3.0])])
      Array(5., dtype=float32)
    """
    loss_fn, total, count = _bound(loss_fn), _zeros(params), 0
    for batch in batches:
        total = _add_squares(total, loss_fn, params, batch)
        count += num_examples(batch)
    _check_any(count)
    return jax.tree.map(lambda g: g / count, total)


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

    def gradient(example):
        one = jax.tree.map(lambda x: x[None], example)
        return jax.grad(loss_fn)(params, one)

    return jax.vmap(gradient)(batch)


def num_examples(batch: PyTree) -> int:
    """Length of the leading axis of a batch's leaves."""
    return jax.tree.leaves(batch)[0].shape[0]


@partial(jax.jit, static_argnames="transform")
def _add_gradient(total, loss_fn, params, batch, weight=1.0, *, transform=jnp.asarray):
    """Adds a batch's gradient, transformed and weighted, to a total."""
    gradient = jax.grad(loss_fn)(params, batch)
    return _add(total, gradient, lambda g: weight * transform(g))


@jax.jit
def _add_squares(total, loss_fn, params, batch):
    """Adds the sum of a batch's squared example gradients to a total."""
    gradients = example_gradients(loss_fn, params, batch)
    return _add(total, gradients, lambda g: jnp.sum(jnp.square(g), 0))


def _add(total, gradient, function):
    """``total + function(gradient)`` leaf by leaf, in float32."""
    return jax.tree.map(
        lambda t, g: t + function(g.astype(jnp.float32)), total, gradient
    )


def _zeros(params: PyTree) -> PyTree:
    """The total before the first batch, so that all batches share one program."""
    return jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params)


def _bound(loss_fn: LossFn) -> LossFn:
    """The loss as a pytree, so that it passes through jit."""
    return loss_fn if isinstance(loss_fn, Partial) else Partial(loss_fn)


def _check_any(count: int) -> None:
    """Raises if there was no batch."""
    if count == 0:
        raise ValueError("Got no batch, wanted at least one; is the data set empty?")
