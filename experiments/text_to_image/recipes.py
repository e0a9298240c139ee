"""How a text-to-image model is trained and forgets, with which numbers.

The methods are in the folder ``methods``. Their numbers are those of the digits, for
about as many steps; no search has looked for better ones.
"""

from collections.abc import Mapping
from typing import Any

from experiments.classification import recipes
from experiments.diffusion.generation import MakeLosses
from experiments.diffusion.optimisation import Optimisation
from experiments.reporting.report import MethodNote
from experiments.text_to_image.methods import METHODS
from mujax import methods

TRAINING = Optimisation(learning_rate=3e-3, epochs=120, batch_size=32, cosine=True)
"""Recipe of the original model and of Retrain."""

NUMBERS: Mapping[str, Mapping[str, Any]] = {
    "gradient_ascent": dict(learning_rate=2e-4, epochs=8),
    "finetune": dict(learning_rate=1e-3, epochs=6),
    "random_label": dict(learning_rate=1e-3, epochs=6),
    "salun": dict(learning_rate=1e-3, epochs=6),
    "random_mask": dict(learning_rate=1e-3, epochs=6),
    "smallest_mask": dict(learning_rate=1e-3, epochs=6),
    "semu": dict(learning_rate=5e-4, epochs=30),
    "semu_anchored": dict(learning_rate=2e-3, epochs=60),
    "semu_retain": dict(learning_rate=3e-3, epochs=6),
    "esd": dict(learning_rate=2e-4, epochs=40),
    "ufg": dict(learning_rate=1e-3, epochs=6),
}
"""What differs from the methods' own defaults; all have steps of 16 examples."""

NOTES: Mapping[str, MethodNote] = recipes.BASELINE_NOTES | {
    name: method.NOTE for name, method in METHODS.items()
}


def own() -> dict[str, Any]:
    """A recipe for every method."""
    return {
        name: method.Recipe(**{"batch_size": 16, **NUMBERS.get(name, {})})
        for name, method in METHODS.items()
    }


def retrain(recipe: Optimisation, losses: MakeLosses, steps: int) -> methods.Method:
    """Training anew, of Retrain and of the original model."""
    return methods.retrain(losses().noise, recipe.adam(steps))
