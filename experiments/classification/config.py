"""What a person asks of a study of classifiers: its flags, data and recipes."""

import dataclasses
import pathlib
from typing import Any, ClassVar, Literal

import numpy as np

from experiments import data
from experiments.classification import evaluation, recipes
from experiments.classification.methods import METHODS, USUAL
from experiments.classification.optimisation import Optimisation
from experiments.engine import cli
from experiments.engine.recipes import COUNT_OR_NONE, resolve

DRAWS = "mislabelled", "memorised", "typical"
"""Scenarios that draw one forget set for all seeds, of the size of a random one."""


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

    scenario: Literal[
        "random", "class", "mislabelled", "memorised", "typical", "indices"
    ] = "random"
    """What to forget: a random share, whole classes, a random share that was learned
    with wrong labels, what models that never saw it are least certain of (memorised) or
    most certain of (typical), or the indices in files."""
    forget_fraction: float = 0.1
    """Share of the training images to forget, between 0 and 1; not read with class and
    indices."""
    forget_seed: int = 0
    """Which images are drawn, or which models rank them; random scenario: seed s draws
    with this number + s."""
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
        if self.scenario in DRAWS and not 0 < self.forget_fraction < 1:
            raise cli.ConfigError(
                f"--forget-fraction {self.forget_fraction:g}: give one between 0 and 1."
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
            "class": self.forget_class,
            "indices": ",".join(
                pathlib.PurePath(name.strip()).stem
                for name in (self.forget_indices or "").split(",")
            ),
        }.get(self.scenario, f"{self.forget_fraction:g}")
        again = "-again" if self.forgotten_indices else ""
        return f"{self._kind}-{detail[:100]}{again}"

    @property
    def recipe_task(self) -> str:
        """Name of the searched recipes; those of one class serve every class."""
        whole = self.scenario in ("class", "indices")
        return f"{self._kind}{'' if whole else f'-{self.forget_fraction:g}'}"

    def draw(
        self, dataset: data.Dataset, seed: int, forgotten: np.ndarray
    ) -> data.Split:
        """The random split of a seed."""
        forget_seed = self.forget_seed + seed
        return data.random_split(dataset, self.forget_fraction, forget_seed, forgotten)

    @property
    def _kind(self) -> str:
        model = self.model if self.width is None else f"{self.model}_{self.width}"
        size = "" if self.train_size is None else f"_{self.train_size}"
        return f"{self.dataset}{size}-{model}-{self.scenario}"


def load_data(config: Config) -> data.Dataset:
    """The data set, as the model wants its pixels, or a part of it."""
    dataset = dataclasses.replace(cli.load_data(config), pixels=config.pixels)
    if config.train_size is None:
        return dataset
    return data.subset(dataset, config.train_size)


def resolve_recipes(config: Config) -> dict[str, Any]:
    """The numbers of every method, and of training under ``"training"``."""
    training = recipes.TRAINING.get(config.dataset, recipes.DEFAULT_TRAINING)
    tasks = [config.recipe_task]
    if config.scenario in DRAWS:  # without a search of its own it takes a random one's
        tasks.append(dataclasses.replace(config, scenario="random").recipe_task)
    searched = recipes.searched(tasks, config.recipes)
    return resolve(config.changes, training, searched)
