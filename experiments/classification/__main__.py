"""Unlearn from an image classifier, beside Retrain.

``python -m experiments.classification`` trains the original model, two Retrains and
every method over seeds, fills a table in as it goes, and leaves a folder with
results, plots, checkpoints and a report. Run again it computes what is missing.
"""

import copy
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data
from experiments.classification import evaluation, recipes
from experiments.classification.methods import METHODS, USUAL, cufg
from experiments.classification.optimisation import Optimisation
from experiments.engine import bench, cli, kernels, loop, study
from experiments.engine.devices import Devices
from experiments.engine.recipes import COUNT_OR_NONE, resolve
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


@dataclasses.dataclass(frozen=True)
class Config(cli.StudyConfig):
    """Unlearn from an image classifier, beside Retrain.

    Examples:
      python -m experiments.classification
      python -m experiments.classification --scenario class --forget-class 3 --seeds 2
      python -m experiments.classification --methods salun,ufg --recipe.epochs 5
      python -m experiments.classification --methods salun --salun.density 0.2
      python -m experiments.classification --help-method salun
    """

    HEADING: ClassVar[str] = "classification"
    METHODS: ClassVar = METHODS
    USUAL: ClassVar = USUAL
    TRAINING: ClassVar = Optimisation

    scenario: Literal["random", "class", "indices"] = "random"
    """What to forget: a random share, whole classes, or the indices in files."""
    forget_fraction: float = 0.1
    """Random scenario: share of the training images to forget, between 0 and 1."""
    forget_seed: int = 0
    """Random scenario: which images are drawn; seed s draws with this number + s."""
    forget_class: str = "0"
    """Class scenario: name or number of the class to forget, or several: 3,7."""
    forget_indices: str | None = None
    """Indices scenario: text file with one training index a line, or several files
    separated by commas."""
    forgotten_indices: str | None = None
    """Further requests: files of the training indices that the model of --checkpoint
    has been made to forget before. Nothing is trained on them, Retrain included."""
    attack: evaluation.Attack = "confidence"
    """What the membership attack behind MIA looks at."""
    train_size: int | None = None
    """Learn from so many training images only, drawn at random once: fewer are
    remembered better, so that there is more to forget. None takes all."""
    model: str = "small_cnn"
    """Model: small_cnn, fast_cnn, resnet18, resnet20, resnet20_strided, vgg16_bn,
    vit_tiny, or module:factory."""
    recipes: pathlib.Path | None = None
    """JSON file of searched recipes; by default that of the task, if there is one."""
    width: int | None = None
    """Width of the model (channels of its first layer); None takes the model's own."""
    pixels: data.Pixels = "standardised"
    """What the model is given: pixels standardised by channel, in [0, 1], or bytes."""

    def __post_init__(self):
        super().__post_init__()
        if not COUNT_OR_NONE.holds(self.train_size):
            raise cli.ConfigError(
                f"--train-size {self.train_size}: give {COUNT_OR_NONE.wanted}."
            )
        if self.train_size is not None and self.scenario == "indices":
            raise cli.ConfigError(
                "--train-size: indices would mean other images. Leave it out with "
                "--scenario indices."
            )
        if self.forgotten_indices is not None and self.checkpoint is None:
            raise cli.ConfigError(
                "--forgotten-indices says what a given model has been made to forget: "
                "give that model as --checkpoint."
            )

    @property
    def task(self) -> str:
        """Name of the task, for the default folder."""
        detail = {
            "random": f"{self.forget_fraction:g}",
            "class": self.forget_class,
            "indices": ",".join(
                pathlib.PurePath(name.strip()).stem
                for name in (self.forget_indices or "").split(",")
            ),
        }[self.scenario]
        again = "-again" if self.forgotten_indices else ""
        return f"{self._kind}-{detail[:100]}{again}"

    @property
    def recipe_task(self) -> str:
        """Name of the searched recipes; those of one class serve every class."""
        share = f"-{self.forget_fraction:g}" if self.scenario == "random" else ""
        return f"{self._kind}{share}"

    @property
    def _kind(self) -> str:
        model = self.model if self.width is None else f"{self.model}_{self.width}"
        size = "" if self.train_size is None else f"_{self.train_size}"
        return f"{self.dataset}{size}-{model}-{self.scenario}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(Config, unlearn, "experiments.classification", arguments)


