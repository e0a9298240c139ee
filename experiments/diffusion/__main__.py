"""Forget a class in a diffusion model, beside Retrain.

``python -m experiments.diffusion`` trains a class-conditional DDPM on digits and two
Retrains that never saw the class, unlearns it by every method, draws images, and leaves
a folder with results, image grids, checkpoints and a report. Run again it computes what
is missing; trained models are kept for other studies.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from experiments import data
from experiments.diffusion import generation, recipes
from experiments.diffusion.methods import METHODS
from experiments.diffusion.optimisation import Optimisation
from experiments.diffusion.unet import unet_for
from experiments.engine import bench, cli, loop, study
from experiments.engine.cache import Cache
from experiments.engine.devices import Devices
from experiments.engine.store import Store
from experiments.engine.task import Measured, Page
from experiments.models import from_nnx
from experiments.models.precision import computing_in
from experiments.reporting import figures, report, summary
from experiments.reporting.summary import Column
from mujax import diffusion, methods

COLUMNS = (
    Column(
        "ua",
        "UA",
        "%",
        1,
        description="Images drawn for the forgotten class that the classifier calls "
        "another class.",
    ),
    Column(
        "retained_accuracy",
        "Retained",
        "%",
        1,
        description="Images drawn for the other classes that it calls by their class.",
    ),
    Column(
        "frechet_retained",
        "Fréchet",
        "",
        2,
        description="Fréchet distance of the other classes' images to real ones.",
    ),
    Column(
        "frechet_retrain",
        "Distance",
        "",
        2,
        reference=False,
        description="Fréchet distance of the other classes' images to Retrain's, by "
        "seed.",
    ),
    Column(
        "frechet_forgotten",
        "On forgotten",
        "",
        1,
        reference=False,
        description="Fréchet distance between what is drawn for the forgotten class "
        "and what Retrain draws for it, by seed.",
    ),
    Column(
        "seconds", "Time", "s", 1, reference=False, description="Without compilation."
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
params = ocp.StandardCheckpointer().restore(path)["params"]"""


