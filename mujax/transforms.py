"""The optax face of the library: masks, corrected gradients, subspaces, thresholds.

Each is a transform for :func:`optax.chain`, with any optimiser, any model library,
``jit``, ``vmap`` and any sharding. Put :func:`mask_updates` **last**: what stands
behind it can move a frozen weight again, what stands before it cannot. Where norms are
clipped put it **first as well**, or gradients of frozen weights use up the norm.
Transforms that combine two gradients come **first** and take the second as
``update(..., forget_grads=...)`` or both as :class:`mujax.wrappers.TwoGradients`, which
masks, projectors and what else stands in front of them then see as well. All of them
accept and ignore extra arguments that they do not know. The guide
``docs/composing.md`` has every wrapper of optax.

Trees that a transform holds or is given (masks, bases, forgetting gradients) meet the
updates by the paths of their leaves, whatever the containers are, and inside
:func:`optax.partition` and :func:`optax.masked` by the leaves that are there. In
programs over several processes build the chain inside of ``jit``, with masks and bases
as arguments: a closure cannot hold arrays that no process holds whole.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mujax import correction, saliency, subspace, wrappers
from mujax._trees import (
    PyTree,
    check_fraction,
    check_inexact,
    check_mask,
    is_array,
    is_traced,
    match,
    size,
)

Scalar = float | jax.Array | optax.Schedule


def mask_updates(mask: PyTree) -> optax.GradientTransformationExtraArgs:
    r"""Zeroes the updates of frozen weights, :math:`u \leftarrow m \odot u`.

    Last in the chain it freezes exactly: the weight's bits never change, whatever
    the optimiser, weight decay, momentum or clipping before it do (but CPU addition
    flushes subnormal weights, below 1.2e-38, to zero). With a mask that is true
    everywhere the chain equals the chain without it.

    Args:
      mask: a boolean tree with the leaves of the parameters; true entries move.

    Returns:
      A stateless transform.

    Raises:
      ValueError: the mask does not fit the parameters or is not boolean; the message
        names the leaf.

    Example:
      >>> import optax
      >>> mask = {"w": jnp.array([True, False])}
      >>> tx = optax.chain(optax.sgd(0.5), mask_updates(mask))
      >>> params = {"w": jnp.ones(2)}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> optax.apply_updates(params, updates)
      {'w': Array([0.5, 1. ], dtype=float32)}

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_, equation 5.
    """
    check_mask(mask)

    def init_fn(params):
        if _is_tree(params):
            match(mask, params, "mask", "params")
        return optax.EmptyState()

    def masked(updates):
        held = match(mask, updates, "mask", "updates")
        _check_addressable(mask, updates, "mask")
        return jax.tree.map(_where, held, updates)

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args
        return wrappers.on_each(masked, updates), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class CombineGradientsState(NamedTuple):
    """State of a transform that combines two gradients.

    Attributes:
      count: number of updates so far, shape (), int32.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


