"""Several models as one batch: seeds, trials or shadow models in one program.

Each is a lane of a program with a models axis, which lies over the devices. Lanes may
differ in everything but the program and the shapes: in their seeds, sets, numbers and
lengths. A lane that diverges or ends waits for the others, and takes no step.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.engine import loop, programs
from experiments.engine.stopwatch import Stopwatch
from experiments.engine.workers import SMALL
from mujax import methods


class Lane(NamedTuple):
    """One of the runs; see :func:`experiments.engine.loop.run` for its parts.

    ``on_epoch`` is also told the run's share of the seconds that the epoch took.
    """

    state: methods.State
    use: methods.DataUse
    feed: loop.Feed
    seed: tuple[int, ...]
    numbers: Mapping[str, Any]
    start_epoch: int = 0
    on_epoch: Callable[[int, methods.State, float, float], None] = lambda *_: None


def default(num_params: int) -> int:
    """Models in a batch: 16 small ones on an accelerator, else one.

    A batch fills an accelerator that one small model leaves idle. On CPU it brings
    nothing: threads do, see :mod:`experiments.engine.workers`.
    """
    return 1 if jax.default_backend() == "cpu" or num_params > SMALL else 16


def alike(state: methods.State, feed: loop.Feed) -> Any:
    """A value that is equal for runs of one program that can be lanes of a batch."""
    leaves, structure = jax.tree.flatten(state)
    shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    return structure, shapes, max(map(len, feed.forget))


def run(
    make: Callable[[Mapping[str, Any]], methods.Method],
    lanes: Sequence[Lane],
    *,
    batch_size: int,
) -> list[methods.State | loop.DivergedError]:
    """Runs the epochs of all lanes, one epoch of each at a time.

    Args:
      make: the method as a function of its numbers.
      lanes: the runs, :func:`alike`; their examples are the same arrays, on the device.
      batch_size: examples a step.

    Returns:
      The last state of each lane, or its error.
    """
    count, devices = len(lanes), lanes[0].feed.devices
    # Every device has as many; those that fill up take no step.
    lanes = [*lanes, *[lanes[0]] * (-count % len(_mesh(count).devices))]
    states = _stacked([lane.state for lane in lanes])
    numbers = _stacked([dict(lane.numbers) for lane in lanes])
    errors: dict[int, loop.DivergedError] = {}
    epochs = [loop.num_epochs(lane.use) for lane in lanes]
    left = max(e - lane.start_epoch for e, lane in zip(epochs, lanes, strict=True))
    for passed in range(left):
        now = [lane.start_epoch + passed for lane in lanes]
        runs = [
            i < count and now[i] < epochs[i] and i not in errors
            for i in range(len(lanes))
        ]
        # One that has ended draws something of the right shape, and takes no step.
        at = [min(now[i], epochs[i] - 1) for i in range(len(lanes))]
        watch = Stopwatch()
        watch.start()
        states, losses = _epoch(make, batch_size, lanes, states, numbers, at, runs)
        seconds = watch.stop() / sum(runs)
        for i in np.flatnonzero(runs).tolist():
            try:
                loop.check_loss(losses[i], now[i])
            except loop.DivergedError as error:
                errors[i] = error
            else:
                model = devices.place(_lane(states, i))
                lanes[i].on_epoch(now[i] + 1, model, losses[i], seconds)
    ends = [errors.get(i) or _lane(states, i) for i in range(count)]
    return [e if i in errors else devices.place(e) for i, e in enumerate(ends)]


def _epoch(make, batch_size, lanes, states, numbers, epochs, runs):
    """The states after an epoch of those that run, and the mean losses."""
    drawn = [
        loop.draw_epoch(lane.use, lane.feed, batch_size, lane.seed, epoch)
        for lane, epoch in zip(lanes, epochs, strict=True)
    ]
    counts = np.array([len(plan.indices) for plan, _, _ in drawn], np.int32)
    padded = [
        loop.padded(lane.use, plan, int(max(counts)))
        for lane, (plan, _, _) in zip(lanes, drawn, strict=True)
    ]
    counts = np.where(runs, counts, 0).astype(np.int32)
    each = [
        (jnp.asarray(labels), *plan, key, count)
        for (_, labels, key), plan, count in zip(drawn, padded, counts, strict=True)
    ]
    examples = _everywhere(dict(lanes[0].feed.examples), len(lanes))
    states, totals = _batched(make)(states, numbers, examples, *_stacked(each))
    return states, np.asarray(totals) / np.maximum(counts, 1)


@functools.lru_cache(maxsize=128)
def _batched(make: Callable[[Any], methods.Method]) -> Callable:
    """An epoch with a models axis."""
    over = 0, 0, None, 0, 0, 0, 0, 0
    return programs.compiled(jax.vmap(loop.epoch_loop(make), in_axes=over), donate=0)


def _lane(states: Any, index: int) -> Any:
    """One model of a batch, where a single one would lie."""
    device = jax.local_devices()[0]
    return jax.tree.map(lambda x: jax.device_put(x[index], device), states)


def _stacked(trees: Sequence[Any]) -> Any:
    """Trees as one with a models axis, which lies over the devices."""
    sharding = NamedSharding(_mesh(len(trees)), PartitionSpec("models"))

    def stack(*leaves):
        return jax.device_put(jnp.stack([jnp.asarray(x) for x in leaves]), sharding)

    return jax.tree.map(stack, *trees)


def _everywhere(tree: Any, count: int) -> Any:
    """Arrays that all models read, on every device; nothing moves that lies there."""
    return jax.device_put(tree, NamedSharding(_mesh(count), PartitionSpec()))


@functools.cache
def _mesh(count: int) -> jax.sharding.Mesh:
    """The devices for so many models, one each at least."""
    devices = jax.local_devices()[:count]
    axes = (AxisType.Auto,)
    return jax.make_mesh((len(devices),), ("models",), axes, devices=devices)