@dataclasses.dataclass(frozen=True)
class Config(cli.StudyConfig):
    """Forget a class in a diffusion model, beside Retrain.

    Examples:
      python -m experiments.diffusion
      python -m experiments.diffusion --forget-class 3 --methods semu,esd --seeds 1
      python -m experiments.diffusion --methods salun --salun.density 0.2
      python -m experiments.diffusion --help-method salun
    """

    HEADING: ClassVar[str] = "diffusion"
    METHODS: ClassVar = METHODS
    TRAINING: ClassVar = Optimisation

    seeds: int = 3
    """Number of seeds, from 0."""
    trainings: int = 1
    """Trainings of the original and of each Retrain; 0 redoes them for every seed."""
    forget_class: str = "0"
    """Name or number of the class to forget."""
    width: int | None = None
    """Channels of the U-Net's first level; None takes the data set's own."""
    guidance: float = 2.0
    """Strength of classifier-free guidance when drawing."""
    sampling_steps: int = 12
    """DDIM steps of a drawing."""
    samples: int = 30
    """Images drawn of each remaining class."""
    forgotten_samples: int = 130
    """Images drawn of the forgotten class."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("samples", "forgotten_samples"):
            if getattr(self, name) < 2:
                flag = name.replace("_", "-")
                raise cli.ConfigError(
                    f"--{flag} {getattr(self, name)}: give at least 2."
                )
        if not 1 <= self.sampling_steps <= SCHEDULE_STEPS:
            raise cli.ConfigError(
                f"--sampling-steps {self.sampling_steps}: give 1 to {SCHEDULE_STEPS}."
            )

    @property
    def task(self) -> str:
        """Name of the task, for the default folder."""
        return f"diffusion-{self.dataset}-{self.forget_class}"


SCHEDULE_STEPS = 1000
SHOWN, ROUNDS = 6, 4  # images of a class in a record; passes with other noise


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(Config, unlearn, "experiments.diffusion", arguments)


def unlearn(config: Config) -> None:
    """Runs the study that a configuration describes, or what of it is missing."""
    chosen = cli.chosen(config)
    dataset = cli.load_data(config)
    if len(data.class_numbers(dataset, config.forget_class)) > 1:
        raise cli.ConfigError(
            f"--forget-class {config.forget_class}: a diffusion model forgets one "
            "class here. Give one."
        )
    split = data.class_split(dataset, config.forget_class)
    numbers = resolve_recipes(config)
    task = Generation(config, dataset, split)
    bench.run_study("experiments.diffusion", config, task, numbers, chosen)


def resolve_recipes(config: Config) -> dict[str, Any]:
    """The numbers of every method, and of training under ``"training"``."""
    training = recipes.TRAINING.get(config.dataset, recipes.TRAINING["cifar10"])
    chosen = {name: method.Recipe() for name, method in METHODS.items()}
    return recipes.resolve(config.changes, training, chosen)


class Generation:
    """Forgetting a class in a diffusion model: a ``task.Task``.

    Args:
      config: the U-Net's width and how to draw.
      dataset: the images.
      split: the forgotten class and the others.
    """

    columns, gap, keeps_models = COLUMNS, "frechet_retrain", True
    notes = recipes.NOTES

    def __init__(self, config: Config, dataset: data.Dataset, split: data.Split):
        self.config, self.dataset, self.split = config, dataset, split
        devices = Devices.choose(config.devices, config.shard_parameters)
        self.forgotten = int(dataset.train_labels[split.forget[0]])
        shape, classes = dataset.input_shape, dataset.num_classes
        model = from_nnx(
            unet_for, num_classes=classes, input_shape=shape, width=config.width
        )
        self.model = computing_in(model, config.precision)
        self.identity = {
            "model": "unet",
            "width": config.width,
            "dataset": dataset.fingerprint,
        }
        examples = {
            "image": dataset.train_images,
            "label": dataset.train_labels,
            "index": np.arange(len(dataset.train_labels), dtype=np.int32),
        }
        if dataset.train_images.nbytes <= 1e9 * config.memory:
            examples = devices.everywhere(jax.tree.map(jnp.asarray, examples))
        self.feed = loop.Feed(
            examples,
            classes,
            forget=(split.forget,),
            retain=split.retain,
            scan=jax.default_backend() != "cpu",  # see unet_for
            devices=devices,
        )
        self.schedule = diffusion.linear_schedule(SCHEDULE_STEPS)
        remaining = np.delete(np.arange(classes), self.forgotten)
        forgotten = np.full(config.forgotten_samples, self.forgotten)
        self.drawn = np.concatenate([np.repeat(remaining, config.samples), forgotten])
        self.sampler = generation.Sampler(
            generation.network(self.model, train=False, key=None),
            self.schedule,
            shape,
            classes,
            guidance=config.guidance,
            num_steps=config.sampling_steps,
            batch_size=min(500, len(self.drawn)),
            devices=devices,
        )

        @functools.lru_cache(maxsize=16)  # equal functions share what they compile
        def made(forget_weight: float, anchor: float, strength: float):
            return generation.losses(
                self.model,
                self.schedule,
                null=classes,
                guidance=config.guidance,
                mirrored=dataset.augment,
                forget_weight=forget_weight,
                anchor=anchor,
                strength=strength,
            )

        self._made = made

    def losses(
        self, forget_weight: float = 1.0, anchor: float = 3.0, strength: float = 1.0
    ) -> generation.Losses:
        """The losses of the U-Net, see :func:`generation.losses`."""
        weights = forget_weight, anchor, strength
        if any(isinstance(weight, Tracer) for weight in weights):
            return self._made.__wrapped__(*weights)  # known to one program alone
        return self._made(*weights)

    @functools.cached_property
    def classifier(self) -> generation.Classifier:
        """Judges what is drawn; trained when the first drawing is there."""
        cache = Cache(self.config.cache)
        return generation.Classifier(
            self.dataset, self.feed.examples, cache, self.feed.devices
        )

    @functools.cached_property
    def real_features(self) -> np.ndarray:
        """Features of the real images of the other classes."""
        return self.classifier.see(self.dataset.train_images, self.split.retain)[1]

    def for_seed(self, seed: int) -> Self:
        """All seeds forget the same class."""
        del seed
        return self

    def init(self, key: Any) -> tuple[Any, Any]:
        """New parameters and (empty) model state."""
        return self.model.init(key)

    def build(self, name: str, recipe: Any, steps: int) -> methods.Method:
        """A method or the training of a baseline."""
        make = METHODS[name].build if name in METHODS else recipes.retrain
        return make(recipe, self.losses, steps)

    def forget_batches(self, batch_size: int, seed: int = 0) -> list[Any]:
        """The forget set in order, several times with other noise."""
        return generation.rounds(self.feed, batch_size, seed, ROUNDS)

    def stages(self, original: Any, recipe: Any, seed: int) -> tuple[np.ndarray, ...]:
        """No method here has stages."""
        raise AssertionError("No method here has stages.")

    def curve(self, params: Any, model_state: Any) -> Mapping[str, float]:
        """Nothing beside the loss: drawing takes longer than an epoch."""
        del params, model_state
        return {}

    def measure(self, params: Any, model_state: Any, seed: int) -> Measured:
        """UA, accuracy and Fréchet distance on drawn images, and some to look at."""
        del model_state
        wanted, classes = self.drawn, self.dataset.num_classes
        images = self.sampler.draw(params, study.random_key("samples", seed), wanted)
        seen, features = self.classifier.see(images)
        ours = wanted != self.forgotten
        row = {
            "ua": 100 * float(np.mean(seen[~ours] != self.forgotten)),
            "retained_accuracy": 100 * float(np.mean(seen[ours] == wanted[ours])),
            "frechet_retained": diffusion.frechet_distance(
                features[ours], self.real_features
            ),
        }
        shown = [images[wanted == c][:SHOWN] for c in range(classes)]
        some = min(map(len, shown))
        return Measured(
            row,
            {
                "images": np.stack([part[:some] for part in shown]),
                "retrain_features": features[ours],
                "forgotten_features": features[~ours],
            },
        )

    def compare(self, ours: Measured, reference: Measured) -> Mapping[str, float]:
        """Fréchet distances to what Retrain draws."""

        def distance(part):
            pair = (m.record[f"{part}_features"] for m in (ours, reference))
            return max(0.0, diffusion.frechet_distance(*pair))

        return {f"frechet_{part}": distance(part) for part in ("retrain", "forgotten")}

    def page(self, store: Store, estimates: summary.Summary) -> Page:
        """What was forgotten, who judged, image grids and plots."""
        names = estimates.method_labels
        images, losses = {}, {}
        for row in store.rows:
            name, seed = row["method"], row["seed"]
            if row["status"] != "ok" or not store.has_record(name, seed):
                continue
            record = store.record(name, seed)
            images.setdefault(name, record["images"])
            if "loss" in record:
                epochs = np.arange(1, len(record["loss"]) + 1)
                losses[name, seed] = {"epoch": epochs, **record}
        classes = self.dataset.classes
        shown = (
            report.Figure(
                "samples",
                "What each model draws",
                f"A column a class; the framed one ({classes[self.forgotten]}) had to "
                "be forgotten. All models start from the same noise. First seed.",
                lambda: figures.image_grids(images, names, classes, self.forgotten),
            ),
            report.Figure(
                "metrics",
                "UA, retained accuracy and Fréchet distance against Retrain",
                "Retrain never saw the class; it still draws something for it.",
                lambda: figures.metric_comparison(estimates),
            ),
            report.Figure(
                "distance",
                "Distance to Retrain on the other classes",
                "Fréchet distance to what Retrain draws. Below the noise floor, the "
                "distance between two Retrains, differences mean nothing.",
                lambda: figures.gap_chart(estimates),
            ),
            report.Figure(
                "loss",
                "Loss by epoch",
                "Objectives differ between methods.",
                lambda: figures.curves(
                    losses, names, series=("loss",), label="Loss", share_y=False
                ),
            ),
        )
        path = bench.example_checkpoint(store)
        return Page(
            f"Forgetting in a diffusion model: {self.config.task}",
            self._describe(store),
            shown,
            LOADING.format(path=path),
        )

    def _describe(self, store: Store) -> str:
        """What was forgotten and who judged, in a few sentences."""
        row = store.row("original", 0) or {}
        accuracy = row.get("retained_accuracy")
        original = f" and {accuracy:.1f} % on the original's images" if accuracy else ""
        name = self.dataset.classes[self.forgotten]
        shared = ""
        if 0 < self.config.trainings < self.config.seeds:
            shared = (
                " Intervals are over seeds of unlearning and of drawing; "
                f"{self.config.trainings} training of the original and of each Retrain "
                "serves them all."
            )
        return (
            f"A class-conditional DDPM trained on {self.config.dataset} had to forget "
            f"the class {name}. Every method starts from the same original and is "
            "compared with Retrain, which never saw the class. A held-out classifier "
            "judges what is "
            f"drawn: {self.classifier.test_accuracy:.1f} % right on real test images"
            f"{original} of the other classes.{shared}"
        )


if __name__ == "__main__":
    cli.leave(main())
