"""What one kind of experiment brings to a study, and what a study depends on."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

import jax
import numpy as np

from experiments.engine import loop
from experiments.engine.store import Store
from experiments.models.foreign import numbers
from experiments.reporting import report, summary
from experiments.reporting.summary import Column
from mujax import methods

ORIGINAL, REFERENCE = "original", "retrain"
BASELINES = (REFERENCE, "retrain_again", ORIGINAL)
"""Trained anew; the second Retrain gives the noise floor."""


class Measured(NamedTuple):
    """Numbers of a model for its row, and the arrays behind them for the report."""

    row: dict[str, float]
    record: dict[str, np.ndarray]


class Page(NamedTuple):
    """What the report says and shows besides the table; see :func:`report.write`."""

    title: str
    description: str
    figures: Sequence[report.Figure]
    loading: str
    texts: Sequence[report.Text] = ()


class Task(Protocol):
    """What one kind of experiment brings.

    Attributes:
      identity: plain values that tell this data and model from any other.
      feed: the examples, and which of them to forget and to retain.
      columns: what its rows hold.
      gap: key of the column that holds the distance to Retrain.
      keeps_models: keep every model, not the originals alone.
      notes: label, paper and a line on each method.
    """

    @property
    def identity(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def feed(self) -> loop.Feed: ...  # noqa: D102
    @property
    def columns(self) -> Sequence[Column]: ...  # noqa: D102
    @property
    def gap(self) -> str: ...  # noqa: D102
    @property
    def keeps_models(self) -> bool: ...  # noqa: D102
    @property
    def notes(self) -> Mapping[str, report.MethodNote]: ...  # noqa: D102

    def build(self, name: str, recipe: Any, steps: int) -> methods.Method:
        """A method, or the training of a baseline; ``steps`` are those of an epoch."""
        ...

    def for_seed(self, seed: int) -> Self:
        """The task of one seed, which may have a forget set of its own."""
        ...

    def init(self, key: Any) -> tuple[Any, Any]:
        """New parameters and model state."""
        ...

    def forget_batches(self, batch_size: int, seed: int) -> list[Any]:
        """The forget set with true labels, for a method's ``init``."""
        ...

    def stages(self, original: Any, recipe: Any, seed: int) -> tuple[np.ndarray, ...]:
        """The forget set in parts, from easy to hard for the original model."""
        ...

    def curve(self, params: Any, model_state: Any) -> Mapping[str, float]:
        """Quick numbers after every epoch."""
        ...

    def measure(self, params: Any, model_state: Any, seed: int) -> Measured:
        """All numbers of a finished model.

        Raises:
          loop.DivergedError: they are not finite.
        """
        ...

    def compare(self, ours: Measured, reference: Measured) -> Mapping[str, float]:
        """Distances to Retrain."""
        ...

    def page(self, store: Store, estimates: summary.Summary) -> Page:
        """What the report says and shows of the finished runs."""
        ...


def inputs(task: Task, given: Any = None) -> dict[str, Any]:
    """What a study's rows depend on besides its flags: data, sets, a given model."""
    parts = {
        "forget": np.concatenate(task.feed.forget),
        "retain": task.feed.retain,
        "original": jax.tree.leaves(given),
    }
    return {**task.identity, **{name: digest(part) for name, part in parts.items()}}


def digest(arrays: Any) -> str:
    """Tells arrays from others, in 16 digits; empty for none."""
    digest = hashlib.sha256()
    for array in arrays if isinstance(arrays, list) else [arrays]:
        digest.update(np.ascontiguousarray(numbers(array)).tobytes())
    return digest.hexdigest()[:16]
