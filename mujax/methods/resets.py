"""Methods that first break a part of the network and then fine-tune it: CT and MSG.

Both come from the NeurIPS 2023 unlearning competition and are among the strongest by
per-example audits in *Deep Unlearn*, arXiv:2410.01276.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mujax import gradients, roles
from mujax._trees import PyTree, check_fraction, check_mask, match, select
from mujax.methods import base
from mujax.roles import MatrixAxes

Overrides = Mapping[str, MatrixAxes | None] | None


def ct(
    loss_fn: base.LossFn,
    optimizer: optax.GradientTransformation,
    *,
    overrides: Overrides = None,
    axis_name: str | None = None,
) -> base.Method:
    r"""Transposes every convolution's window, then fine-tunes on :math:`D_r` (CT).

    Windows of 1 × 1, and such as are not square, stay.

    Args:
      loss_fn: ``(params, model_state, batch, key) -> (loss, (model_state, aux))``, in
        training mode; the statistics move.
      optimizer: any optax transform.
      overrides: see :func:`mujax.roles.infer`.
      axis_name: mapped axis to average over.

    Returns:
      The method; reads the retain set. Under a mask, what is frozen is not transposed.

    Raises:
      mujax.roles.UnknownRoleError: from ``init``, for a leaf that cannot be told.

    Example:
      >>> loss_fn = lambda p, s, b, k: (jnp.sum(p["kernel"]), (s, None))
      >>> method = ct(loss_fn, optax.sgd(0.1))
      >>> kernel = jnp.arange(4.0).reshape(2, 2, 1, 1)
      >>> method.finish(method.init({"kernel": kernel}))[0]["kernel"].ravel()
      Array([0., 2., 1., 3.], dtype=float32)

    Reference:
      `Cadet et al. (2024) <https://arxiv.org/abs/2410.01276>`_, "CT".
    """

    def start(params, model_state, forget_batches, mask):
        del model_state, forget_batches
        swapped = _by_window(params, overrides, _transposed)
        if mask is not None:
            swapped = select(mask, swapped, params)
        return base.Start(swapped, (), mask)

    data_use = base.DataUse(passes=((base.RETAIN,),), epochs=3)
    return base.descend(loss_fn, optimizer, data_use, start=start, axis_name=axis_name)


def msg(
    loss_fn: base.LossFn,
    optimizer: optax.GradientTransformation,
    *,
    fraction: float = 0.3,
    kept_rate: float | jax.Array = 0.1,
    eval_loss_fn: base.LossFn | None = None,
    overrides: Overrides = None,
    axis_name: str | None = None,
) -> base.Method:
    r"""Draws anew what both sets treat alike, then fine-tunes on :math:`D_r` (MSG).

    In every convolution kernel the entries with the **smallest**
    :math:`|\nabla \ell(D_r') - \nabla \ell(D_f)|` are drawn from Kaiming's normal
    distribution (fan out), and learn at the full rate; the others of these kernels at a
    tenth of it. Gradients are sums over as many retain as forget batches. The released
    program takes them in training mode and draws biases anew as well.

    Args:
      loss_fn: ``(params, model_state, batch, key) -> (loss, (model_state, aux))``, in
        training mode; the statistics move.
      optimizer: any optax transform.
      fraction: share of a kernel that is drawn anew.
      kept_rate: factor on the gradients of what is kept of convolution kernels.
      eval_loss_fn: the loss in evaluation mode, for the gradients; ``loss_fn`` if None.
      overrides: see :func:`mujax.roles.infer`.
      axis_name: mapped axis to average over.

    Returns:
      The method; reads the retain set. ``init`` wants ``retain_batches`` beside the
      forget batches, and the ``key`` of the new entries (``data_use.retain_at_start``).
      Under a mask, what is frozen is not drawn anew.

    Raises:
      ValueError: from ``init``, without batches or key, or ``fraction`` outside [0, 1].
      mujax.roles.UnknownRoleError: from ``init``, for a leaf that cannot be told.

    Example:
      >>> loss_fn = lambda p, s, b, k: (jnp.sum(p["kernel"] * b.mean(0)), (s, None))
      >>> method = msg(loss_fn, optax.sgd(0.1), fraction=0.5)
      >>> params = {"kernel": jnp.ones((2, 2, 1, 1))}
      >>> alike = jnp.ones((1, 2, 2, 1, 1)).at[:, 0].set(0)
      >>> at_start = {"retain_batches": [alike], "key": jax.random.key(0)}
      >>> state = method.init(params, (), [0 * alike], **at_start)
      >>> (method.finish(state)[0]["kernel"] == 1).ravel()
      Array([False, False,  True,  True], dtype=bool)

    Reference:
      `Cadet et al. (2024) <https://arxiv.org/abs/2410.01276>`_, "MSG".
    """
    measured = loss_fn if eval_loss_fn is None else eval_loss_fn
    method = base.descend(
        loss_fn,
        optax.chain(_rated(kept_rate), optimizer),
        base.DataUse(passes=((base.RETAIN,),), epochs=5, retain_at_start=True),
        axis_name=axis_name,
    )

    def init(
        params,
        model_state=(),
        forget_batches=None,
        *,
        mask=None,
        retain_batches=None,
        key=None,
    ):
        check_fraction(fraction)
        if mask is not None:
            check_mask(mask)
            mask = match(mask, params, "mask", "params")
        forget = base.need_batches(forget_batches, base.FORGET, "MSG's gradients")
        retain = base.need_batches(retain_batches, base.RETAIN, "MSG's gradients")
        if key is None:
            raise ValueError("init got key=None, wanted one to draw new entries.")
        loss = base.plain_loss(measured, model_state)
        away, towards = (
            gradients.sum_gradients(loss, params, batches)
            for batches in (forget, retain)
        )
        distance = jax.tree.map(lambda r, f: jnp.abs(r - f), towards, away)
        old, drawn = _by_window(
            params,
            overrides,
            functools.partial(_split, fraction=fraction, key=key),
            distance,
            default=lambda leaf: (jnp.zeros(leaf.shape, bool), leaf),
            parts=2,
        )
        if mask is not None:
            drawn = select(mask, drawn, params)
        state = method.init(drawn, model_state, mask=mask)
        rates, *rest = state.opt_state
        return state._replace(opt_state=(rates._replace(kept=old), *rest))

    return method._replace(init=init)


class _Kept(NamedTuple):
    """Which entries of convolution kernels were kept; all others learn fully."""

    kept: PyTree


def _rated(kept_rate: Any) -> optax.GradientTransformation:
    """Scales the gradients of kept entries."""

    def init(params: PyTree) -> _Kept:
        return _Kept(jax.tree.map(lambda p: jnp.zeros(p.shape, bool), params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None):
        del params

        def scale(g, kept):
            return jnp.where(kept, (kept_rate * g).astype(g.dtype), g)

        return jax.tree.map(scale, updates, state.kept), state

    return optax.GradientTransformation(init, update)


def _by_window(
    params: PyTree,
    overrides: Overrides,
    change: Any,
    *others: PyTree,
    default: Any = lambda leaf: leaf,
    parts: int = 1,
) -> Any:
    """Changes the convolution kernels of a tree, by the axes of their views."""
    kinds = jax.tree.leaves(roles.infer(params, overrides))
    leaves, structure = jax.tree.flatten(params)
    beside = [jax.tree.leaves(other) for other in others]
    found = []
    for i, (leaf, kind) in enumerate(zip(leaves, kinds, strict=True)):
        if _is_convolution(kind):
            found.append(change(leaf, kind.axes, *(x[i] for x in beside), index=i))
        else:
            found.append(default(leaf))
    if parts == 1:
        return jax.tree.unflatten(structure, found)
    return tuple(jax.tree.unflatten(structure, x) for x in zip(*found, strict=True))


def _is_convolution(role: roles.Role) -> bool:
    """Whether a leaf is a convolution's kernel; where the caller says it, by its view.

    A view's columns alone do not tell: an attention kernel's may be heads × dim.
    """
    if role.name == "given" and role.axes is not None:
        return bool(role.axes.batch) and len(role.axes.columns) > 1
    return role.name == "convolution"


def _transposed(leaf: jax.Array, axes: MatrixAxes, *, index: int) -> jax.Array:
    """The first two axes of the window swapped, where they are as long."""
    del index
    if len(axes.columns) < 2:
        return leaf
    first, second = axes.columns[:2]
    square = leaf.shape[first] == leaf.shape[second]
    return jnp.swapaxes(leaf, first, second) if square else leaf


def _split(leaf, axes, distance, *, index, fraction, key):
    """Which entries are kept, and the kernel with the others drawn anew."""
    count = int(np.floor(fraction * leaf.size))
    order = jnp.argsort(distance.ravel(), stable=True)
    kept = jnp.ones(leaf.size, bool).at[order[:count]].set(False).reshape(leaf.shape)
    fan_out = np.prod([leaf.shape[axis] for axis in (*axes.rows, *axes.columns)])
    drawn = jax.random.normal(jax.random.fold_in(key, index), leaf.shape, leaf.dtype)
    return kept, jnp.where(kept, leaf, np.sqrt(2 / fan_out).astype(leaf.dtype) * drawn)
