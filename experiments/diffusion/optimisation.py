"""What a diffusion model's methods share: Adam, and labels that take the place."""

import dataclasses

import optax

from experiments.engine.programs import cosine_rate
from experiments.engine.recipes import COUNT, POSITIVE, SWITCH, field
from mujax import labels, methods


def rate(default: float) -> float:
    """A field for the learning rate."""
    return field(default, "Peak learning rate of Adam.", POSITIVE)


def epochs(default: int) -> int:
    """A field for the number of epochs."""
    return field(default, "Epochs.", COUNT, value=True)


def cosine(default: bool) -> bool:
    """A field for the learning rate's schedule."""
    text = "Let the learning rate fall to zero along a cosine."
    return field(default, text, SWITCH, value=True)


def next_class(default: bool) -> bool:
    """A field for the label that takes the place of the forgotten one."""
    return field(
        default, "Take the next class (the released rule), not any other.", SWITCH
    )


@dataclasses.dataclass(frozen=True)
class Optimisation:
    """Numbers of Adam with clipped gradients."""

    learning_rate: float = rate(1e-3)
    epochs: int = epochs(5)
    batch_size: int = field(64, "Examples a step.", COUNT)
    cosine: bool = cosine(False)

    def adam(self, epoch_steps: int) -> optax.GradientTransformation:
        """Adam on gradients of norm 1 at most."""
        rate = cosine_rate(self.learning_rate, epoch_steps * self.epochs, self.cosine)
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


@dataclasses.dataclass(frozen=True)
class Relabelling(Optimisation):
    """Numbers of a method that gives the forget set other labels."""

    next_class: bool = next_class(True)

    def relabel(self, method: methods.Method) -> methods.Method:
        """The method with its labels drawn as these numbers say."""
        if not self.next_class:
            return method
        return methods.with_data(method, relabel=_next_class)


def _next_class(key, own, num_classes):
    del key
    return labels.next_label(own, num_classes)
