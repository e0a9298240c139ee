"""Unlearn from an image classifier, beside Retrain.

``python -m experiments.classification`` trains the original model, two Retrains and
every method over seeds, fills a table in as it goes, and leaves a folder with
results, plots, checkpoints and a report. Run again it computes what is missing.
"""

import copy
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, Literal, Self

import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from experiments import (
    cli,
    data,
    evaluation,
    figures,
    loop,
    recipes,
    report,
    study,
    summary,
    tables,
)
from experiments.models import Model, build
from experiments.progress import Display
from experiments.store import Store
from experiments.summary import Column
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
        description="Share of the forget set that an attack takes for unseen.",
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
BASELINES = ("retrain", "retrain_again", "original")
LOADING = """\
import orbax.checkpoint as ocp
path = "{path}"  # absolute
tree = ocp.StandardCheckpointer().restore(path)  # {{"params": …, "model_state": …}}"""


@dataclasses.dataclass(frozen=True)
class Config(cli.StudyConfig):
    """Unlearn from an image classifier, beside Retrain."""

    scenario: Literal["random", "class", "indices"] = "random"
    """What to forget: a random share, a whole class, or the indices in a file."""
    forget_fraction: float = 0.1
    """Random scenario: share of the training images to forget, between 0 and 1."""
    forget_seed: int = 0
    """Random scenario: which images are drawn; the same for every training seed."""
    forget_class: str = "0"
    """Class scenario: name or number of the class to forget."""
    forget_indices: pathlib.Path | None = None
    """Indices scenario: text file with one training index a line."""
    model: str = "small_cnn"
    """Model: small_cnn, resnet18, resnet20, vgg16_bn, vit_tiny, or module:factory."""

    @property
    def task(self) -> str:
        """Name of the task, for the default folder."""
        detail = {
            "random": f"{self.forget_fraction:g}",
            "class": self.forget_class,
            "indices": self.forget_indices.stem if self.forget_indices else "",
        }[self.scenario]
        return f"{self.dataset}-{self.model}-{self.scenario}-{detail}"

    @property
    def recipe_tasks(self) -> list[str]:
        """Names of the searched recipes that fit, the most specific first."""
        general = f"{self.dataset}-{self.scenario}"
        if self.scenario == "random":
            return [f"{general}-{self.forget_fraction:g}", general]
        return [general]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(Config, unlearn, "experiments.classification", arguments)


def unlearn(config: Config) -> None:
    """Runs the study that a configuration describes, or what of it is missing."""
    chosen = cli.choose(config.methods, recipes.METHODS)
    dataset = data.load(config.dataset)
    split = make_split(config, dataset)
    model = build(config.model, dataset.num_classes, dataset.input_shape)
    numbers = resolve_recipes(config)
    settings = cli.plain(config) | {
        "command": ["python", "-m", "experiments.classification", *sys.argv[1:]],
        "recipes": {name: dataclasses.asdict(r) for name, r in numbers.items()},
    }
    with Store(config.folder, settings, cli.EXTENDABLE) as store:
        bench = Bench(dataset, split, model, numbers, store, config.keep_every)
        runs = [
            (name, seed)
            for seed in range(config.seeds)
            for name in (*BASELINES, *chosen)
            if store.row(name, seed) is None
        ]
        table = functools.partial(screen_table, store, (*BASELINES, *chosen))
        with Display(sum(bench.steps(name) for name, _ in runs), table) as display:
            for name, seed in runs:
                bench.run(name, seed, display)
        write_report(config, store)
        console = rich.console.Console()
        # Where no terminal says how wide it is, the table needs its hundred columns.
        width = None if console.is_terminal else 100
        rich.console.Console(width=width).print(table())
        print(f"Report: {config.folder / 'report.html'}")


def make_split(config: Config, dataset: data.Dataset) -> data.Split:
    """Which images are forgotten, retained and tested on."""
    if config.scenario == "random":
        return data.random_split(dataset, config.forget_fraction, config.forget_seed)
    if config.scenario == "class":
        return data.class_split(dataset, config.forget_class)
    if config.forget_indices is None:
        raise data.DataError("--scenario indices needs --forget-indices FILE.")
    return data.index_split(dataset, config.forget_indices)