def correct_updates(
    threshold: Scalar,
    forget_weight: Scalar,
    *,
    per_tensor: bool = False,
    weighted_norm: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Corrects the retain gradient by the forgetting gradient (UFG, CUFG).

    First in the chain: the optimiser then sees the corrected gradient. See
    :func:`mujax.correction.correct` for the formula and the options.

    Args:
      threshold: cosine above which the corrector fires; a number or a schedule of
        the step.
      forget_weight: weight of the forgetting direction; a number or a schedule.
      per_tensor: let each tensor decide for itself.
      weighted_norm: normalise by the weighted sum.

    Returns:
      A transform whose ``update`` needs the keyword ``forget_grads``.

    Raises:
      ValueError: ``forget_grads`` is missing, or the two gradients differ in structure
        or shape; the message names the leaf.

    Example:
      >>> import optax
      >>> tx = optax.chain(correct_updates(-0.5, 1.0), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> updates, _ = tx.update(
      ...     jnp.array([2.0, 0.0]),
      ...     tx.init(params),
      ...     params,
      ...     forget_grads=jnp.array([0.0, 3.0]),
      ... )
      >>> updates.round(3)
      Array([-0.707, -0.707], dtype=float32)

    Reference:
      `CUFG (2025) <https://arxiv.org/abs/2509.14633>`_.
    """

    def rule(retain_grads, forget_grads, count):
        return correction.correct(
            retain_grads,
            forget_grads,
            threshold=_at(threshold, count),
            forget_weight=_at(forget_weight, count),
            per_tensor=per_tensor,
            weighted_norm=weighted_norm,
        )

    return _combine_gradients(rule)


def project_conflicting_updates(
    forget_weight: Scalar = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """PCGrad's rule in place of the corrector.

    Args:
      forget_weight: weight of the forgetting gradient; a number or a schedule.

    Returns:
      A transform whose ``update`` needs the keyword ``forget_grads``; see
      :func:`mujax.correction.project_conflicts`.

    Raises:
      ValueError: as :func:`correct_updates`.

    Example:
      >>> tx = project_conflicting_updates()
      >>> retain, forget = jnp.array([1.0, 0.0]), jnp.array([-1.0, 1.0])
      >>> tx.update(retain, tx.init(retain), forget_grads=forget)[0]
      Array([0.5, 1.5], dtype=float32)
    """

    def rule(retain_grads, forget_grads, count):
        weight = _at(forget_weight, count)
        return correction.project_conflicts(
            retain_grads, forget_grads, forget_weight=weight
        )

    return _combine_gradients(rule)


def blend_updates(retain_share: Scalar) -> optax.GradientTransformationExtraArgs:
    r"""Weighs the two gradients, :math:`\alpha g_r + (1 - \alpha) g_f` (NegGrad+).

    Args:
      retain_share: :math:`\alpha` in [0, 1]; a number or a schedule.

    Returns:
      A transform whose ``update`` needs the keyword ``forget_grads``.

    Raises:
      ValueError: as :func:`correct_updates`.

    Example:
      >>> tx = blend_updates(0.75)
      >>> retain, forget = jnp.array([4.0]), jnp.array([8.0])
      >>> tx.update(retain, tx.init(retain), forget_grads=forget)[0]
      Array([5.], dtype=float32)
    """
    if not callable(retain_share):
        check_fraction(retain_share, "retain_share")

    def rule(retain_grads, forget_grads, count):
        share = _at(retain_share, count)
        forget_grads = match(forget_grads, retain_grads, "forget_grads", "updates")
        return jax.tree.map(
            lambda r, f: (share * r + (1 - share) * f).astype(r.dtype),
            retain_grads,
            forget_grads,
        )

    return _combine_gradients(rule)


def rectify_updates(
    level: float | jax.Array = 0.02, slope: float | jax.Array = 100.0
) -> optax.GradientTransformationExtraArgs:
    r"""Drops what conflicts, and weighs by how well the retain set is kept (GDR-GMA).

    .. math:: u = (1 - \lambda) g_r' + \lambda g_f', \quad
       \lambda = \frac{1}{1 + e^{s (\ell_r - c)}}

    with the gradients of :func:`project_conflicting_updates`, each without its
    component along the other where the two conflict in a tensor.

    Args:
      level: :math:`c`, the retain loss at which both count alike.
      slope: :math:`s`, how fast forgetting yields to a larger loss.

    Returns:
      A transform whose ``update`` needs the keywords ``forget_grads`` and ``value``,
      the retain loss; the methods of :mod:`mujax.methods` give both.

    Raises:
      ValueError: as :func:`correct_updates`, or ``value`` is missing.

    Example:
      >>> tx = rectify_updates(level=0.5)
      >>> retain, forget = jnp.array([1.0, 0.0]), jnp.array([-1.0, 1.0])
      >>> tx.update(retain, tx.init(retain), forget_grads=forget, value=0.5)[0]
      Array([0.25, 0.75], dtype=float32)

    Reference:
      Lin et al. (2024), *GDR-GMA*, ACM Multimedia.
    """

    def rule(retain_grads, forget_grads, count, value=None):
        del count
        if value is None:
            raise ValueError(
                "rectify_updates got value=None, wanted the retain loss: call "
                "update(updates, state, params, forget_grads=…, value=loss)."
            )
        share = jax.nn.sigmoid(slope * (level - value))
        return correction.project_conflicts(
            retain_grads, forget_grads, forget_weight=share, retain_weight=1 - share
        )

    return _combine_gradients(rule, ("value",))


class SeparateUpdatesState(NamedTuple):
    """State of :func:`separate_updates`.

    Attributes:
      retain: the state of the optimiser of the retain gradient.
      forget: that of the optimiser of the forgetting gradient.
    """

    retain: optax.OptState
    forget: optax.OptState


def separate_updates(
    retain: optax.GradientTransformation, forget: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    r"""Gives each gradient an optimiser of its own and adds their updates (DualOptim).

    The momenta of the two streams then do not mix. What comes out are updates, so that
    what stands behind it needs no learning rate: as ``combine`` of
    :func:`mujax.methods.ufg` or :func:`mujax.methods.neggrad_plus` beside
    ``optax.identity()``.

    Args:
      retain: optimiser of the retain gradient, such as ``optax.sgd``.
      forget: optimiser of the forgetting gradient, such as ``optax.adam``.

    Returns:
      A transform whose ``update`` needs the keyword ``forget_grads``.

    Raises:
      ValueError: as :func:`correct_updates`.

    Example:
      >>> tx = separate_updates(optax.sgd(1.0), optax.adam(0.1))
      >>> ours, theirs = jnp.ones(1), 3 * jnp.ones(1)
      >>> updates, _ = tx.update(ours, tx.init(ours), forget_grads=theirs)
      >>> updates.round(3)
      Array([-1.1], dtype=float32)

    Reference:
      `DualOptim (2025) <https://arxiv.org/abs/2504.15827>`_.
    """
    retain, forget = map(optax.with_extra_args_support, (retain, forget))

    def init_fn(params):
        wrappers.refuse_half_seen()
        return SeparateUpdatesState(retain.init(params), forget.init(params))

    def update_fn(updates, state, params=None, *, forget_grads=None, **extra_args):
        both = _both(updates, forget_grads)
        other = match(both.forget, both.retain, "forget_grads", "updates")
        ours, kept = retain.update(both.retain, state.retain, params, **extra_args)
        theirs, left = forget.update(other, state.forget, params, **extra_args)
        total = jax.tree.map(lambda u, v: (u + v).astype(u.dtype), ours, theirs)
        return total, SeparateUpdatesState(kept, left)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def project_updates(
    bases: PyTree, *, freeze_rest: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the part of each kernel's update in SEMU's subspace, :math:`UU^TuVV^T`.

    With SGD this walks exactly as training the cores does; with adaptive optimisers
    put it last.

    Args:
      bases: from :func:`mujax.subspace.svd_bases`.
      freeze_rest: also zero the updates of the leaves without a basis, as SEMU does.

    Returns:
      A stateless transform.

    Raises:
      ValueError: bases and updates differ in structure or shape.

    Example:
      >>> from mujax import subspace
      >>> bases = subspace.svd_bases({"w": jnp.diag(jnp.array([2.0, 0.0]))})
      >>> tx = project_updates(bases)
      >>> updates = {"w": jnp.ones((2, 2))}
      >>> tx.update(updates, tx.init(updates))[0]["w"].round(3)
      Array([[1., 0.],
             [0., 0.]], dtype=float32)

    Reference:
      `SEMU (2025) <https://arxiv.org/abs/2502.07587>`_.
    """

    def is_basis(node):
        return node is None or isinstance(node, subspace.Basis)

    def init_fn(params):
        if _is_tree(params):
            jax.eval_shape(lambda p: subspace.project(p, bases), params)
        return optax.EmptyState()

    def projected(updates):
        _check_addressable(bases, updates, "bases")
        inside = subspace.project(updates, bases)
        if freeze_rest:
            held = match(bases, inside, "bases", "updates", is_leaf=is_basis)
            inside = jax.tree.map(
                lambda u, basis: _where(basis is not None, u), inside, held
            )
        return inside

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args
        return wrappers.on_each(projected, updates), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class SoftThresholdState(NamedTuple):
    """State of :func:`soft_threshold_updates`.

    Attributes:
      count: number of updates so far, shape (), int32.
      anchor: the parameters at the start, from which distances are measured.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    anchor: PyTree


def soft_threshold_updates(
    fraction: Scalar,
) -> optax.GradientTransformationExtraArgs:
    r"""Pulls the weights that moved least back to the original (SalUn-soft).

    With :math:`\Delta = \theta + u - \theta_0` the update leads to

    .. math::
      \theta_0 + \mathrm{sign}(\Delta) \max(|\Delta| - \gamma, 0)

    where :math:`\gamma` is the :math:`\lfloor \rho_t N \rfloor`-th smallest
    :math:`|\Delta|` of the whole tree, exactly. Last in the chain. The anchor
    :math:`\theta_0` is what ``init`` is given, for the whole run.

    Args:
      fraction: :math:`\rho_t` in [0, 1]; SalUn-soft lets it fall to zero, e.g.
        ``optax.linear_schedule(0.5, 0.0, total_steps)``.

    Returns:
      A transform whose ``update`` needs ``params``.

    Raises:
      ValueError: the fraction is a number outside [0, 1], or ``params`` is missing or
        does not fit the updates.

    Example:
      >>> import optax
      >>> tx = optax.chain(optax.sgd(1.0), soft_threshold_updates(0.5))
      >>> params = jnp.zeros(2)
      >>> updates, _ = tx.update(jnp.array([1.0, -3.0]), tx.init(params), params)
      >>> updates
      Array([0., 2.], dtype=float32)

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_, SalUn-soft.
    """
    if not callable(fraction):
        check_fraction(fraction)

    def init_fn(params):
        wrappers.refuse_other_weights()
        if isinstance(params, optax.LookaheadParams):
            raise ValueError(
                "soft_threshold_updates got LookaheadParams, wanted the fast ones "
                "alone: put it inside, optax.lookahead(optax.chain(…, "
                "soft_threshold_updates(…)), …)."
            )
        check_inexact(params, "params")
        # A copy: the caller may donate the parameters to a jitted step.
        anchor = jax.tree.map(lambda p: jnp.copy(p) if is_array(p) else None, params)
        return SoftThresholdState(jnp.zeros([], jnp.int32), anchor)

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        if params is None:
            raise ValueError(
                "soft_threshold_updates got params=None, wanted the parameters: call "
                "update(updates, state, params)."
            )
        check_inexact(updates, "updates")
        params = match(params, updates, "params", "updates")
        anchor = match(state.anchor, updates, "the anchor", "updates")
        moved = jax.tree.map(lambda p, u, a: (p - a) + u, params, updates, anchor)
        distances = jax.tree.map(jnp.abs, moved)
        rank = _floor(_at(fraction, state.count), size(distances))
        gamma = saliency.kth_smallest(distances, rank)

        def pull(delta, p, u, a):
            # γ is exact among distances as float32, and so is the comparison. The
            # others step from where they are, so that γ = 0 leaves u as it is.
            stays = jnp.abs(delta).astype(jnp.float32) <= gamma
            step = jnp.where(stays, a - p, u - jnp.sign(delta) * gamma)
            return step.astype(jnp.result_type(u))

        pulled = jax.tree.map(pull, moved, params, updates, anchor)
        return pulled, SoftThresholdState(_next(state.count), state.anchor)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _combine_gradients(
    rule: Callable[..., PyTree], wanted: tuple[str, ...] = ()
) -> optax.GradientTransformationExtraArgs:
    """A transform that applies ``rule(updates, forget_grads, count, **wanted)``."""

    def init_fn(params):
        del params
        wrappers.refuse_half_seen()
        return CombineGradientsState(jnp.zeros([], jnp.int32))

    def update_fn(updates, state, params=None, *, forget_grads=None, **extra_args):
        del params
        both = _both(updates, forget_grads)
        known = {name: extra_args.get(name) for name in wanted}
        combined = rule(both.retain, both.forget, state.count, **known)
        return combined, CombineGradientsState(_next(state.count))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _both(updates: PyTree, forget_grads: PyTree | None) -> wrappers.TwoGradients:
    """The two gradients, checked."""
    wrappers.refuse_half_seen()
    both = wrappers.take_both(updates, forget_grads)
    for tree, name in ((both.retain, "updates"), (both.forget, "forget_grads")):
        check_inexact(tree, name)
    return both._replace(retain=jax.tree.map(jnp.asarray, both.retain))


def _check_addressable(held: PyTree, updates: PyTree, name: str) -> None:
    """Raises where jit would close over arrays that no process holds whole."""
    if not any(map(is_traced, jax.tree.leaves(updates))):
        return
    for leaf in jax.tree.leaves(held):
        if not is_traced(leaf) and not getattr(leaf, "is_fully_addressable", True):
            raise RuntimeError(
                f"Got {name} spread over several processes inside of jit, which cannot "
                f"close over them: give the jitted function the {name} as an argument "
                "and build the chain in it."
            )


def _is_tree(params: PyTree) -> bool:
    """Whether there are parameters: ``tree_map_params`` of optax inits with none."""
    return bool(jax.tree.leaves(params))


def _where(moves: jax.typing.ArrayLike, u: jax.Array) -> jax.Array:
    """An update where it may move, and nothing elsewhere.

    Nothing is negative zero, the neutral element of addition: a weight of -0.0 plus
    0.0 would turn into 0.0 and no longer be bit-identical. What no number can be added
    to, such as the float0 gradient of an integer, passes.
    """
    dtype = jnp.result_type(u)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        nothing = complex(-0.0, -0.0)
    elif jnp.issubdtype(dtype, jnp.number):
        nothing = -0.0
    else:
        return u
    return jnp.where(moves, u, jnp.asarray(nothing, dtype))


def _next(count: jax.Array) -> jax.Array:
    """The following step; stays at the largest integer."""
    return jnp.asarray(optax.safe_increment(count))


def _at(value: Scalar, count: jax.Array) -> jax.typing.ArrayLike:
    """The value of a number or a schedule at a step."""
    return value(count) if callable(value) else value


def _floor(share: jax.typing.ArrayLike, total: int) -> jax.typing.ArrayLike:
    """Floor of a share of a total; a number's as in saliency.top_fraction_mask.

    An array is multiplied in float32 whether traced or not, as a schedule's value is.
    """
    if isinstance(share, jax.Array):
        return jnp.floor(share * jnp.float32(total))
    return np.uint32(math.floor(float(np.asarray(share)) * total))
