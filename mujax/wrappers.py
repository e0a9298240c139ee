r"""Two gradients, and frozen weights, through the wrappers of optax.

A wrapper of optax (gradient accumulation, a guard against numbers that are not finite)
looks at the gradients that it is given as ``updates``. A transform of
:mod:`mujax.transforms` that combines two gradients takes the second as
``forget_grads``, which a wrapper hands on without looking: it would average one
gradient and not the other. :func:`with_both_gradients` shows it both. Inside of a
wrapper that would use one gradient alone, such as :class:`optax.MultiSteps`, such a
transform refuses to be initialised, and to run, without it.
"""

import sys
from collections.abc import Callable
from types import CodeType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mujax._trees import PyTree, check_mask, match, select


class TwoGradients(NamedTuple):
    """Both gradients as one tree, for loops that hand on nothing but ``grads``.

    The first transform of a chain may be given it as its updates, in place of
    ``forget_grads``; flax's ``TrainState`` then works as it is::

        state.apply_gradients(grads=TwoGradients(retain_grads, forget_grads))

    Attributes:
      retain: gradients of the retain loss.
      forget: forgetting gradients.
    """

    retain: PyTree
    forget: PyTree


def with_both_gradients(
    wrapper: Callable[[optax.GradientTransformation], Any],
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Lets a wrapper of optax see the forgetting gradient beside the first one.

    With :class:`optax.MultiSteps` both are averaged, with
    :func:`optax.apply_if_finite` (or ``skip_not_finite``) both are looked at. What the
    wrapper does to the whole tree, it does to both together.

    Args:
      wrapper: makes a transform of a transform, such as
        ``lambda tx: optax.MultiSteps(tx, 4)``.
      inner: the chain, with a transform that combines two gradients.

    Returns:
      A transform whose ``update`` needs the keyword ``forget_grads``, or
      :class:`TwoGradients` as updates.

    Raises:
      ValueError: ``forget_grads`` is missing, or does not fit the updates.

    Example:
      >>> from mujax.transforms import blend_updates
      >>> tx = with_both_gradients(
      ...     lambda tx: optax.MultiSteps(tx, 2),
      ...     optax.chain(blend_updates(0.5), optax.sgd(1.0)),
      ... )
      >>> params = jnp.zeros(1)
      >>> state = tx.init(params)
      >>> for forget in (8.0, 0.0):
      ...     updates, state = tx.update(
      ...         jnp.ones(1), state, params, forget_grads=jnp.full(1, forget)
      ...     )
      >>> updates
      Array([-2.5], dtype=float32)
    """
    tx = optax.with_extra_args_support(inner)

    def init_inner(params):
        return tx.init(_both(params).retain)

    def update_inner(updates, state, params: Any = None, **extra_args):
        both = _both(updates)
        params = None if params is None else params.retain
        moved, state = tx.update(
            both.retain, state, params, forget_grads=both.forget, **extra_args
        )
        nothing = jax.tree.map(jnp.zeros_like, both.forget)
        return TwoGradients(moved, nothing), state

    seeing = wrapper(optax.GradientTransformationExtraArgs(init_inner, update_inner))
    if isinstance(seeing, optax.MultiSteps):
        seeing = seeing.gradient_transformation()
    outer = optax.with_extra_args_support(seeing)

    def init_fn(params):
        return outer.init(TwoGradients(params, params))

    def update_fn(updates, state, params=None, *, forget_grads=None, **extra_args):
        both = take_both(updates, forget_grads)
        both = both._replace(
            forget=match(both.forget, both.retain, "forget_grads", "updates")
        )
        seen = None if params is None else TwoGradients(params, params)
        moved, state = outer.update(both, state, seen, **extra_args)
        return _both(moved).retain, state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def keep_frozen(mask: PyTree, params: PyTree, original: PyTree) -> PyTree:
    r"""The original's frozen weights in parameters that something else made of them.

    Averages of weights (EMA, lookahead, the evaluation weights of schedule-free
    optimisers) round: a weight that never moved may come back with other bits. This
    gives :math:`m \odot \theta + (1 - m) \odot \theta_0`, exactly.

    Args:
      mask: a boolean tree; true entries were allowed to move.
      params: the parameters to evaluate or to keep.
      original: the parameters before the first step.

    Returns:
      A tree of the structure of ``params``.

    Raises:
      ValueError: the trees do not fit; the message names the leaf.

    Example:
      >>> mask = jnp.array([True, False])
      >>> keep_frozen(mask, jnp.array([1.0, 2.0]), jnp.array([5.0, 6.0]))
      Array([1., 6.], dtype=float32)
    """
    check_mask(mask)
    return select(
        match(mask, params, "mask", "params"),
        params,
        match(original, params, "original", "params"),
    )


def take_both(updates: Any, forget_grads: PyTree | None) -> TwoGradients:
    """Both gradients, in whichever way they came."""
    if isinstance(updates, TwoGradients):
        if forget_grads is not None:
            raise ValueError(
                "update got TwoGradients and forget_grads, wanted one of them."
            )
        return updates
    if forget_grads is None:
        raise ValueError(
            "update got forget_grads=None, wanted the forgetting gradients: call "
            "update(updates, state, params, forget_grads=...), or, where only updates "
            "are handed on, give mujax.wrappers.TwoGradients(retain, forget) as them."
        )
    return TwoGradients(updates, forget_grads)


def on_each(function: Callable[[PyTree], PyTree], updates: Any) -> Any:
    """Applies a function to updates, or to both gradients."""
    if isinstance(updates, TwoGradients):
        return TwoGradients(*map(function, updates))
    return function(updates)


def refuse_half_seen() -> None:
    """Raises where a wrapper of optax would treat one of two gradients alone.

    A wrapper calls its inner transform with the second gradient untouched, which the
    arguments do not tell. The callers do; those of ``init`` too, since an update that
    was compiled elsewhere is not traced again.

    Raises:
      ValueError: naming the wrapper and what to write.
    """
    _refuse(_ONE_SIDED)


def refuse_other_weights() -> None:
    """Raises in ``init`` where parameters and update do not make the next parameters.

    Raises:
      ValueError: naming the wrapper and what to write.
    """
    _refuse(_OTHER_WEIGHTS)


def _refuse(messages: dict[CodeType, str]) -> None:
    """Raises the message of the nearest caller that has one."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_name
        if name in ("init_inner", "update_inner") and frame.f_globals is globals():
            return
        if frame.f_code in messages:
            raise ValueError(messages[frame.f_code])
        frame = frame.f_back


def _both(tree: Any) -> TwoGradients:
    """What a wrapper hands on, if it has kept the two gradients apart."""
    if isinstance(tree, TwoGradients):
        return tree
    raise ValueError(
        f"with_both_gradients got {type(tree).__name__} from the wrapper, wanted "
        "TwoGradients: put what changes the tree, such as optax.flatten, behind the "
        "transform, optax.chain(ours, wrapper(inner))."
    )


def _codes(tx: Any, *functions: str) -> list[CodeType]:
    """The code that all transforms of a kind share."""
    return [getattr(tx, name).__code__ for name in functions]


_IDENTITY = optax.identity()
_SHOW_BOTH = (
    "{0} sees only the first of two gradients and would leave forget_grads as it "
    "comes: build it with mujax.wrappers.with_both_gradients(lambda tx: {0}(tx, …), "
    "inner)."
)
_IN_FRONT = (
    "{0} uses the first of two gradients itself, as it comes: put the transform that "
    "combines them in front, optax.chain(ours, {0}(inner))."
)
_BEHIND = (
    "Inside of {0} the update of soft_threshold_updates would be taken for another: "
    "put it behind, optax.chain({0}(inner), soft_threshold_updates(…))."
)
_KEEP_STATE = (
    "{0}(reset_state=True) would lose the parameters from which soft_threshold_updates "
    "measures: give reset_state=False."
)


def _messages(
    *rows: tuple[str, list[CodeType], str],
) -> dict[CodeType, str]:
    """Messages by the code of the functions that they are about."""
    return {code: text.format(name) for name, codes, text in rows for code in codes}


_MECHANIZE = _codes(optax.contrib.mechanize(_IDENTITY), "init", "update")
_ONE_SIDED = _messages(
    ("optax.MultiSteps", _codes(optax.MultiSteps, "init", "update"), _SHOW_BOTH),
    (
        "optax.apply_if_finite",
        _codes(optax.apply_if_finite(_IDENTITY, 1), "init", "update"),
        _SHOW_BOTH,
    ),
    ("optax.contrib.mechanize", _MECHANIZE, _IN_FRONT),
    (
        "optax.contrib.sam",
        _codes(optax.contrib.sam(_IDENTITY, _IDENTITY), "init", "update"),
        _IN_FRONT,
    ),
)
"""Wrappers that average, examine or use what they are given as updates."""
_OTHER_WEIGHTS = _messages(
    (
        "optax.contrib.schedule_free",
        _codes(optax.contrib.schedule_free(_IDENTITY, 1.0), "init"),
        _BEHIND,
    ),
    ("optax.contrib.mechanize", _MECHANIZE, _BEHIND),
    (
        "optax.lookahead",
        _codes(optax.lookahead(_IDENTITY, 1, 1.0), "update"),
        _KEEP_STATE,
    ),
)
"""Wrappers inside of which parameters plus update are not the next parameters."""
