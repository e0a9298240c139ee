"""Unlearning from a classifier as a task: its model, measures and report."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data
from experiments.classification import evaluation, recipes
from experiments.classification.config import Config
from experiments.classification.methods import METHODS, cufg
from experiments.engine import bench, loop, study
from experiments.engine.devices import Devices
from experiments.engine.store import Store
from experiments.engine.task import Measured, Page
from experiments.models import build
from experiments.models.precision import computing_in
from experiments.reporting import figures, report, summary
from experiments.reporting.summary import Column
from mujax import curriculum, methods

COLUMNS = (
    Column(
        "ua", "UA", "%", 2, description="Unlearning accuracy: error on the forget set."
    ),
    Column("ra", "RA", "%", 2, description="Accuracy on the retain set."),
    Column("ta", "TA", "%", 2, description="Accuracy on the test set."),
    Column(
        "mia",
        "MIA",
        "%",
        2,
        error="mia_error",
        description="Share of the forget set that an attack takes for unseen: the mean "
        "over draws of the attack's members, as many as it takes for a standard error "
        "of one point, a hundred at most.",
    ),
    Column(
        "gap",
        "Gap",
        "points",
        2,
        reference=False,
        description="Mean distance to Retrain over UA, RA, TA and MIA, by seed.",
    ),
    Column(
        "tow",
        "ToW",
        "",
        3,
        reference=False,
        description="Tug of war: product of 1 − distance to Retrain's accuracy over "
        "the forget, retain and test set; 1 is Retrain itself.",
    ),
    Column(
        "seconds",
        "Time",
        "s",
        2,
        reference=False,
        description="Run time without compilation.",
    ),
    Column(
        "trainable_fraction",
        "Trainable",
        "",
        4,
        reference=False,
        description="Share of the parameters that the method may move.",
    ),
)
LOADING = """\
import orbax.checkpoint as ocp
path = "{path}"  # absolute
tree = ocp.StandardCheckpointer().restore(path)  # {{"params": …, "model_state": …}}"""


