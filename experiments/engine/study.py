"""A study: runs of methods over seeds, each kept when it ends and resumed when cut off.

Shared by every kind of experiment. A script says what runs (:class:`Run`) and how a
run is measured; this module trains, keeps, resumes and survives divergence.
"""

import dataclasses
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.engine import loop, processes, programs, together, workers
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
    def loop_seed(self) -> tuple[int, int]:
        """Numbers that tell this run's randomness from every other's."""
        return run_seed(
            self.name, self.seed if self.drawn_from is None else self.drawn_from
        )

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
    runs: Sequence[Run],
    store: Store,
    display: Display,
    curves: Sequence[Curve],
    keep_every: float,
) -> list[Result | loop.DivergedError]:
    """Trains or unlearns, going on from where an earlier process was cut off.

    Several runs of a method go as one batch where its epochs are compiled loops. Those
    whose states have other shapes than the rest, such as SEMU's cores, are a batch of
    their own, and each is charged its share of the time.

    Args:
      runs: what to do, for one method.
      store: where their progress is kept.
      display: told of every epoch.
      curves: measured after every epoch of each, outside its time.
      keep_every: seconds between two checkpoints of a run's progress.

    Returns:
      For each run what it ends with, or why a loss or a parameter is not finite.
    """
    begun = [
        _Begun(run, store, display, curve, keep_every)
        for run, curve in zip(runs, curves, strict=True)
    ]
    batches: dict[Any, list[_Begun]] = {}
    for i, one in enumerate(begun):
        alone = one.run.traced is None or not loop.compiles(one.run.feed)
        kind = i if alone else together.alike(one.state, one.run.feed)
        batches.setdefault(kind, []).append(one)
    for batch in batches.values():
        _run_batch(batch)
    return [one.result for one in begun]


def _run_batch(batch: Sequence["_Begun"]) -> None:
    """Runs those that have begun, alone or together, to their results."""
    run = batch[0].run
    if len(batch) == 1:
        batch[0].run_alone()
        return
    assert run.traced is not None
    lanes = [one.lane for one in batch]
    states = together.run(run.traced.make, lanes, batch_size=run.batch_size)
    for one, state in zip(batch, states, strict=True):
        one.end(state)


class _Begun:
    """A run that has begun, here or in an earlier process; see :func:`execute`.

    Attributes:
      state: where it stands.
      epoch: number of epochs done.
      watch: its time so far.
      result: what it has ended with.
    """

    result: Result | loop.DivergedError

    def __init__(
        self,
        run: Run,
        store: Store,
        display: Display,
        curve: Curve,
        keep_every: float,
    ):
        self.run, self._store, self._display = run, store, display
        self._curve, self._keep_every = curve, keep_every
        self.watch, self.epoch = Stopwatch(), 0
        self._curves: list[Mapping[str, float]] = []
        display.running(f"{run.name}, seed {run.seed}")
        with _STARTING:
            kept = store.load_progress(run.name, run.seed, run.start)
            if kept is None or not _complete(kept[1]):
                self.watch.start()
                self.state = jax.block_until_ready(run.start())
                self.watch.stop()
            else:
                self.state, notes = kept
                self.watch.seconds, self._curves = notes["seconds"], notes["curves"]
                self.epoch = notes["epoch"]
            self.state = run.feed.devices.place(self.state)
        self._each = run.steps // loop.num_epochs(run.method.data_use)
        display.advance(self._each * self.epoch)
        self._kept_at = time.monotonic()

    @property
    def lane(self) -> together.Lane:
        """The run as one of a batch."""
        run = self.run
        assert run.traced is not None
        return together.Lane(
            self.state,
            run.method.data_use,
            run.feed,
            run.loop_seed,
            run.traced.numbers,
            self.epoch,
            self._on_shared_epoch,
        )

    def run_alone(self) -> None:
        """Runs the epochs that are left, and ends."""
        run = self.run
        self.watch.start()
        try:
            state = loop.run(
                run.method,
                self.state,
                run.feed,
                batch_size=run.batch_size,
                seed=run.loop_seed,
                start_epoch=self.epoch,
                on_epoch=self._on_epoch,
                traced=run.traced,
            )
        except loop.DivergedError as error:
            self.end(error)
        else:
            self.watch.stop()
            self.end(state)

    def end(self, state: methods.State | loop.DivergedError) -> None:
        """Ends with a state, whose parameters may not be finite, or with an error."""
        if isinstance(state, loop.DivergedError):
            self.result = state
            return
        params, model_state = self.run.method.finish(state)
        if not self.run.feed.devices.finite(params):
            self.result = loop.DivergedError("A parameter is no longer finite.")
            return
        curves = self._curves
        self.result = Result(
            params,
            model_state,
            self.watch.seconds,
            methods.trainable_fraction(state, params),
            {k: np.array([point[k] for point in curves]) for k in curves[0]},
            str(methods.trained_kernels(state) or ""),
        )

    def _on_epoch(self, done: int, state: methods.State, loss: float) -> None:
        """Measures, keeps and shows where the run stands, outside its time."""
        jax.block_until_ready(state)
        self.watch.stop()
        self._note(done, state, loss)
        self.watch.start()

    def _on_shared_epoch(
        self, done: int, state: methods.State, loss: float, seconds: float
    ) -> None:
        """Does so where the run is charged a share of the time."""
        self.watch.seconds += seconds
        self._note(done, state, loss)

    def _note(self, done: int, state: methods.State, loss: float) -> None:
        run = self.run
        self._curves.append({"loss": loss, **self._curve(*run.method.finish(state))})
        due = time.monotonic() - self._kept_at >= self._keep_every
        if processes.led(lambda: due):
            notes = {"seconds": self.watch.seconds, "curves": self._curves}
            self._store.save_progress(run.name, run.seed, done, state, notes)
            self._kept_at = time.monotonic()
        self._display.advance(self._each)
        workers.check()


def start(run: Run) -> methods.State:
    """The state that a run begins with, made by one thread at a time."""
    with _STARTING:
        return run.start()


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
