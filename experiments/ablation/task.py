"""The ablation as a task: classification with combined parts, and what came out."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import data
from experiments.ablation import effects, pictures
from experiments.ablation.cells import CELLS, FACTORS, PUBLISHED
from experiments.classification import recipes
from experiments.classification.config import Config
from experiments.classification.methods import cufg
from experiments.classification.task import COLUMNS, Classification, describe
from experiments.engine.store import Store
from experiments.engine.task import Page
from experiments.reporting import report, summary
from mujax import methods

PAPERS = "salient_none_full_none", "none_none_cores_none", "none_corrector_full_easy"
"""The cells that are SalUn, SEMU and CUFG."""
LOADING = """\
import json
rows = json.load(open("{path}"))["rows"]  # a row for each cell and seed
print(sorted((row["gap"], row["method"]) for row in rows if row["status"] == "ok")[:9])"""


class Ablation(Classification):
    """Unlearning from a classifier by combinations of parts: a ``task.Task``.

    Args:
      config: names the model, and says how much memory the images may take.
      dataset: the images.
      split: which of them are forgotten, retained and tested on.
      notes_on_request: what the report says of this request.
      left_out: why some cells are not run, by name.
    """

    columns, keeps_models = COLUMNS, False
    notes = recipes.BASELINE_NOTES | {name: cell.NOTE for name, cell in CELLS.items()}

    def __init__(
        self,
        config: Config,
        dataset: data.Dataset,
        split: data.Split,
        notes_on_request: Sequence[str],
        left_out: Mapping[str, str],
    ):
        super().__init__(config, dataset, split, notes_on_request)
        self._left_out = left_out

    def build(self, name: str, recipe: Any, steps: int) -> methods.Method:
        """A combination or the training of a baseline."""
        if name in CELLS:
            return CELLS[name].build(recipe, self.losses, steps)
        return super().build(name, recipe, steps)

    def stages(self, original: Any, recipe: Any, seed: int) -> tuple[np.ndarray, ...]:
        """The forget set in parts, in the order of the cell."""
        by = "random" if recipe.order == "random" else recipe.difficulty
        graded = cufg.Recipe(stages=recipe.stages, difficulty=by)
        parts = super().stages(original, graded, seed)
        return parts[::-1] if recipe.order == "hard" else parts

    def curve(self, params: Any, model_state: Any) -> Mapping[str, float]:
        """Nothing but the loss: a thousand runs are too many to look at."""
        return {}

    def page(self, store: Store, estimates: summary.Summary) -> Page:
        """Effects, interactions and the best cells."""
        found = gather(store.rows)
        texts = [
            report.Text("Main effects and interactions", _table(found)),
            report.Text("Combinations that were not run", _listed(self._left_out)),
        ]
        shown = [
            report.Figure(
                "cells",
                "Gap to Retrain of every combination",
                "Mean over seeds, in points; framed are the methods of papers.",
                lambda: pictures.cells(found.numbers, found.cells),
            )
        ]
        if found.effects:
            shown += [
                report.Figure(
                    "effects",
                    "Main effects",
                    "What a level changes in the gap, against the first level of its "
                    "factor and averaged over all others. Bars hold for all effects "
                    "and interactions at once; left of zero is nearer to Retrain.",
                    lambda: pictures.main_effects(found.effects),
                ),
                report.Figure(
                    "interactions",
                    "Two-way interactions",
                    "What two levels together change beyond the sum of both. Bars as "
                    "above; left of zero they help each other.",
                    lambda: pictures.interactions(found.effects),
                ),
            ]
        return Page(
            f"Ablation of {self.config.task.removeprefix('ablation-')}",
            " ".join([describe(self.config), *self._notes, *verdict(found)]),
            shown,
            LOADING.format(path=(store.folder / "results.json").absolute()),
            texts,
        )


class Found(NamedTuple):
    """What the rows of a study say.

    Attributes:
      cells: their names, those that have a row.
      numbers: gaps (S, C) of seeds that have all; NaN where a run diverged.
      effects: main effects and then interactions; none where too little has run.
      why: why there are none, or empty.
      same: groups of cells whose numbers agree on all seeds.
    """

    cells: list[str]
    numbers: np.ndarray
    effects: list[effects.Effect]
    why: str
    same: list[list[str]]


def gather(rows: Sequence[Mapping[str, Any]]) -> Found:
    """Gaps of the seeds for which every cell has ended, and their effects."""
    ended = {(row["method"], row["seed"]): row for row in rows}
    cells = [name for name in CELLS if any(name == method for method, _ in ended)]
    seeds = [
        seed
        for seed in sorted({seed for _, seed in ended})
        if all((name, seed) in ended for name in cells)
    ]
    runs = [[ended[name, seed] for name in cells] for seed in seeds]
    numbers = np.array(
        [[summary.number(row.get("gap")) or _gap(row) for row in seed] for seed in runs]
    ).reshape(len(seeds), len(cells))
    why, found = "", []
    try:
        found = effects.estimate(
            numbers, [CELLS[name].levels for name in cells], _levels(cells)
        )
    except ValueError as error:
        why = str(error)
    groups: dict[Any, list[str]] = {}
    for name, column in zip(cells, np.transpose(runs) if runs else [], strict=False):
        told = tuple(
            tuple(row.get(key) for key in ("ua", "ra", "ta", "mia")) for row in column
        )
        groups.setdefault(told, []).append(name)
    return Found(cells, numbers, found, why, [g for g in groups.values() if len(g) > 1])


def verdict(found: Found) -> list[str]:
    """What the numbers say of the combinations, in sentences."""
    sentences = []
    label = {name: cell.NOTE.label for name, cell in CELLS.items()}
    count = len(found.numbers)
    sentences.append(
        f"{len(found.cells)} of {len(CELLS)} combinations of parts have run on all of "
        f"{count} seeds."
    )
    if not count:
        return sentences
    means = np.array([_mean(column) for column in found.numbers.T])
    if np.isfinite(means).any():
        best = int(np.nanargmin(means))
        sentences.append(
            f"The smallest mean gap is {means[best]:.2f}, of {label[found.cells[best]]}."
        )
    theirs = [i for i, name in enumerate(found.cells) if name in PAPERS]
    ours = [i for i, name in enumerate(found.cells) if name not in PUBLISHED]
    if len(theirs) < len(PAPERS):
        sentences.append(
            "SalUn, SEMU and CUFG have not all run: nothing is said of whether a "
            "combination is better."
        )
    else:
        listed = ", ".join(f"{label[found.cells[i]]} ({means[i]:.2f})" for i in theirs)
        won = effects.beats_all(found.numbers, ours, theirs)
        if won:
            names = ", ".join(
                f"{label[found.cells[b.cell]]} ({means[b.cell]:.2f}, by "
                f"{-b.mean:.2f} ± {b.half_width:.2f})"
                for b in won
            )
            sentences.append(
                f"Better than {listed} beyond the interval, corrected for {len(ours)} "
                f"combinations: {names}."
            )
        else:
            sentences.append(
                f"No combination is better than all of {listed} beyond its interval, "
                f"corrected for {len(ours)} combinations."
            )
    if found.why:
        sentences.append(f"There are no effects yet: {found.why}")
    if lost := [found.cells[i] for i in np.flatnonzero(np.isnan(found.numbers).any(0))]:
        sentences.append(
            f"Diverged on some seeds, and left out of the effects there: {', '.join(lost)}."
        )
    for group in found.same:
        sentences.append(f"The same numbers on all seeds: {', '.join(group)}.")
    return sentences


def _levels(cells: Sequence[str]) -> dict[str, list[str]]:
    """Levels of each factor that cells have, where there are several."""
    present = [{CELLS[name].levels[i] for name in cells} for i in range(len(FACTORS))]
    return {
        factor: [level for level in levels if level in there]
        for (factor, levels), there in zip(FACTORS.items(), present, strict=True)
    }


def _table(found: Found) -> str:
    """Effects as lines of text."""
    if not found.effects:
        return found.why
    rows = []
    for effect in found.effects:
        words = " × ".join(
            f"{factor} {level}" for factor, level in effect.levels.items()
        )
        mark = "*" if effect.clear else " "
        rows.append(
            f"{words:42} {effect.mean:+7.2f} ± {effect.half_width:5.2f} {mark}  "
            f"p = {effect.p_value:.3g}"
        )
    return "\n".join(
        [
            "Change of the gap in points against the first level of the factor, and of "
            "the change for pairs;",
            f"intervals hold for all {len(rows)} at once (Bonferroni), p is Holm's, "
            "* leaves out zero.",
            "",
            *rows,
        ]
    )


def _listed(left_out: Mapping[str, str]) -> str:
    """Cells and reasons, a line each."""
    return "\n".join(f"{name}: {why}." for name, why in left_out.items()) or "None."


def _gap(row: Mapping[str, Any]) -> float:
    """A gap that is zero, or NaN where there is none."""
    return 0.0 if row.get("gap") == 0 else np.nan


def _mean(column: np.ndarray) -> float:
    """Mean over seeds; NaN where one has none."""
    return float(column.mean())
