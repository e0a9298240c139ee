"""Feeding a method: which examples each step sees, and epochs that run them.

The loop follows a method's ``data_use`` and knows no method by name. What an epoch
reads is a :class:`Plan` of indices and weights, drawn on the host from the run's seed
and the epoch's number alone, so that a run that was cut off goes on as if it had not
been. An epoch is one compiled loop over examples that lie on the device, whose number
of steps is a value, or a Python loop over steps, which gathers batches on the host
where the examples lie there.

Weights average to one over a batch's examples, with 0 for padding, and a loss is the
mean of weight × loss: sums over pieces and over devices then come out right.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.engine import programs
from experiments.engine.devices import ONE, Devices
from mujax import methods

Examples = Mapping[str, Any]


class DivergedError(ArithmeticError):
    """A run whose loss or parameters are no longer finite."""


@dataclasses.dataclass(frozen=True, eq=False)
class Feed:
    """Examples and their parts.

    Attributes:
      examples: arrays that lead with the example axis, ``"label"`` among them; JAX
        arrays are gathered on the device, NumPy arrays (or memory maps) on the host.
      num_classes: number of labels, for relabelling.
      forget: indices of the forget set, one array for each curriculum stage.
      retain: indices of the retain set.
      scan: let an epoch be one scan, if the examples lie on the device; it saves the
        time between steps, but some programs run slower inside a scan on CPU.
      devices: where batches and states lie.
    """

    examples: Examples
    num_classes: int
    forget: tuple[np.ndarray, ...]
    retain: np.ndarray
    scan: bool = True
    devices: Devices = ONE


class Plan(NamedTuple):
    """What an epoch's steps read: S steps of B examples, and a companion's.

    Attributes:
      indices: of the batches, int32 (S, B).
      weights: of their examples, float32 (S, B).
      companion_indices: forget examples beside each step (S, B), or beside all (n,).
      companion_weights: their weights.
    """

    indices: np.ndarray
    weights: np.ndarray
    companion_indices: np.ndarray | None = None
    companion_weights: np.ndarray | None = None


def run(
    method: methods.Method,
    state: methods.State,
    feed: Feed,
    *,
    batch_size: int,
    seed: tuple[int, ...],
    start_epoch: int = 0,
    on_epoch: Callable[[int, methods.State, float], None] = lambda *_: None,
    traced: programs.Traced | None = None,
) -> methods.State:
    """Runs a method's epochs, stage by stage.

    Args:
      method: the method; its data use says what is read.
      state: from ``method.init``, or of a checkpoint after ``start_epoch`` epochs; it
        is donated.
      feed: the examples.
      batch_size: examples a step.
      seed: any numbers that tell this run from others.
      start_epoch: number of epochs already done.
      on_epoch: called as ``(epochs done, state, mean loss)`` after each epoch.
      traced: the same method as a function of its numbers, so that others share its
        programs.

    Returns:
      The state after the last epoch.

    Raises:
      DivergedError: a loss is not finite.
    """
    use = method.data_use
    traced = programs.Traced(_constant(method), {}) if traced is None else traced
    make_epoch = _looped if compiles(feed) else _stepwise
    epoch_fn = make_epoch(traced.make, feed.devices)
    epoch_fn = functools.partial(epoch_fn, method.data_use, dict(traced.numbers))
    for epoch in range(start_epoch, num_epochs(use)):
        plan, labels, key = draw_epoch(use, feed, batch_size, seed, epoch)
        state, loss = epoch_fn(state, feed, labels, plan, key)
        check_loss(loss, epoch)
        on_epoch(epoch + 1, state, loss)
    return state


def draw_epoch(
    use: methods.DataUse, feed: Feed, batch_size: int, seed: tuple[int, ...], epoch: int
) -> tuple[Plan, Any, jax.Array]:
    """An epoch's plan, its labels, and its key."""
    key = jax.random.key(np.random.SeedSequence(seed).generate_state(1)[0])
    key = jax.random.fold_in(key, epoch)
    forget = feed.forget[epoch // use.epochs]
    rng = np.random.default_rng((*seed, epoch))
    plan = make_plan(use, forget, feed, batch_size, rng)
    labels = feed.examples["label"]
    if use.relabel is not None:
        # On the host: what is drawn on one device does not mix with labels on many.
        labels, whole = np.array(labels), np.concatenate(feed.forget)
        labels[whole] = use.relabel(key, jnp.asarray(labels[whole]), feed.num_classes)
    return plan, labels, key


def check_loss(loss: float, epoch: int) -> None:
    """Raises :class:`DivergedError` after a loss that is not finite."""
    if not np.isfinite(loss):
        raise DivergedError(f"The loss is {loss} after {epoch + 1} epochs.")


def num_epochs(use: methods.DataUse) -> int:
    """Epochs of all stages together."""
    return use.epochs * use.stages


def steps_per_epoch(use: methods.DataUse, feed: Feed, batch_size: int) -> int:
    """Steps of one epoch; the largest stage counts."""
    largest = max(feed.forget, key=len)
    plan = make_plan(use, largest, feed, batch_size, np.random.default_rng(0))
    return len(plan.indices)


def make_plan(
    use: methods.DataUse,
    forget: np.ndarray,
    feed: Feed,
    batch_size: int,
    rng: np.random.Generator,
) -> Plan:
    """Draws an epoch's order."""
    parts = {methods.FORGET: forget, methods.RETAIN: feed.retain}
    passes = [
        _batches(rng.permutation(np.concatenate([parts[n] for n in names])), batch_size)
        for names in use.passes
    ]
    indices, weights = (np.concatenate(x) for x in zip(*passes, strict=True))
    if use.companion is None:
        return Plan(indices, weights)
    if use.companion == "sampled":
        needed = indices.size
        rounds = -(-needed // len(forget))
        drawn = np.concatenate([rng.permutation(forget) for _ in range(rounds)])
        drawn = drawn[:needed].reshape(indices.shape)
        return Plan(indices, weights, drawn, np.ones_like(weights))
    # All stages share one padded length, so that they share one compilation.
    length = max(map(len, feed.forget))
    piece = use.microbatch_size
    if piece is not None and length > piece:
        length = -(-length // piece) * piece
    padded, weight = _pad(forget, length)
    return Plan(indices, weights, padded, weight)


def take(feed: Feed, labels: Any, indices: Any, weights: Any) -> dict[str, Any]:
    """A batch: the examples' arrays, their labels now and in truth, their weights."""
    batch = {
        name: feed.devices.gather(array, indices)
        if isinstance(array, np.ndarray)
        else array[indices]
        for name, array in feed.examples.items()
    }
    true = batch["label"]
    return batch | {"label": labels[indices], "true_label": true, "weight": weights}


def in_order(feed: Feed, indices: np.ndarray, batch_size: int) -> list[dict[str, Any]]:
    """Batches of a part in order, with true labels; the last may be smaller."""
    labels = feed.examples["label"]
    chunks = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    return [
        feed.devices.split(take(feed, labels, chunk, np.ones(len(chunk), np.float32)))
        for chunk in chunks
    ]


def compiles(feed: Feed) -> bool:
    """Whether an epoch is one compiled loop, for the examples lie on the device."""
    arrays = feed.examples.values()
    return feed.scan and all(isinstance(array, jax.Array) for array in arrays)


def clear_cache() -> None:
    """Forgets the compiled epochs of all methods."""
    _looped.cache_clear()
    _stepwise.cache_clear()
    _constant.cache_clear()
    programs.clear()


@functools.lru_cache(maxsize=128)
def _constant(method: methods.Method) -> Callable[[Any], methods.Method]:
    """A method that is made of no numbers."""
    return lambda numbers: method


def epoch_loop(
    make: Callable[[Any], methods.Method], devices: Devices = ONE
) -> Callable:
    """An epoch as one loop, whose number of steps is a value."""

    def loop(state, numbers, examples, labels, plan, beside, key, count):
        method = make(numbers)
        feed = Feed(examples, 0, (), np.empty(0))

        def read(indices, weights):
            return devices.split(take(feed, labels, indices, weights))

        if beside is not None:
            beside = read(*beside)

        def body(i, carry):
            state, total = carry
            batch = read(plan.indices[i], plan.weights[i])
            forget_batch = beside
            if plan.companion_indices is not None:
                drawn = plan.companion_indices[i], plan.companion_weights[i]
                forget_batch = read(*drawn)
            state, info = method.step(
                state,
                batch,
                forget_batch=forget_batch,
                key=jax.random.fold_in(key, i),
            )
            return devices.place(state), total + info.loss

        return jax.lax.fori_loop(0, count, body, (state, jnp.float32(0)))

    return loop


@functools.lru_cache(maxsize=128)
def _looped(make: Callable[[Any], methods.Method], devices: Devices) -> Callable:
    """An epoch as one compiled loop."""
    run = programs.compiled(epoch_loop(make, devices), donate=0)

    def epoch(use, numbers, state, feed, labels, plan, key):
        count = len(plan.indices)
        plan, beside = padded(use, plan, count)
        labels, plan, beside, key = devices.everywhere(
            (jnp.asarray(labels), plan, beside, key)
        )
        examples = dict(feed.examples)
        state, total = run(
            state, numbers, examples, labels, plan, beside, key, np.int32(count)
        )
        return state, float(total) / count

    return epoch


@functools.lru_cache(maxsize=128)
def _stepwise(make: Callable[[Any], methods.Method], devices: Devices) -> Callable:
    """An epoch as a Python loop over batches."""

    def one(state, numbers, batch, beside, key):
        method = make(numbers)
        beside, batch = devices.split((beside, batch))
        state, info = method.step(state, batch, forget_batch=beside, key=key)
        return devices.place(state), info

    step = programs.compiled(one, donate=0)

    def epoch(use, numbers, state, feed, labels, plan, key):
        labels = np.asarray(labels)
        losses = []
        beside = None
        if use.companion == "whole":
            beside = devices.split(
                take(feed, labels, plan.companion_indices, plan.companion_weights)
            )
            beside = jax.device_put(beside)
        key = devices.everywhere(key)
        for i, (indices, weights) in enumerate(
            zip(plan.indices, plan.weights, strict=True)
        ):
            if use.companion == "sampled":
                assert plan.companion_indices is not None
                assert plan.companion_weights is not None
                drawn = plan.companion_indices[i], plan.companion_weights[i]
                beside = take(feed, labels, *drawn)
            batch = take(feed, labels, indices, weights)
            batch, now = devices.split((batch, beside))
            state, info = step(state, numbers, batch, now, jax.random.fold_in(key, i))
            losses.append(info.loss)
        return state, float(jnp.mean(jnp.stack(losses)))

    return epoch


def padded(use: methods.DataUse, plan: Plan, count: int) -> tuple[Plan, Any]:
    """A plan of at least so many steps, and what lies beside all of them.

    Padded to a power of two: epochs of other lengths are the same program.
    """
    beside = None
    if use.companion == "whole":
        beside = plan.companion_indices, plan.companion_weights
        plan = plan._replace(companion_indices=None, companion_weights=None)
    return jax.tree.map(lambda x: _lengthened(x, count), plan), beside


def _lengthened(steps: np.ndarray, count: int) -> np.ndarray:
    """Zeros behind the steps, up to the power of two from ``count``, from 32 on."""
    length = max(32, 1 << (count - 1).bit_length())
    behind = np.zeros((length - len(steps), *steps.shape[1:]), steps.dtype)
    return np.concatenate([steps, behind])


def _batches(order: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights (S, B) of a pass; the last batch is filled up at weight 0."""
    steps = -(-len(order) // batch_size)
    indices, _ = _pad(order, steps * batch_size)
    indices = indices.reshape(steps, batch_size)
    weights = np.ones((steps, batch_size), np.float32)
    real = len(order) - (steps - 1) * batch_size
    weights[-1] = np.where(np.arange(batch_size) < real, batch_size / real, 0)
    return indices, weights


def _pad(indices: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Repeats indices from the start up to a length, and weighs repetitions 0.

    Real examples fill the padding because batch statistics do not know weights.
    """
    padded = np.resize(indices, length).astype(np.int32)
    count = len(indices)
    weights = np.where(np.arange(length) < count, length / count, 0)
    return padded, weights.astype(np.float32)
