"""The protocol that every method follows, and the engine that they share.

A method is a triple of pure functions and a value::

    state = method.init(params, model_state, forget_batches, mask=None)
    state, info = method.step(state, batch, forget_batch=None, key=key)
    params, model_state = method.finish(state)
    method.data_use          # which data, with which labels, for how many epochs

``step`` contains no loop, I/O or logging: jit it (and donate the state), vmap it over
seeds, shard it, or build the method with ``axis_name`` and put it under ``pmap`` or
``shard_map`` with the state replicated. A loss is
``loss_fn(params, model_state, batch, key) -> (loss, (model_state, aux))``, the mean
over the batch; methods that need an evaluation mode take a second one, and those that
compare with the original model give its parameters after ``params``.

Inside of ``step`` nothing is read on the host. Of complex parameters the optimiser is
given the directions of ascent, the conjugates of what ``jax.grad`` gives.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from mujax._meshes import in_pieces, zeros_along
from mujax._programs import Adapted
from mujax._trees import PyTree, check_inexact, check_mask, match, select, size, wide
from mujax.gradients import num_examples

FORGET = "forget"
RETAIN = "retain"


class LossFn(Protocol):
    """Mean loss of a batch, the model's other state after it, and anything else."""

    def __call__(
        self,
        params: PyTree,
        model_state: PyTree,
        batch: PyTree,
        key: jax.Array | None,
        /,
    ) -> tuple[jax.Array, tuple[PyTree, Any]]:
        """Returns ``(loss, (model_state, aux))``."""
        ...


class PairLossFn(Protocol):
    """A :class:`LossFn` that is also given the original parameters."""

    def __call__(
        self,
        params: PyTree,
        original: PyTree,
        model_state: PyTree,
        batch: PyTree,
        key: jax.Array | None,
        /,
    ) -> tuple[jax.Array, tuple[PyTree, Any]]:
        """Returns ``(loss, (model_state, aux))``."""
        ...


@dataclasses.dataclass(frozen=True)
class DataUse:
    """What a method reads: a value for a training loop to follow.

    Attributes:
      passes: an epoch, as passes over the data in turn; each pass shuffles together
        the streams it names, :data:`FORGET` or :data:`RETAIN`.
      companion: how much of the forget set comes beside every batch as
        ``forget_batch``: none (None), a batch drawn from it (``"sampled"``), or all
        of it (``"whole"``).
      relabel: ``(key, labels, num_classes) -> labels``, applied to the forget set
        once an epoch; None leaves the labels true.
      epochs: number of epochs, in each stage.
      microbatch_size: the companion is read in pieces of this many examples, so that
        it must hold a multiple of them (pad it with examples of weight 0) or fewer;
        None reads it at once.
      stages: number of curriculum stages; in each, the forget set is that stage's
        part, from :func:`mujax.curriculum.stage_indices`.
      fresh_start: train from new parameters instead of the original's.
      retain_at_start: ``init`` is also given ``retain_batches``, as many as forget
        batches, and a ``key``.
    """

    passes: tuple[tuple[str, ...], ...]
    companion: str | None = None
    relabel: Callable[[jax.Array, jax.Array, int], jax.Array] | None = None
    epochs: int = 10
    microbatch_size: int | None = None
    stages: int = 1
    fresh_start: bool = False
    retain_at_start: bool = False


class State(NamedTuple):
    """State of a method between steps; a tree of arrays.

    Attributes:
      trained: what the optimiser moves: the parameters, or SEMU's cores.
      fixed: what turns ``trained`` into parameters, the original ones where the loss
        compares with them, or empty.
      model_state: the model's other state, such as batch statistics.
      opt_state: the optimiser's state.
      mask: boolean tree like ``trained``, or None.
      forget_grads: the last forgetting gradient where it is reused, or None.
      step: number of steps so far, shape (), int32.
    """

    trained: PyTree
    fixed: PyTree
    model_state: PyTree
    opt_state: PyTree
    mask: PyTree | None
    forget_grads: PyTree | None
    step: jax.Array


class StepInfo(NamedTuple):
    """What a step reports.

    Attributes:
      loss: the loss of the batch before the step, shape (), float32.
      aux: what the loss function returned beside it.
    """

    loss: jax.Array
    aux: Any


class Method(NamedTuple):
    """An unlearning method.

    Attributes:
      init: ``(params, model_state=(), forget_batches=None, *, mask=None) -> State``.
      step: ``(state, batch, *, forget_batch=None, key=None, **extra_args)
        -> (State, StepInfo)``; extra arguments go to the optimiser.
      finish: ``(state) -> (params, model_state)``.
      data_use: what to feed ``step``.
    """

    init: Callable[..., State]
    step: Callable[..., tuple[State, StepInfo]]
    finish: Callable[[State], tuple[PyTree, PyTree]]
    data_use: DataUse


