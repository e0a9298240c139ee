"""How a diffusion model forgets: one file a method, with all that a run needs of it.

Each has its ``Recipe`` (the numbers, which are its flags), ``build`` (makes the method
of :mod:`mujax.methods` with them) and ``NOTE`` (for the report). Numbers were chosen by
hand on digits, class 0, with a training and seeds that no report uses. A new method is
a new file, and a line in the list below.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from experiments.diffusion.generation import MakeLosses
from experiments.diffusion.methods import (
    esd,
    finetune,
    gradient_ascent,
    random_label,
    random_mask,
    salun,
    semu,
    semu_anchored,
    semu_retain,
    ufg,
)
from experiments.engine.recipes import MethodFile
from mujax import methods


class Method(MethodFile, Protocol):
    """What a file of this folder has."""

    def build(self, recipe: Any, losses: MakeLosses, steps: int) -> methods.Method:
        """The method; ``steps`` are those of an epoch."""
        ...


METHODS: Mapping[str, Method] = {
    "gradient_ascent": gradient_ascent,
    "finetune": finetune,
    "random_label": random_label,
    "salun": salun,
    "random_mask": random_mask,
    "semu": semu,
    "semu_anchored": semu_anchored,
    "semu_retain": semu_retain,
    "esd": esd,
    "ufg": ufg,
}
"""Every method by its name on the command line, in the order of the table."""