def resolve_recipes(config: Config) -> dict[str, recipes.Recipe]:
    """The numbers of every method, and of training under ``"training"``."""
    training = recipes.TRAINING.get(config.dataset, recipes.DEFAULT_TRAINING)
    return {
        "training": cli.override(training, config.train, "train"),
        **{
            name: cli.override(
                recipes.recipe_for(config.recipe_tasks, name),
                config.recipe,
                "recipe",
            )
            for name in recipes.METHODS
        },
    }


class Bench:
    """Everything that a run needs: the data, the model and the finished originals."""

    def __init__(
        self,
        dataset: data.Dataset,
        split: data.Split,
        model: Model,
        numbers: dict[str, recipes.Recipe],
        store: Store,
        keep_every: float,
    ):
        self.split, self.model, self.numbers = split, model, numbers
        self.store, self.keep_every = store, keep_every
        self.losses = evaluation.cross_entropy_losses(model, dataset)
        self.evaluator = evaluation.Evaluator(model, dataset, split)
        self.feed = loop.Feed(
            examples={
                "image": jnp.asarray(dataset.train_images),
                "label": jnp.asarray(dataset.train_labels),
            },
            num_classes=dataset.num_classes,
            forget=(split.forget,),
            retain=split.retain,
        )
        self._originals: dict[int, Any] = {}
        self._methods: dict[str, tuple[methods.Method, loop.Feed, int]] = {}

    def run(self, name: str, seed: int, display: Display) -> None:
        """Trains or unlearns, measures, and keeps the row."""
        row: dict[str, Any] = {"method": name, "seed": seed, "status": "ok"}
        checkpoint, record = None, {}
        try:
            result = study.execute(
                self.prepare(name, seed),
                self.store,
                display,
                self._curve,
                self.keep_every,
            )
            outputs = self.evaluator.outputs(result.params, result.model_state)
            row |= evaluation.measure(outputs, seed)
        except loop.DivergedError as error:
            row |= {"status": "diverged", "reason": str(error)}
        else:
            reference = row if name == "retrain" else self.store.row("retrain", seed)
            if reference and reference["status"] == "ok":
                row |= evaluation.compare(row, reference)
            row |= {
                "seconds": result.seconds,
                "trainable_fraction": result.trainable_fraction,
            }
            record = result.curves | evaluation.confidence(outputs)
            checkpoint = {"params": result.params, "model_state": result.model_state}
        self.store.finish(row, record, checkpoint)
        if name == "original":
            self._originals[seed] = checkpoint
        display.finished(summary_line(row))

    def steps(self, name: str) -> int:
        """Optimiser steps of a method's run."""
        method, feed, batch_size = self._method(name)
        each = loop.steps_per_epoch(method.data_use, feed, batch_size)
        return each * loop.num_epochs(method.data_use)

    def with_recipe(self, name: str, recipe: recipes.Recipe) -> Self:
        """A bench with the same data and originals where one method differs."""
        other = copy.copy(self)
        other.numbers = self.numbers | {name: recipe}
        other._methods = {}
        return other

    def prepare(self, name: str, seed: int) -> study.Run:
        """The run of a method on a seed."""
        method, feed, batch_size = self._method(name)
        if method.data_use.fresh_start:

            def start():
                return method.init(*self.model.init(study.random_key(name, seed)))

        else:
            original = self._original(seed)
            if method.data_use.stages > 1:
                stages = self._stages(original, self.numbers[name], seed)
                feed = dataclasses.replace(feed, forget=stages)

            def start():
                batches = loop.in_order(feed, self.split.forget, batch_size)
                return method.init(original["params"], original["model_state"], batches)

        return study.Run(name, seed, method, start, feed, batch_size)

    def _method(self, name: str) -> tuple[methods.Method, loop.Feed, int]:
        """A method, what it is fed and its batch size; compiled once for all seeds."""
        if name not in self._methods:
            self._methods[name] = self._make_method(name)
        return self._methods[name]

    def _make_method(self, name: str) -> tuple[methods.Method, loop.Feed, int]:
        feed = self.feed
        if name in BASELINES:
            recipe = self.numbers["training"]
            if name == "original":
                everything = np.concatenate([self.split.forget, self.split.retain])
                feed = dataclasses.replace(feed, retain=np.sort(everything))
            build_method = recipes.retrain
        else:
            recipe = self.numbers[name]
            build_method = recipes.METHODS[name]
        # The data use tells the steps of an epoch, which schedules need to know.
        use = build_method(recipe, self.losses, 1).data_use
        if use.stages > len(self.split.forget):
            raise cli.ConfigError(
                f"--recipe.stages {use.stages}: the forget set has "
                f"{len(self.split.forget)} images; give no more stages than that."
            )
        stages = tuple(np.array_split(self.split.forget, use.stages))
        feed = dataclasses.replace(feed, forget=stages)
        steps = loop.steps_per_epoch(use, feed, recipe.batch_size)
        method = build_method(recipe, self.losses, steps)
        return methods.with_data(method, epochs=recipe.epochs), feed, recipe.batch_size

    def _original(self, seed: int) -> Any:
        """Parameters and model state of the original model."""
        row = self.store.row("original", seed)
        if row is None or row["status"] != "ok":
            raise loop.DivergedError("There is no original model to start from.")
        if seed not in self._originals:
            self._originals[seed] = self.store.checkpoint("original", seed)
        return self._originals[seed]

    def _stages(self, original: Any, recipe: recipes.Recipe, seed: int):
        """The forget set in parts, from easy to hard for the original model."""
        forget = self.split.forget
        difficulty = evaluation.DIFFICULTIES[recipe.difficulty](
            evaluation.Forgetting(
                self.losses.evaluation,
                original["params"],
                original["model_state"],
                loop.in_order(self.feed, forget, len(forget))[0],
                self.evaluator.outputs(**original).forget[0],
                loop.in_order(self.feed, self.split.retain, 256),
                study.random_key("stages", seed),
            )
        )
        parts = curriculum.stage_indices(difficulty, recipe.stages)
        return tuple(forget[part] for part in parts)

    def _curve(self, params: Any, model_state: Any) -> dict[str, float]:
        """Accuracies on a part of each split, after every epoch."""
        outputs = self.evaluator.outputs(params, model_state, limit=256)
        row = evaluation.accuracies(outputs)
        return {
            "forget_accuracy": 100 - row["ua"],
            "retain_accuracy": row["ra"],
            "test_accuracy": row["ta"],
        }


