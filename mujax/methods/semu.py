"""SEMU: train only a small core of the forget gradient's singular directions.

*SEMU: Singular Value Decomposition for Efficient Machine Unlearning*,
arXiv:2502.07587.

Each kernel becomes :math:`W_0 + U R V^T` with the bases of its forget gradient and
:math:`R = 0` at the start; only the cores R train, on wrong labels and, in the main
form, without any retain data. Everything else is frozen, and the model runs in
evaluation mode throughout, so that forget data cannot move its statistics.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mujax import gradients, labels, subspace
from mujax._trees import PyTree, select
from mujax.methods import base


def semu(
    loss_fn: base.LossFn | base.PairLossFn,
    optimizer: optax.GradientTransformation,
    *,
    energy: float = 0.95,
    orthogonal: bool = True,
    eval_loss_fn: base.LossFn | base.PairLossFn | None = None,
    basis_loss_fn: base.LossFn | None = None,
    with_original: bool = False,
    axis_name: str | None = None,
    **basis_options: Any,
) -> base.Method:
    r"""Descends :math:`\ell(D_f, y')`, :math:`y' \ne y`, over the cores alone.

    ``init`` takes the SVD of :math:`G = \sum_b \nabla \ell(b)` over the forget batches
    with their true labels. A mask given to ``init`` restricts both: it is applied to
    G, and to :math:`U R V^T` where it enters the weights, so that masked weights stay
    bit-identical.

    Args:
      loss_fn: ``(params, model_state, batch, key) -> (loss, (model_state, aux))``.
      optimizer: any optax transform; its weight decay acts on the cores.
      energy: :math:`\gamma`, the share of the squared singular values to reach.
      orthogonal: remove the direction of the weights from the gradient first.
      eval_loss_fn: the loss in evaluation mode, used throughout; ``loss_fn`` if None.
      basis_loss_fn: the loss whose gradient gives the bases, where it is another, such
        as a diffusion model's loss on guided outputs.
      with_original: ``loss_fn`` and ``eval_loss_fn`` are of the kind
        :class:`mujax.methods.PairLossFn`, also given the original parameters, so that
        they can hold the model to its first answers; ``basis_loss_fn`` is then needed.
      axis_name: mapped axis to average over.
      **basis_options: passed to :func:`mujax.subspace.svd_bases`, such as ``rank``, or
        ``overrides`` to say what is a kernel where :mod:`mujax.roles` cannot tell.

    Returns:
      The method; reads the forget set, relabelled every epoch; the statistics stay.

    Raises:
      ValueError: ``with_original`` came without ``basis_loss_fn``; ``init`` raises as
        :func:`mujax.subspace.svd_bases` does.

    Example:
      >>> def loss_fn(params, model_state, batch, key):
      ...     return jnp.mean(batch @ params["w"]), (model_state, None)
      >>> method = semu(loss_fn, optax.sgd(1.0), orthogonal=False)
      >>> params, batch = {"w": jnp.zeros((2, 2))}, jnp.array([[2.0, 0.0]])
      >>> state = method.init(params, forget_batches=[batch])
      >>> [core.shape for core in state.trained]
      [(1, 1)]
      >>> method.finish(method.step(state, batch)[0])[0]["w"].round(3)
      Array([[-1., -1.],
             [ 0.,  0.]], dtype=float32)

    Reference:
      `SEMU (2025) <https://arxiv.org/abs/2502.07587>`_.
    """
    return _semu(
        loss_fn if eval_loss_fn is None else eval_loss_fn,
        optimizer,
        passes=((base.FORGET,),),
        energy=energy,
        orthogonal=orthogonal,
        basis_loss_fn=basis_loss_fn,
        with_original=with_original,
        axis_name=axis_name,
        **basis_options,
    )


def semu_retain(
    loss_fn: base.LossFn | base.PairLossFn,
    optimizer: optax.GradientTransformation,
    *,
    energy: float = 0.95,
    orthogonal: bool = True,
    eval_loss_fn: base.LossFn | base.PairLossFn | None = None,
    basis_loss_fn: base.LossFn | None = None,
    with_original: bool = False,
    axis_name: str | None = None,
    **basis_options: Any,
) -> base.Method:
    r"""SEMU on :math:`D_f` with wrong labels and :math:`D_r` with true ones, shuffled.

    Args as in :func:`semu`.

    Returns:
      The method; reads both sets in one pass; the statistics stay.

    Example:
      >>> loss_fn = lambda p, s, b, k: (p, (s, None))
      >>> semu_retain(loss_fn, optax.sgd(0.1)).data_use.passes
      (('forget', 'retain'),)

    Reference:
      `SEMU (2025) <https://arxiv.org/abs/2502.07587>`_.
    """
    return _semu(
        loss_fn if eval_loss_fn is None else eval_loss_fn,
        optimizer,
        passes=((base.FORGET, base.RETAIN),),
        energy=energy,
        orthogonal=orthogonal,
        basis_loss_fn=basis_loss_fn,
        with_original=with_original,
        axis_name=axis_name,
        **basis_options,
    )


def trained_kernels(state: base.State) -> subspace.Description | None:
    """What each leaf is to SEMU and how much of it trains, as a table.

    Args:
      state: of any method.

    Returns:
      The rows of :func:`mujax.subspace.describe`; None for another method's state.

    Example:
      >>> def loss_fn(params, model_state, batch, key):
      ...     return jnp.mean(batch @ params["w"]), (model_state, None)
      >>> method = semu(loss_fn, optax.sgd(1.0), orthogonal=False)
      >>> state = method.init({"w": jnp.zeros((2, 2))}, (), [jnp.ones((1, 2))])
      >>> print(trained_kernels(state))
      leaf   shape  role       matrices  rank  trainable
      w      2×2    dense      1 of 2×2  1     25.000 %
      total  4      1 kernels                  25.000 %
    """
    if not isinstance(state.fixed, _Fixed):
        return None
    return subspace.describe(state.fixed.params, state.fixed.bases)


class _Fixed(NamedTuple):
    """What turns cores into parameters."""

    params: PyTree
    bases: PyTree
    mask: PyTree | None


def _semu(
    loss_fn,
    optimizer,
    *,
    passes,
    energy,
    orthogonal,
    basis_loss_fn,
    with_original,
    axis_name,
    **basis_options,
):
    """Both forms; they differ in the data that an epoch reads."""
    if with_original and basis_loss_fn is None:
        raise ValueError(
            "Got with_original=True without basis_loss_fn: give the loss of the "
            "parameters alone whose gradient gives the bases."
        )

    def start(params, model_state, forget_batches, mask):
        batches = base.need_batches(forget_batches, base.FORGET, "SEMU's bases")
        loss = base.plain_loss(basis_loss_fn or loss_fn, model_state)
        grads = gradients.sum_gradients(loss, params, batches)
        if mask is not None:
            grads = select(mask, grads, jax.tree.map(jnp.zeros_like, grads))
        bases = subspace.svd_bases(
            grads, energy, params if orthogonal else None, **basis_options
        )
        cores = subspace.init_cores(bases)
        return base.Start(cores, _Fixed(params, bases, mask), subspace.core_mask(bases))

    def merge(cores, fixed):
        params, bases, mask = fixed
        moved = subspace.apply_cores(params, bases, cores)
        return moved if mask is None else select(mask, moved, params)

    return base.descend(
        loss_fn,
        optimizer,
        base.DataUse(
            passes=passes,
            relabel=functools.partial(labels.random_labels, exclude_true=True),
            epochs=10,
        ),
        start=start,
        merge=merge,
        original=(lambda fixed: fixed[0]) if with_original else None,
        moves_statistics=False,
        axis_name=axis_name,
    )
