"""The combinations of parts: their names, their numbers, and which are no others.

A cell takes a level of each of four factors. Without a corrector the forget set gets
random labels, as in SalUn and SEMU: in full space beside the retain set, in cores
alone. With one, retain steps look at the forgetting gradient, as in UFG and CUFG. So
five cells are methods of papers, and two more SalUn's controls.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from experiments.ablation import composition
from experiments.classification.methods import cufg, random_label, salun, semu, ufg
from experiments.classification.optimisation import Losses, Optimisation
from experiments.engine.recipes import COUNT, NOT_NEGATIVE, SHARE, field, fields, one_of
from experiments.reporting.report import MethodNote
from mujax import methods

FACTORS: Mapping[str, Mapping[str, str]] = {
    "mask": {
        "none": "no mask",
        "salient": "SalUn's mask",
        "random": "random mask",
        "smallest": "smallest-gradient mask",
    },
    "corrector": {
        "none": "random labels",
        "corrector": "UFG's corrector",
        "projection": "projection",
    },
    "space": {"full": "full space", "cores": "SEMU's cores"},
    "order": {
        "none": "no curriculum",
        "easy": "easy to hard",
        "hard": "hard to easy",
        "random": "random order",
    },
}
"""Levels of each factor with their names in the report; the first is the reference."""

PUBLISHED = {
    "none_none_full_none": ("RL", random_label.NOTE.paper),
    "salient_none_full_none": ("SalUn", salun.NOTE.paper),
    "none_none_cores_none": ("SEMU", semu.NOTE.paper),
    "none_corrector_full_none": ("UFG", ufg.NOTE.paper),
    "none_corrector_full_easy": ("CUFG", cufg.NOTE.paper),
}
"""Label and paper of the cells that are methods of papers."""

OWN: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("projection", "full"): {"learning_rate": 0.015, "forget_weight": 0.2},
    ("corrector", "cores"): {"learning_rate": 0.15},
    ("projection", "cores"): {"learning_rate": 0.003},
}
"""Numbers where no method's search has any, by corrector and space: the README's."""


@dataclasses.dataclass(frozen=True)
class Masked(Optimisation):
    """Numbers of a mask."""

    density: float = field(0.5, "Share of the parameters that may move.", SHARE)


@dataclasses.dataclass(frozen=True)
class Projected(Optimisation):
    """Numbers of the projection of conflicting gradients."""

    forget_weight: float = field(
        1.0, "Weight of the forgetting gradient at the start.", NOT_NEGATIVE
    )
    forget_decay: float = field(0.9, "Factor on that weight every epoch.", NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class Staged(Optimisation):
    """Numbers of a curriculum."""

    epochs: int = field(10, "Epochs of each curriculum stage.", COUNT, value=True)
    stages: int = field(3, "Number of curriculum stages.", COUNT)


@dataclasses.dataclass(frozen=True)
class Graded(Staged):
    """Numbers of a curriculum by difficulty."""

    difficulty: cufg.Difficulty = field(  # noqa: RUF009
        "confidence", "Stages by this score.", one_of(*get_args(cufg.Difficulty))
    )


@dataclasses.dataclass(frozen=True)
class Cell:
    """A combination: a level of each factor. A method of the study."""

    mask: str
    corrector: str
    space: str
    order: str

    @property
    def levels(self) -> tuple[str, ...]:
        """The level of each factor, in their order."""
        return dataclasses.astuple(self)

    @property
    def name(self) -> str:
        """Name on the command line and in the rows."""
        return "_".join(self.levels)

    @functools.cached_property
    def NOTE(self) -> MethodNote:  # noqa: N802
        """Label, paper and a line for the report."""
        words = [
            FACTORS[f][level] for f, level in zip(FACTORS, self.levels, strict=True)
        ]
        label, paper = PUBLISHED.get(self.name, ("", ""))
        return MethodNote(
            label or self._label,
            paper,
            ", ".join(words)[0].upper() + ", ".join(words)[1:] + ".",
        )

    @property
    def _label(self) -> str:
        """The levels that are not the reference, such as salient + cores + easy."""
        first = [next(iter(levels)) for levels in FACTORS.values()]
        named = zip(FACTORS, self.levels, first, strict=True)
        words = [
            f"{level} {factor}" if factor in ("mask", "order") else level
            for factor, level, reference in named
            if level != reference
        ]
        return " + ".join(words)

    @functools.cached_property
    def Recipe(self) -> type[Any]:  # noqa: N802
        """Its numbers: those of its parts and no others."""
        labels = semu.Recipe if self.space == "cores" else random_label.Recipe
        parts: list[type[Any]] = {
            "none": [labels],
            "corrector": [ufg.Recipe],
            "projection": [Projected],
        }[self.corrector]
        if self.space == "cores" and labels not in parts:
            parts = [*parts, semu.Recipe]
        if self.mask != "none":
            parts = [Masked, *parts]
        if self.order != "none":
            parts = [Staged if self.order == "random" else Graded, *parts]
        made = dataclasses.make_dataclass(
            "Recipe",
            [],
            bases=tuple(parts),
            frozen=True,
            namespace={"order": self.order},
        )
        made.__doc__ = "Numbers of a combination."
        return made

    def build(self, recipe: Any, losses: Losses, steps: int) -> methods.Method:
        """The method; ``steps`` are those of an epoch."""
        stages = getattr(recipe, "stages", 1)
        optimizer = recipe.sgd(steps, stages)
        if self.corrector == "none":
            method = composition.relabelled(self.space, recipe, losses, optimizer)
        else:
            method = composition.bent(
                self.corrector, self.space, recipe, losses, optimizer, steps
            )
        method = composition.masked(self.mask, method, recipe, losses)
        return methods.with_data(method, stages=stages)


CELLS: Mapping[str, Cell] = {
    cell.name: cell
    for levels in itertools.product(*FACTORS.values())
    for cell in [Cell(*levels)]
}
"""Every combination by its name."""


def numbers(searched: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of every cell, shared by all that differ in mask and order alone.

    Relabelling in full space has SalUn's numbers, relabelling in cores SEMU's, retain
    steps CUFG's: those that a search found for this data, or their defaults. Energies
    are SEMU's and densities SalUn's throughout. A run has as many epochs with a
    curriculum as without: the numbers' own, up to the next multiple of the stages.

    Args:
      searched: recipes of SalUn, SEMU and CUFG.
    """
    values = {
        name: dataclasses.asdict(searched[name]) for name in ("salun", "semu", "cufg")
    }
    stages = values["cufg"]["stages"]
    values["cufg"]["epochs"] *= stages
    found = {}
    for name, cell in CELLS.items():
        own = "cufg"
        if cell.corrector == "none":
            own = "semu" if cell.space == "cores" else "salun"
        merged = values["cufg"] | values["salun"] | values["semu"] | values[own]
        each = -(-merged["epochs"] // stages)
        merged["epochs"] = each if cell.order != "none" else each * stages
        merged |= OWN.get((cell.corrector, cell.space), {})
        known = fields(cell.Recipe)
        found[name] = cell.Recipe(**{k: v for k, v in merged.items() if k in known})
    return found


def left_out(
    cells: Sequence[str], recipes: Mapping[str, Any], forget: int
) -> dict[str, str]:
    """Why some of the cells cannot be, or are others, by name.

    Args:
      cells: names.
      recipes: of all cells.
      forget: number of examples to forget.
    """
    reasons = {}
    for name in cells:
        recipe, cell = recipes[name], CELLS[name]
        stages = getattr(recipe, "stages", None)
        if stages is not None and stages > forget:
            reasons[name] = f"has {stages} stages for {forget} examples to forget"
        elif stages == 1:
            plain = dataclasses.replace(cell, order="none").name
            reasons[name] = f"has one stage, which makes it {plain}"
        elif getattr(recipe, "density", None) == 1:
            plain = dataclasses.replace(cell, mask="none").name
            reasons[name] = (
                f"has a mask that leaves out nothing, which makes it {plain}"
            )
        elif getattr(recipe, "density", None) == 0:
            reasons[name] = "has a mask that lets nothing move"
    return reasons
