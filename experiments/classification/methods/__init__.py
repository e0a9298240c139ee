"""How a classifier forgets: one file a method, with all that an experiment needs of it.

Each has its ``Recipe`` (the numbers, which are its flags), ``build`` (makes the method
of :mod:`mujax.methods` with them), ``suggest`` (what a search tries) and ``NOTE`` (for
the report). A new method is a new file, and a line in the list below.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from experiments.classification.methods import (
    amun,
    bad_teacher,
    boundary_shrink,
    ct,
    cufg,
    delete,
    finetune,
    fisher,
    gdr_gma,
    gradient_ascent,
    influence,
    l1_sparse,
    msg,
    neggrad_plus,
    random_label,
    random_mask,
    salun,
    salun_soft,
    scrub,
    semu,
    semu_retain,
    sfron,
    smallest_mask,
    ssd,
    ufg,
)
from experiments.classification.optimisation import Losses, Trial
from experiments.engine.recipes import MethodFile
from mujax import methods


class Method(MethodFile, Protocol):
    """What a file of this folder has."""

    def build(self, recipe: Any, losses: Losses, steps: int) -> methods.Method:
        """The method; ``steps`` are those of an epoch."""
        ...

    def suggest(self, trial: Trial, epochs: int) -> dict[str, Any]:
        """Numbers to try, with runs of at most so many epochs."""
        ...


METHODS: Mapping[str, Method] = {
    "finetune": finetune,
    "gradient_ascent": gradient_ascent,
    "random_label": random_label,
    "neggrad_plus": neggrad_plus,
    "salun": salun,
    "salun_soft": salun_soft,
    "semu": semu,
    "semu_retain": semu_retain,
    "ufg": ufg,
    "cufg": cufg,
    "l1_sparse": l1_sparse,
    "scrub": scrub,
    "bad_teacher": bad_teacher,
    "delete": delete,
    "ssd": ssd,
    "fisher": fisher,
    "msg": msg,
    "ct": ct,
    "sfron": sfron,
    "gdr_gma": gdr_gma,
    "boundary_shrink": boundary_shrink,
    "amun": amun,
    "influence": influence,
    "random_mask": random_mask,
    "smallest_mask": smallest_mask,
}
"""Every method by its name on the command line, in the order of the table."""

USUAL = tuple(METHODS)[:10]
"""Those of a job that is not told which: the three papers' and simple baselines."""