def unlearn(config: Config) -> None:
    """Runs the study that a configuration describes, or what of it is missing."""
    chosen = cli.chosen(config)
    dataset = load_data(config)
    split = make_split(config, dataset, range(config.seeds))
    numbers, notes = fit(resolve_recipes(config), chosen, config, dataset, split)
    task = Classification(config, dataset, split, notes)
    kernels.check(task.shapes(), {name: numbers[name] for name in chosen})
    bench.run_study("experiments.classification", config, task, numbers, chosen, notes)


def load_data(config: Config) -> data.Dataset:
    """The data set, as the model wants its pixels, or a part of it."""
    dataset = dataclasses.replace(cli.load_data(config), pixels=config.pixels)
    if config.train_size is None:
        return dataset
    return data.subset(dataset, config.train_size)


def make_split(
    config: Config, dataset: data.Dataset, seeds: Sequence[int] = (0,)
) -> data.Split:
    """Which images the first of the seeds forgets, retains and is tested on.

    Raises:
      DataError: one of the seeds has no such split.
    """
    forgotten = np.empty(0, np.int32)
    if config.forgotten_indices is not None:
        names = config.forgotten_indices
        forgotten = data.read_indices(dataset, names, "forgotten")
    if config.scenario == "random":
        _check_draws(config, dataset, seeds, forgotten)
        return draw(config, dataset, seeds[0], forgotten)
    if config.scenario == "class":
        return data.class_split(dataset, config.forget_class, forgotten)
    if config.forget_indices is None:
        raise data.DataError("--scenario indices needs --forget-indices FILE.")
    return data.index_split(dataset, config.forget_indices, forgotten)


def draw(
    config: Config, dataset: data.Dataset, seed: int, forgotten: np.ndarray
) -> data.Split:
    """The random split of a seed."""
    forget_seed = config.forget_seed + seed
    return data.random_split(dataset, config.forget_fraction, forget_seed, forgotten)


def _check_draws(
    config: Config, dataset: data.Dataset, seeds: Sequence[int], forgotten: np.ndarray
) -> None:
    """Raises if a seed draws what cannot be forgotten; names all that do."""
    lost: dict[int, data.LostClassError] = {}
    for seed in seeds:
        try:
            draw(config, dataset, seed, forgotten)
        except data.LostClassError as error:
            lost[seed] = error
    if lost:
        first, *others = lost
        listed = ", ".join(map(str, others[:8])) + " …" * (len(others) > 8)
        also = f" (and likewise with {listed})" if others else ""
        raise data.DataError(f"With seed {first}{also}: {lost[first]}")


def fit(
    numbers: Mapping[str, Any],
    chosen: Sequence[str],
    config: Config,
    dataset: data.Dataset,
    split: data.Split,
) -> tuple[dict[str, Any], list[str]]:
    """The numbers as this request needs them, and what a person should know of it."""
    fitted, notes, count = dict(numbers), [], len(split.forget)
    for name, recipe in numbers.items():
        stages = getattr(recipe, "stages", 1)
        given = any("stages" in config.changes.get(g, ()) for g in ("recipe", name))
        if stages > count and not given:
            fitted[name] = dataclasses.replace(recipe, stages=count)
            if name in chosen:
                notes.append(
                    f"{recipes.NOTES[name].label} forgets in {count} of its {stages} "
                    "stages: there are no more images to forget."
                )
    left_out = len(dataset.test_labels) - len(split.test)
    if left_out and config.scenario != "class":
        classes = np.setdiff1d(dataset.train_labels, dataset.train_labels[split.retain])
        names = ", ".join(dataset.classes[i] for i in classes[:9])
        notes.append(
            f"No training image of {names}{' …' * (len(classes) > 9)} is retained: the "
            f"{left_out} test images of it are left out, as in the class scenario."
        )
    return fitted, notes


def resolve_recipes(config: Config) -> dict[str, Any]:
    """The numbers of every method, and of training under ``"training"``."""
    training = recipes.TRAINING.get(config.dataset, recipes.DEFAULT_TRAINING)
    searched = recipes.searched(config.recipe_task, config.recipes)
    return resolve(config.changes, training, searched)


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
            other.split = draw(self.config, dataset, seed, self.split.forgotten)
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
    what = {
        "random": f"a random {100 * config.forget_fraction:g} % of the training images",
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


if __name__ == "__main__":
    cli.leave(main())