def summary_line(row: dict[str, Any]) -> str:
    """A finished run on one line."""
    start = f"{row['method']}, seed {row['seed']}:"
    if row["status"] != "ok":
        return f"{start} {row['status']} ({row['reason']})"
    numbers = [
        f"{column.label} {row[column.key]:.{column.decimals}f}"
        for column in COLUMNS
        if row.get(column.key) is not None
    ]
    return f"{start} {', '.join(numbers)}"


def screen_table(store: Store, names: Sequence[str]) -> rich.table.Table:
    """The table so far."""
    return tables.rich_table(summarise(store), pending=names)


def summarise(store: Store) -> summary.Summary:
    """Means and intervals of the rows so far."""
    labels = {name: note.label for name, note in recipes.NOTES.items()}
    return summary.summarise(store.rows, COLUMNS, labels=labels)


def write_report(config: Config, store: Store) -> None:
    """Tables, plots and the page."""
    estimates = summarise(store)
    labels = estimates.method_labels
    curves, confidences = {}, {}
    for row in store.rows:
        if row["status"] != "ok":
            continue
        name, seed = row["method"], row["seed"]
        record = store.record(name, seed)
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
    path = store.checkpoint_path("salun", 0).absolute()
    report.write(
        config.folder,
        store.results,
        COLUMNS,
        title=f"Unlearning {config.task}",
        description=describe(config),
        figures=shown,
        methods=recipes.NOTES,
        loading=LOADING.format(path=path),
    )


def describe(config: Config) -> str:
    """What was forgotten, in a sentence or two."""
    what = {
        "random": f"a random {100 * config.forget_fraction:g} % of the training images",
        "class": f"the class {config.forget_class}",
        "indices": f"the training images listed in {config.forget_indices}",
    }[config.scenario]
    return (
        f"A {config.model} trained on {config.dataset} had to forget {what}. Every "
        "method starts from the same original model and is compared with Retrain, "
        "which never saw them."
    )


if __name__ == "__main__":
    sys.exit(main())
