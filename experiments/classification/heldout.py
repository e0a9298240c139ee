"""How sure models are of training images that they never saw.

The training images are split into parts, several times over, and a model is trained
without each: what it says of its part tells memorised images, which only a model that
was trained on them gets right, from typical ones.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from experiments import data
from experiments.classification.config import Config, resolve_recipes
from experiments.classification.task import Classification
from experiments.engine.bench import Bench
from experiments.engine.loop import DivergedError
from experiments.engine.store import Store
from experiments.engine.task import REFERENCE, Measured, inputs
from mujax import auditing

FOLDS, ROUNDS = 4, 3
"""Parts that the images are split into, and how often."""


def certainty(
    config: Config,
    dataset: data.Dataset,
    seed: int,
    forgotten: np.ndarray = data.NOTHING,
    name: str = "certainty",
) -> np.ndarray:
    """Mean margin of each training image under models that never saw it.

    Args:
      config: the study, in a folder of which the models are kept.
      dataset: the images.
      seed: of the parts, not negative.
      forgotten: sorted indices of training images that no model may see.
      name: of that folder.

    Returns:
      Margins (n,), nan for those that are forgotten.

    Raises:
      DataError: a training diverged.
    """
    task = HeldOut(config, dataset, seed, forgotten)
    numbers, models = resolve_recipes(config), range(FOLDS * ROUNDS)
    settings = {
        "input": inputs(task),
        "precision": config.precision,
        "recipes": {"training": dataclasses.asdict(numbers["training"])},
    }
    margins = np.full((ROUNDS, len(dataset.train_labels)), np.nan)
    with Store(config.folder / name, settings) as store:
        # The ranking is of all of them: no limit of time stops here.
        bench = Bench(task, numbers, store, dataclasses.replace(config, minutes=None))
        bench.run_these([(REFERENCE, m) for m in models], lambda: "")
        for model in models:
            if not store.has_record(REFERENCE, model):
                raise data.DataError(
                    "A model that should rank the training images diverged: give a "
                    "smaller --train.learning-rate."
                )
            part = task.for_seed(model).split.forget
            margins[model // FOLDS, part] = store.record(REFERENCE, model)["margin"]
    return margins.mean(0)


class HeldOut(Classification):
    """Training without a part: a ``task.Task`` whose seeds are parts.

    Args:
      config: names the model, and says how much memory the images may take.
      dataset: the images.
      seed: of the parts, not negative.
      forgotten: sorted indices of training images that no model may see.
    """

    columns, gap, keeps_models = (), "gap", False

    def __init__(
        self,
        config: Config,
        dataset: data.Dataset,
        seed: int,
        forgotten: np.ndarray = data.NOTHING,
    ):
        self._seed = seed
        left = data.others(forgotten, len(dataset.train_labels))
        test = np.arange(len(dataset.test_labels), dtype=np.int32)
        nothing = data.Split(data.NOTHING, left, test, forgotten)
        super().__init__(config, dataset, nothing)
        self.identity = self.identity | {"held_out": seed}
        self._left = left
        self.split = self._part(0)

    def for_seed(self, seed: int) -> Self:
        """The task of a model: parts of a round leave out each image once."""
        other = copy.copy(self)
        other.split = self._part(seed)
        return other

    def _part(self, model: int) -> data.Split:
        stream = 7_000_003 * (self._seed + 1) + model // FOLDS
        order = data.shuffled(len(self._left), stream)
        out = np.sort(self._left[order[model % FOLDS :: FOLDS]])
        kept = np.setdiff1d(self._left, out).astype(np.int32)
        return dataclasses.replace(self.split, forget=out, retain=kept)

    def measure(self, params: Any, model_state: Any, seed: int) -> Measured:
        """Margins of the images that were left out."""
        del seed
        dataset, out = self._evaluator.dataset, self.split.forget
        model = params, model_state
        logits = self._evaluator.logits(*model, dataset.train_images, out)
        margins = auditing.margins(logits, dataset.train_labels[out])
        if not np.isfinite(margins).all():
            raise DivergedError("The model's outputs are no longer finite.")
        return Measured({}, {"margin": margins})

    def compare(self, ours: Measured, reference: Measured) -> Mapping[str, float]:
        """Nothing: these models are not compared."""
        del ours, reference
        return {}
