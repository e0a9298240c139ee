"""The ablation as a task: classification with combined parts, and what came out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import data
from experiments.ablation import findings, pictures
from experiments.ablation.cells import CELLS
from experiments.classification import recipes
from experiments.classification.config import Config
from experiments.classification.methods import cufg
from experiments.classification.task import COLUMNS, Classification, describe
from experiments.engine.store import Store
from experiments.engine.task import Page
from experiments.reporting import report, summary
from mujax import methods

LOADING = """\
import json
rows = json.load(open("{path}"))["rows"]  # a row for each cell and seed
ended = [(row["gap"], row["method"]) for row in rows if row["status"] == "ok"]
print(sorted(ended)[:9])"""


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
        found = findings.gather(store.rows)
        texts = [
            report.Text("Main effects and interactions", findings.table(found)),
            report.Text("Combinations that were not run", _listed(self._left_out)),
        ]
        shown = [
            report.Figure(
                "cells",
                "Gap to Retrain of every combination",
                "Mean over seeds, in points; framed are the methods of papers.",
                lambda: pictures.cells(found.gaps, found.cells),
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
            " ".join([describe(self.config), *self._notes, *findings.verdict(found)]),
            shown,
            LOADING.format(path=(store.folder / "results.json").absolute()),
            texts,
        )


def _listed(left_out: Mapping[str, str]) -> str:
    """Cells and reasons, a line each."""
    return "\n".join(f"{name}: {why}." for name, why in left_out.items()) or "None."
