"""A study: runs of methods over seeds, each kept when it ends and resumed when cut off.

Shared by every kind of experiment. A script says what runs (:class:`Run`) and how a
run is measured; this module trains, keeps, resumes and survives divergence.
"""

import dataclasses
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from experiments.engine import loop, programs, workers
from experiments.engine.progress import Display
from experiments.engine.stopwatch import Stopwatch
from experiments.engine.store import Store
from mujax import methods

Curve = Callable[[Any, Any], Mapping[str, float]]
"""``(params, model_state) -> numbers`` to draw over epochs."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One training or unlearning run.

    Attributes:
      name: of the method, as in the rows.
      seed: of the study.
      traced: the method as a function of its numbers.
      drawn_from: seed of its randomness, where one training serves several seeds.
      method: what to run.
      start: makes the state to begin with; its time counts as the method's.
      feed: the examples.
      batch_size: examples a step.
    """

    name: str
    seed: int
    method: methods.Method
    start: Callable[[], methods.State]
    feed: loop.Feed
    batch_size: int
    traced: programs.Traced | None = None
    drawn_from: int | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        each = loop.steps_per_epoch(self.method.data_use, self.feed, self.batch_size)
        return each * loop.num_epochs(self.method.data_use)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run ends with.

    Attributes:
      params: the parameters.
      model_state: the model's other state.
      seconds: run time without compilation and without measuring.
      trainable_fraction: share of the parameters that could move.
      curves: numbers by epoch, each (epochs,).
      kernels: a table of the kernels whose cores were trained, or nothing.
    """

    params: Any
    model_state: Any
    seconds: float = 0.0
    trainable_fraction: float = 1.0
    curves: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    kernels: str = ""


def random_key(name: str, seed: int) -> jax.Array:
    """A key of a run's own."""
    words = np.random.SeedSequence(run_seed(name, seed)).generate_state(1)
    return jax.random.key(words[0])


def run_seed(name: str, seed: int) -> tuple[int, int]:
    """Numbers that tell this run's randomness from every other's."""
    return seed, zlib.crc32(name.encode())


def execute(
    run: Run, store: Store, display: Display, curve: Curve, keep_every: float
) -> Result:
    """Trains or unlearns, going on from where an earlier process was cut off.

    Args:
      run: what to do.
      store: where its progress is kept.
      display: told of every epoch.
      curve: measured after every epoch, outside the run's time.
      keep_every: seconds between two checkpoints of the run's progress.

    Raises:
      loop.DivergedError: the loss or a parameter is no longer finite.
    """
    display.running(f"{run.name}, seed {run.seed}")
    watch, curves, epoch = Stopwatch(), [], 0
    with _STARTING:
        kept = store.load_progress(run.name, run.seed, run.start)
        if kept is None or not _complete(kept[1]):
            watch.start()
            state = jax.block_until_ready(run.start())
            watch.stop()
        else:
            state, notes = kept
            watch.seconds, curves = notes["seconds"], notes["curves"]
            epoch = notes["epoch"]
    each = run.steps // loop.num_epochs(run.method.data_use)
    display.advance(each * epoch)
    kept_at = time.monotonic()

    def on_epoch(done: int, state: methods.State, loss: float) -> None:
        nonlocal kept_at
        jax.block_until_ready(state)
        watch.stop()
        curves.append({"loss": loss, **curve(*run.method.finish(state))})
        if time.monotonic() - kept_at >= keep_every:
            notes = {"seconds": watch.seconds, "curves": curves}
            store.save_progress(run.name, run.seed, done, state, notes)
            kept_at = time.monotonic()
        display.advance(each)
        workers.check()
        watch.start()

    watch.start()
    state = loop.run(
        run.method,
        state,
        run.feed,
        batch_size=run.batch_size,
        seed=run_seed(run.name, run.seed if run.drawn_from is None else run.drawn_from),
        start_epoch=epoch,
        on_epoch=on_epoch,
        traced=run.traced,
    )
    seconds = watch.stop()
    params, model_state = run.method.finish(state)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise loop.DivergedError("A parameter is no longer finite.")
    return Result(
        params,
        model_state,
        seconds,
        methods.trainable_fraction(state, params),
        {k: np.array([point[k] for point in curves]) for k in curves[0]},
        str(methods.trained_kernels(state) or ""),
    )


_STARTING = threading.Lock()
"""Held by a run that starts: decompositions of two at once may wait for each other."""


def _complete(notes: Mapping[str, Any]) -> bool:
    """Whether the notes of an unfinished run tell all that it needs to go on."""
    seconds, curves = notes.get("seconds"), notes.get("curves")
    return (
        isinstance(seconds, float)
        and isinstance(curves, list)
        and len(curves) == notes["epoch"]
    )