def with_data(method: Method, **changes: Any) -> Method:
    """The method with some fields of its data use replaced.

    Raises:
      ValueError: for ``microbatch_size``, which the step is built with.

    Example:
      >>> from mujax import methods
      >>> loss_fn = lambda p, s, b, k: (p, (s, None))
      >>> ascent = methods.gradient_ascent(loss_fn, optax.sgd(1.0))
      >>> with_data(ascent, stages=3, epochs=2).data_use.stages
      3
    """
    if "microbatch_size" in changes:
        raise ValueError(
            "Got microbatch_size, which the method's step is built with; give it to "
            "the method itself."
        )
    return method._replace(data_use=dataclasses.replace(method.data_use, **changes))


def trainable_fraction(state: State, params: PyTree) -> float:
    """Share of all parameters that the method may move ("TParams"), in [0, 1]."""
    if state.mask is None:
        count = size(state.trained)
    else:
        count = sum(int(jnp.sum(leaf)) for leaf in jax.tree.leaves(state.mask))
    return count / size(params)


def plain_loss(loss_fn: LossFn, model_state: PyTree) -> Callable[..., jax.Array]:
    """The loss as ``(params, batch) -> scalar``, for scores, bases and gradients."""
    return Partial(Adapted(_loss_alone, loss_fn), model_state)


def _loss_alone(loss_fn, model_state, params, batch):
    """The loss without what comes beside it."""
    return loss_fn(params, model_state, batch, None)[0]


class Start(NamedTuple):
    """What a method decides before the first step; see :class:`State`."""

    trained: PyTree
    fixed: PyTree = ()
    mask: PyTree | None = None


def start_from_params(params, model_state, forget_batches, mask) -> Start:
    """Trains the parameters themselves, under the mask that the caller gives."""
    del model_state, forget_batches
    return Start(params, (), mask)