class Classification:
    """Unlearning from a classifier: a ``task.Task``.

    Args:
      config: names the model, and says how much memory the images may take.
      dataset: the images.
      split: which of them are forgotten, retained and tested on.
      notes_on_request: what the report says of this request.
    """

    columns, gap, keeps_models, notes = COLUMNS, "gap", True, recipes.NOTES

    def __init__(
        self,
        config: Config,
        dataset: data.Dataset,
        split: data.Split,
        notes_on_request: Sequence[str] = (),
    ):
        self.config, self._notes = config, notes_on_request
        self._devices = Devices.choose(config.devices, config.shard_parameters)
        options = {} if config.width is None else {"width": config.width}
        model = build(config.model, dataset.num_classes, dataset.input_shape, **options)
        self.model = computing_in(model, config.precision)
        self.identity = {
            "model": config.model,
            **options,
            "dataset": dataset.fingerprint,
        }
        self.losses = evaluation.cross_entropy_losses(self.model, dataset)
        images, labels = dataset.train_images, dataset.train_labels
        if images.nbytes <= 1e9 * config.memory:
            images, labels = jnp.asarray(images), jnp.asarray(labels)
            images, labels = self._devices.everywhere((images, labels))
        self._examples = {"image": images, "label": labels}
        self._evaluator = evaluation.Evaluator(self.model, dataset, self._devices)
        self.split = split

    @property
    def feed(self) -> loop.Feed:
        """The examples, and which of them to forget and to retain."""
        classes = self._evaluator.dataset.num_classes
        return loop.Feed(
            self._examples,
            classes,
            (self.split.forget,),
            self.split.retain,
            devices=self._devices,
        )

    def for_seed(self, seed: int) -> Self:
        """The task with the seed's own random forget set; nothing compiles anew."""
        other = copy.copy(self)
        if self.config.scenario == "random":
            dataset = self._evaluator.dataset
            other.split = self.config.draw(dataset, seed, self.split.forgotten)
        return other

    def init(self, key: Any) -> tuple[Any, Any]:
        """New parameters and model state."""
        return self.model.init(key)

    def shapes(self) -> Any:
        """Shapes of the parameters."""
        return jax.eval_shape(self.init, jax.random.key(0))[0]

    def build(self, name: str, recipe: Any, steps: int) -> methods.Method:
        """A method or the training of a baseline."""
        make = METHODS[name].build if name in METHODS else recipes.retrain
        return make(recipe, self.losses, steps)

    def forget_batches(self, batch_size: int, seed: int = 0) -> list[Any]:
        """The forget set with true labels, in order."""
        del seed
        return loop.in_order(self.feed, self.split.forget, batch_size)

    def stages(
        self, original: Any, recipe: cufg.Recipe, seed: int
    ) -> tuple[np.ndarray, ...]:
        """The forget set in parts, from easy to hard for the original model."""
        forget = self.split.forget
        difficulty = evaluation.DIFFICULTIES[recipe.difficulty](
            evaluation.Forgetting(
                self.losses.evaluation,
                original["params"],
                original["model_state"],
                self.forget_batches(len(forget))[0],
                self._outputs(**original).forget[0],
                loop.in_order(self.feed, self.split.retain, 256),
                study.random_key("stages", seed),
            )
        )
        parts = curriculum.stage_indices(difficulty, recipe.stages)
        return tuple(forget[part] for part in parts)

    def _outputs(self, params: Any, model_state: Any) -> evaluation.Outputs:
        return self._evaluator.outputs(params, model_state, self.split)

    def curve(self, params: Any, model_state: Any) -> Mapping[str, float]:
        """Accuracies on a part of each split."""
        row = self._evaluator.accuracies(params, model_state, self.split, limit=256)
        return {
            "forget_accuracy": 100 - row["ua"],
            "retain_accuracy": row["ra"],
            "test_accuracy": row["ta"],
        }

    def measure(self, params: Any, model_state: Any, seed: int) -> Measured:
        """UA, RA, TA, MIA, and the confidences behind them."""
        outputs = self._outputs(params, model_state)
        row = evaluation.measure(outputs, seed, self.config.attack)
        return Measured(row, evaluation.confidence(outputs))

    def compare(self, ours: Measured, reference: Measured) -> Mapping[str, float]:
        """Average gap and tug-of-war."""
        return evaluation.compare(ours.row, reference.row)

    def page(self, store: Store, estimates: summary.Summary) -> Page:
        """What was forgotten, and four plots."""
        labels = estimates.method_labels
        curves, confidences, tables = {}, {}, {}
        for row in store.rows:
            name, seed = row["method"], row["seed"]
            if row["status"] != "ok" or not store.has_record(name, seed):
                continue
            record = store.record(name, seed)
            if "kernels" in record:
                title = f"Kernels of {labels.get(name, name)}, seed {seed}"
                tables.setdefault(name, report.Text(title, str(record["kernels"])))
            if "loss" in record:  # an original that was given has no curve
                epochs = np.arange(1, len(record["loss"]) + 1)
                curves[name, seed] = {"epoch": epochs, **record}
            for part in ("forget", "retain", "test"):
                values = confidences.setdefault((name, part), [])
                values.append(record[f"confidence_{part}"])
        confidences = {k: np.concatenate(v) for k, v in confidences.items()}
        shown = (
            report.Figure(
                "metrics",
                "UA, RA, TA and MIA against Retrain",
                "Closer to Retrain's line is better; higher is not.",
                lambda: figures.metric_comparison(estimates),
            ),
            report.Figure(
                "gap",
                "Distance to Retrain",
                "Mean distance over the four metrics, paired by seed. Below the noise "
                "floor, the distance between two Retrains, differences mean nothing.",
                lambda: figures.gap_chart(estimates),
            ),
            report.Figure(
                "confidence",
                "Confidence in the true class",
                "What a membership attack sees. Pooled over seeds.",
                lambda: figures.confidence_histograms(confidences, labels),
            ),
            report.Figure(
                "curves",
                "Training and unlearning",
                "Accuracy after every epoch, on up to 256 images of each set.",
                lambda: figures.curves(curves, labels),
            ),
        )
        path = bench.example_checkpoint(store)
        return Page(
            f"Unlearning {self.config.task}",
            " ".join([describe(self.config), *self._notes]),
            shown,
            LOADING.format(path=path),
            tuple(tables.values()),
        )


def describe(config: Config) -> str:
    """What was forgotten, in a sentence or two."""
    kind = "the classes" if "," in config.forget_class else "the class"
    share = f"{100 * config.forget_fraction:g} % of the training images"
    what = {
        "random": f"a random {share}",
        "mislabelled": f"a random {share}, which it had learned with wrong labels",
        "memorised": f"the {share} that models which never saw them are least certain "
        "of",
        "typical": f"the {share} that models which never saw them are most certain of",
        "class": f"{kind} {config.forget_class}",
        "indices": f"the training images listed in {config.forget_indices}",
    }[config.scenario]
    if config.forgotten_indices is not None:
        what += f", and had forgotten those listed in {config.forgotten_indices} before"
    trained = config.dataset
    if config.train_size is not None:
        trained = f"{config.train_size} images of {config.dataset}"
    return (
        f"A {config.model} trained on {trained} had to forget {what}. Every "
        "method starts from the same original model and is compared with Retrain, "
        "which never saw what was to be forgotten."
    )
