"""A bank of models: each trained, each made to forget, each asked about every example.

A :class:`Bank` is a study whose seeds are models: model m is trained with seed m on R
and its half of the pool. What a model says is kept as margins, so that audits are
functions of arrays of (models, examples).
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from experiments.audit.pool import Pool
from experiments.classification.config import Config
from experiments.classification.task import Classification
from experiments.engine.loop import DivergedError
from experiments.engine.store import Store
from experiments.engine.task import Measured
from experiments.reporting.summary import Column
from mujax import auditing

PARTS = ("pool", "retain", "test")
MIN_MODELS = 8
"""Models of which two pairs can be left out, and a variance is left to estimate."""
COLUMNS = (
    Column(
        "ua",
        "UA",
        "%",
        2,
        description="Error on what the model forgot, by the labels it was trained on.",
    ),
    Column("ra", "RA", "%", 2, description="Accuracy on R."),
    Column("ta", "TA", "%", 2, description="Accuracy on the test set."),
    Column(
        "gap",
        "Gap",
        "points",
        2,
        reference=False,
        description="Mean distance to Retrain over UA, RA and TA, by model.",
    ),
)


class Margins(NamedTuple):
    r"""What the models of one method say, :math:`z_y - \log \sum_{k \ne y} e^{z_k}`.

    Attributes:
      pool: (N, 2f), on T.
      retain: (N, n), on R.
      test: (N, n), on the test set.
      member: (N, 2f), whether a model was trained on an example of T.
      models: their numbers.
    """

    pool: np.ndarray
    retain: np.ndarray
    test: np.ndarray
    member: np.ndarray
    models: np.ndarray


class Bank(Classification):
    """Unlearning the halves of a pool: a ``task.Task`` whose seeds are models.

    Args:
      config: names the network, and says how much memory the images may take.
      pool: which examples each model is trained on and forgets.
    """

    columns, gap, keeps_models = COLUMNS, "gap", False

    def __init__(self, config: Config, pool: Pool):
        super().__init__(config, pool.dataset, pool.split(0))
        self.pool, self.identity = pool, self.identity | {"pool": pool.seed}

    def for_seed(self, seed: int) -> Self:
        """The task of a model."""
        other = copy.copy(self)
        other.split = self.pool.split(seed)
        return other

    def measure(self, params: Any, model_state: Any, seed: int) -> Measured:
        """Accuracies, and the margins on T, R and the test set."""
        del seed
        pool, data = self.pool, self.pool.dataset
        train = data.train_images, data.train_labels
        margins, right = {}, {}
        for part, images, labels, indices in (
            ("pool", *train, pool.pool),
            ("retain", *train, pool.retain),
            ("test", data.test_images, data.test_labels, pool.test),
        ):
            logits = self._evaluator.logits(params, model_state, images, indices)
            if not np.isfinite(logits).all():
                raise DivergedError("The model's outputs are no longer finite.")
            margins[part] = auditing.margins(logits, labels[indices])
            right[part] = logits.argmax(-1) == labels[indices]
        forgotten = np.isin(pool.pool, self.split.forget)
        row = {
            "ua": 100 * float(np.mean(~right["pool"][forgotten])),
            "ra": 100 * float(np.mean(right["retain"])),
            "ta": 100 * float(np.mean(right["test"])),
        }
        return Measured(row, {k: v.astype(np.float32) for k, v in margins.items()})

    def compare(self, ours: Measured, reference: Measured) -> Mapping[str, float]:
        """Mean distance of the three accuracies."""
        keys = ("ua", "ra", "ta")
        distances = [abs(ours.row[key] - reference.row[key]) for key in keys]
        return {"gap": float(np.mean(distances))}


def read(store: Store, pool: Pool, methods: Sequence[str]) -> dict[str, Margins]:
    """The margins of all methods, on the models that all of these have.

    Pairs of which a method's model diverged are left out; so are methods with fewer
    than ``MIN_MODELS`` models that did not.
    """
    done = {
        name: {
            row["seed"]
            for row in store.rows
            if row["method"] == name and row["status"] == "ok"
        }
        for name in methods
    }
    done = {name: models for name, models in done.items() if len(models) >= MIN_MODELS}
    common = set.intersection(*done.values()) if done else set()
    models = [m for m in sorted(common) if m ^ 1 in common]
    if len(models) < MIN_MODELS:
        return {}
    member, banks = pool.member(models), {}
    for name in done:
        records = [store.record(name, model) for model in models]
        arrays = {p: np.stack([record[p] for record in records]) for p in PARTS}
        banks[name] = Margins(**arrays, member=member, models=np.array(models))
    return banks