def descend(
    loss_fn: Callable[..., tuple[jax.Array, tuple[PyTree, Any]]],
    optimizer: optax.GradientTransformation,
    data_use: DataUse,
    *,
    sign: float = 1.0,
    start: Callable[..., Start] = start_from_params,
    merge: Callable[[PyTree, PyTree], PyTree] = lambda trained, fixed: trained,
    original: Callable[[PyTree], PyTree] | None = None,
    moves_statistics: bool = True,
    forget_loss_fn: LossFn | None = None,
    refresh_every: int = 1,
    axis_name: str | None = None,
) -> Method:
    r"""The engine: masked optimiser steps on a loss, with one gradient or with two.

    Args:
      loss_fn: loss of the batch that comes with a step, a :class:`LossFn`.
      optimizer: any optax transform; it is given the loss as ``value``, and with two
        gradients ``forget_grads``.
      data_use: what to feed the steps.
      sign: -1 ascends the loss.
      start: ``(params, model_state, forget_batches, mask) -> Start``.
      merge: ``(trained, fixed) -> params``.
      original: ``fixed -> params`` before the first step; if given, ``loss_fn`` is a
        :class:`PairLossFn` that sees them.
      moves_statistics: keep the model state that the loss returns.
      forget_loss_fn: if given, each step also computes the forgetting gradient
        :math:`\nabla(-\ell)` of this loss on ``forget_batch``.
      refresh_every: recompute it every so many steps and reuse it in between.
      axis_name: average gradients, losses and model state over this mapped axis.
    """
    if refresh_every < 1:
        raise ValueError(f"Got refresh_every={refresh_every}, wanted at least 1.")
    tx = optax.with_extra_args_support(optimizer)

    def init(
        params: PyTree,
        model_state: PyTree = (),
        forget_batches: Iterable[PyTree] | None = None,
        *,
        mask: PyTree | None = None,
    ) -> State:
        check_inexact(params, "params")
        if mask is not None:
            check_mask(mask)
            mask = match(mask, params, "mask", "params")
        begun = start(params, model_state, forget_batches, mask)
        reused = forget_loss_fn is not None and refresh_every > 1
        state = State(
            trained=begun.trained,
            fixed=begun.fixed,
            model_state=model_state,
            opt_state=tx.init(begun.trained),
            mask=begun.mask,
            forget_grads=jax.tree.map(jnp.zeros_like, params) if reused else None,
            step=jnp.zeros([], jnp.int32),
        )
        # Copies, so that the caller can donate the state and keep the original model.
        return jax.tree.map(jnp.copy, state)

    def step(
        state: State,
        batch: PyTree,
        *,
        forget_batch: PyTree | None = None,
        key: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[State, StepInfo]:
        retain_key, forget_key = (None, None) if key is None else jax.random.split(key)

        def objective(trained):
            seen = (merge(trained, state.fixed),)
            if original is not None:
                seen += (original(state.fixed),)
            loss, rest = loss_fn(*seen, state.model_state, batch, retain_key)
            return sign * mean_over(axis_name, loss), rest

        (loss, (model_state, aux)), grads = jax.value_and_grad(objective, has_aux=True)(
            state.trained
        )
        grads = _uphill(mean_over(axis_name, grads))
        forget_grads = state.forget_grads
        if forget_loss_fn is not None:
            if forget_batch is None:
                raise ValueError(
                    "step got forget_batch=None, but this method combines two "
                    "gradients: give a batch of the forget set (see data_use)."
                )

            def refreshed():
                fresh = _forgetting_gradient(
                    forget_loss_fn,
                    state,
                    forget_batch,
                    forget_key,
                    data_use.microbatch_size,
                    axis_name,
                )
                return _uphill(mean_over(axis_name, fresh))

            forget_grads = (
                refreshed()
                if refresh_every == 1
                else jax.lax.cond(
                    state.step % refresh_every == 0,
                    refreshed,
                    lambda: state.forget_grads,
                )
            )
            extra_args["forget_grads"] = forget_grads
        given = {"value": loss, **extra_args}
        updates, opt_state = tx.update(grads, state.opt_state, state.trained, **given)
        trained = optax.apply_updates(state.trained, updates)
        if state.mask is not None:
            # Selected, not added to: addition on CPU flushes subnormal weights to zero.
            trained = select(state.mask, trained, state.trained)
        new_state = state._replace(
            trained=trained,
            model_state=mean_over(axis_name, model_state)
            if moves_statistics
            else state.model_state,
            opt_state=opt_state,
            forget_grads=forget_grads if refresh_every > 1 else None,
            step=state.step + 1,
        )
        return new_state, StepInfo(jnp.float32(sign * loss), aux)

    def finish(state: State) -> tuple[PyTree, PyTree]:
        return merge(state.trained, state.fixed), state.model_state

    return Method(init, step, finish, data_use)


def need_batches(batches: Iterable[PyTree] | None, part: str, what: str):
    """The batches of a part, or an error that says what they are for."""
    if batches is None:
        raise ValueError(
            f"init got {part}_batches=None, wanted batches of the {part} set to "
            f"compute {what}."
        )
    return batches


def _forgetting_gradient(loss_fn, state, batch, key, microbatch_size, axis_name):
    """Gradient of the negated loss at the current parameters, piece by piece."""

    def objective(params, piece):
        loss, _ = loss_fn(params, state.model_state, piece, key)
        return -mean_over(axis_name, loss)

    grad_fn = jax.grad(objective)
    if microbatch_size is None:
        return grad_fn(state.trained, batch)
    count = num_examples(batch, "forget_batch")
    if microbatch_size >= count:
        return grad_fn(state.trained, batch)
    if count % microbatch_size:
        raise ValueError(
            f"Got a forget_batch of {count} examples, wanted a multiple of "
            f"microbatch_size={microbatch_size}; pad it with examples of weight 0."
        )
    pieces = jax.tree.map(lambda x: in_pieces(x, microbatch_size), batch)
    zero = jax.tree.map(lambda p: zeros_along(p, wide(p.dtype)), state.trained)

    def add(total, piece):
        return jax.tree.map(jnp.add, total, grad_fn(state.trained, piece)), None

    total, _ = jax.lax.scan(add, zero, pieces)
    return jax.tree.map(
        lambda t, p: (t * (microbatch_size / count)).astype(p.dtype),
        total,
        state.trained,
    )


def _uphill(grads: PyTree) -> PyTree:
    """Directions of ascent: of complex numbers ``jax.grad`` gives the conjugate."""
    return jax.tree.map(jnp.conj, grads)


def mean_over(axis_name: str | None, tree: PyTree) -> PyTree:
    """Averages the real and complex leaves over a mapped axis, if there is one.

    A step averages the loss that it differentiates and then the gradients. Under pmap
    these are each replica's own; under shard_map those of replicated parameters come
    out averaged already, and averaging them again changes nothing.
    """
    if axis_name is None:
        return tree
    return jax.tree.map(
        lambda x: (
            jax.lax.pmean(x, axis_name)
            if jnp.issubdtype(jnp.result_type(x), jnp.inexact)
            else x
        ),
        tree,
    )
