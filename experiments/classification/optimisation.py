"""What a classifier's methods share: losses, SGD, and what a search tries of it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import optax

from experiments.engine.programs import cosine_rate
from experiments.engine.recipes import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    SWITCH,
    field,
)
from mujax import methods


class Losses(NamedTuple):
    """What methods are given of a model, in training and in evaluation mode.

    Attributes:
      train: the loss.
      evaluation: the loss.
      train_outputs: logits and labels.
      evaluation_outputs: logits and labels.
      fresh: new parameters and model state of a key.
      num_classes: number of classes.
    """

    train: methods.LossFn
    evaluation: methods.LossFn
    train_outputs: methods.OutputsFn
    evaluation_outputs: methods.OutputsFn
    fresh: Callable[[jax.Array], tuple[Any, Any]]
    num_classes: int


class Trial(Protocol):
    """What a search is asked for: a trial of optuna, which only a search imports."""

    def suggest_float(
        self, name: str, low: float, high: float, *, log: bool = False
    ) -> float:
        """A number between two others."""
        ...

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """A whole number from one to another."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of several values."""
        ...


@dataclasses.dataclass(frozen=True)
class Optimisation:
    """Numbers of SGD with momentum; the defaults are close to the published ones."""

    learning_rate: float = field(0.01, "Peak learning rate.", POSITIVE)
    epochs: int = field(10, "Epochs.", COUNT, value=True)
    batch_size: int = field(64, "Examples a step.", COUNT)
    momentum: float = field(0.9, "Momentum of SGD.", SHARE)
    weight_decay: float = field(5e-4, "Weight decay, coupled as in SGD.", NOT_NEGATIVE)
    cosine: bool = field(
        False, "Let the learning rate fall to zero along a cosine.", SWITCH, value=True
    )

    def sgd(self, epoch_steps: int, stages: int = 1) -> optax.GradientTransformation:
        """SGD with momentum and coupled weight decay, for a run of so many steps."""
        steps = epoch_steps * self.epochs * stages
        rate = cosine_rate(self.learning_rate, steps, self.cosine)
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay),
            optax.sgd(rate, momentum=self.momentum),
        )


def suggest(trial: Trial, epochs: int, low: float, high: float) -> dict[str, Any]:
    """Numbers of SGD to try: learning rates from low to high, up to so many epochs."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", low, high, log=True),
        "epochs": trial.suggest_int("epochs", 1, epochs),
        "cosine": trial.suggest_categorical("cosine", [False, True]),
    }
