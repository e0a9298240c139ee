"""How a text-to-image model forgets: as a diffusion model does, one file a method.

To the methods of ``experiments.diffusion`` a prompt is a number, as a class is. What is
only of use here is a file of this folder, in the same form, and a line in the list.
"""

from collections.abc import Mapping

from experiments.diffusion.methods import METHODS as SHARED
from experiments.diffusion.methods import Method
from experiments.text_to_image.methods import smallest_mask, uce

METHODS: Mapping[str, Method] = {
    "gradient_ascent": SHARED["gradient_ascent"],
    "finetune": SHARED["finetune"],
    "random_label": SHARED["random_label"],
    "salun": SHARED["salun"],
    "random_mask": SHARED["random_mask"],
    "smallest_mask": smallest_mask,
    "semu": SHARED["semu"],
    "semu_anchored": SHARED["semu_anchored"],
    "semu_retain": SHARED["semu_retain"],
    "esd": SHARED["esd"],
    "ufg": SHARED["ufg"],
    "uce": uce,
}
"""Every method by its name on the command line, in the order of the table."""
