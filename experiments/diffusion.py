"""Forget a class in a diffusion model, beside Retrain.

``python -m experiments.diffusion`` trains a class-conditional DDPM on digits and two
Retrains that never saw the class, unlearns it by every method, draws images, and leaves
a folder with results, image grids, checkpoints and a report. Run again it computes what
is missing; trained models are kept for other studies.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import (
    bench,
    cli,
    data,
    figures,
    generation,
    loop,
    recipes,
    report,
    study,
    summary,
)
from experiments.bench import Measured, Page
from experiments.cache import Cache
from experiments.models import from_nnx
from experiments.models.unet import unet_for
from experiments.recipes import field
from experiments.report import MethodNote
from experiments.store import Store
from experiments.summary import Column
from mujax import diffusion, labels, methods, transforms

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
class Recipe:
    """Numbers of one run; a method reads those that it has a use for."""

    learning_rate: float = field(1e-3, "Peak learning rate of Adam.")
    epochs: int = field(5, "Epochs.")
    batch_size: int = field(64, "Examples a step.")
    cosine: bool = field(False, "Let the learning rate fall to zero along a cosine.")
    density: float = field(0.5, "SalUn: share of the parameters that may move.")
    forget_weight: float = field(
        1.0, "Relabelling: weight of a relabelled example beside a retained one."
    )
    next_class: bool = field(
        True,
        "Relabelling: the next class (the released rule), not any other (the paper's).",
    )
    energy: float = field(
        0.95, "SEMU: share of the squared singular values that the bases reach."
    )
    strength: float = field(1.0, "ESD: how far beyond the null condition to go.")
    threshold: float = field(-1.0, "UFG: cosine above which the corrector fires.")
    correction: float = field(1.0, "UFG: weight of the forgetting direction.")


Overrides: Any = cli.overrides(Recipe)
AS_CHOSEN = Overrides()


@dataclasses.dataclass(frozen=True)
class Config(cli.StudyConfig):
    """Forget a class in a diffusion model, beside Retrain."""

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
    train: Overrides = AS_CHOSEN  # pyright: ignore[reportInvalidTypeForm]
    """Recipe of the original model and of Retrain; None keeps the data set's own."""
    recipe: Overrides = AS_CHOSEN  # pyright: ignore[reportInvalidTypeForm]
    """Recipe of the methods; None keeps the chosen value of each."""

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
DROPPED = 0.1  # conditions replaced by the null condition in training


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(Config, unlearn, "experiments.diffusion", arguments)


def unlearn(config: Config) -> None:
    """Runs the study that a configuration describes, or what of it is missing."""
    chosen = cli.choose(config.methods, METHODS)
    dataset = cli.load_data(config)
    split = data.class_split(dataset, config.forget_class)
    numbers = resolve_recipes(config)
    task = Generation(config, dataset, split)
    bench.run_study("experiments.diffusion", config, task, numbers, chosen)


def resolve_recipes(config: Config) -> dict[str, Recipe]:
    """The numbers of every method, and of training under ``"training"``."""
    training = TRAINING.get(config.dataset, TRAINING["cifar10"])
    return {"training": cli.override(training, config.train, "train")} | {
        name: cli.override(RECIPES.get(name, Recipe()), config.recipe, "recipe")
        for name in METHODS
    }


class Losses(NamedTuple):
    """Losses of the U-Net, each a ``mujax.methods.LossFn`` (``erase``: with pairs)."""

    noise: Any
    guided: Any
    relabelled: Any
    erase: Any


class Generation:
    """Forgetting a class in a diffusion model: a :class:`bench.Task`.

    Args:
      config: the U-Net's width and how to draw.
      dataset: the images.
      split: the forgotten class and the others.
    """

    columns, gap = COLUMNS, "frechet_retrain"

    def __init__(self, config: Config, dataset: data.Dataset, split: data.Split):
        self.config, self.dataset, self.split = config, dataset, split
        self.forgotten = int(dataset.train_labels[split.forget[0]])
        shape, classes = dataset.input_shape, dataset.num_classes
        self.model = from_nnx(
            unet_for, num_classes=classes, input_shape=shape, width=config.width
        )
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
            examples = jax.tree.map(jnp.asarray, examples)
        self.feed = loop.Feed(
            examples,
            classes,
            forget=(split.forget,),
            retain=split.retain,
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
        )

    @functools.cached_property
    def classifier(self) -> generation.Classifier:
        """Judges what is drawn; trained when the first drawing is there."""
        cache = Cache(self.config.cache)
        return generation.Classifier(self.dataset, self.feed.examples, cache)

    @functools.cached_property
    def real_features(self) -> np.ndarray:
        """Features of the real images of the other classes."""
        return self.classifier.see(self.dataset.train_images, self.split.retain)[1]

    @property
    def notes(self) -> Mapping[str, MethodNote]:
        """Label, paper and a line on each method."""
        return NOTES

    def for_seed(self, seed: int) -> Self:
        """All seeds forget the same class."""
        del seed
        return self

    def init(self, key: Any) -> tuple[Any, Any]:
        """New parameters and (empty) model state."""
        return self.model.init(key)

    def build(self, name: str, recipe: Recipe, steps: int) -> methods.Method:
        """A method or the training of a baseline."""
        rate: Any = recipe.learning_rate
        if recipe.cosine:
            rate = optax.cosine_decay_schedule(rate, max(1, steps * recipe.epochs))
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
        make = METHODS.get(name, _retrain)
        method = make(
            recipe, self.losses(recipe.forget_weight, recipe.strength), optimizer
        )
        if method.data_use.relabel is None or not recipe.next_class:
            return method
        return methods.with_data(method, relabel=_next_class)

    def forget_batches(self, batch_size: int, seed: int = 0) -> list[Any]:
        """The forget set in order, several times with other noise."""
        forget, count = self.split.forget, len(self.dataset.train_labels)
        # Of one size, so that the gradient compiles once: the rest is filled up.
        whole = np.resize(forget, -(-len(forget) // batch_size) * batch_size)
        batches = loop.in_order(self.feed, whole, batch_size)
        return [
            batch | {"index": batch["index"] + (seed * ROUNDS + i) * count}
            for i in range(ROUNDS)
            for batch in batches
        ]

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
            if row["status"] != "ok":
                continue
            name, seed = row["method"], row["seed"]
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

    @functools.lru_cache(maxsize=16)  # noqa: B019 (one task a process)
    def losses(self, forget_weight: float = 1.0, strength: float = 1.0) -> Losses:
        """The U-Net's losses; a key that is None is drawn from the batch's indices.

        Equal arguments give the same functions, so that what they compile is shared.

        Args:
          forget_weight: of a relabelled example beside a retained one.
          strength: of ESD's guidance.
        """
        schedule, null = self.schedule, self.dataset.num_classes
        mirrored = self.dataset.augment

        def prepare(batch, key, train):
            if key is None:
                key = jax.random.fold_in(jax.random.key(0), batch["index"][0])
            key, net_key, flip_key = jax.random.split(key, 3)
            x0 = generation.to_signal(batch["image"])
            if train and mirrored:
                flipped = jax.random.bernoulli(flip_key, shape=(len(x0), 1, 1, 1))
                x0 = jnp.where(flipped, x0[:, :, ::-1], x0)
            predict = generation.network(self.model, train=train, key=net_key)
            return x0, predict, key

        def noise(params, model_state, batch, key):
            x0, predict, key = prepare(batch, key, train=True)
            key, drop_key = jax.random.split(key)
            condition = diffusion.drop_condition(
                drop_key, batch["true_label"], DROPPED, null
            )
            loss = diffusion.noise_loss(
                predict,
                params,
                schedule,
                x0,
                condition,
                key,
                weights=batch["weight"],
                pixel_reduction=jnp.mean,
            )
            return loss, (model_state, None)

        def guided(params, model_state, batch, key):
            x0, predict, key = prepare(batch, key, train=False)
            loss = diffusion.noise_loss(
                diffusion.guided(predict, self.config.guidance, null),
                params,
                schedule,
                x0,
                batch["true_label"],
                key,
                weights=batch["weight"],
                pixel_reduction=jnp.mean,
            )
            return loss, (model_state, None)

        def relabelled(params, model_state, batch, key):
            x0, predict, key = prepare(batch, key, train=True)
            key, drop_key = jax.random.split(key)
            changed = batch["label"] != batch["true_label"]
            condition = diffusion.drop_condition(
                drop_key, batch["true_label"], jnp.where(changed, 0.0, DROPPED), null
            )
            loss = diffusion.relabel_loss(
                predict,
                params,
                schedule,
                x0,
                condition,
                batch["label"],
                changed,
                key,
                weights=batch["weight"] * jnp.where(changed, forget_weight, 1.0),
                pixel_reduction=jnp.mean,
            )
            return loss, (model_state, None)

        def erase(params, original, model_state, batch, key):
            x0, predict, key = prepare(batch, key, train=True)
            loss = diffusion.erase_loss(
                predict,
                params,
                original,
                schedule,
                x0,
                batch["true_label"],
                null,
                key,
                strength=strength,
                weights=batch["weight"],
                pixel_reduction=jnp.mean,
            )
            return loss, (model_state, None)

        return Losses(noise, guided, relabelled, erase)

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


SHOWN, ROUNDS = 6, 4
Build = Callable[[Recipe, Losses, optax.GradientTransformation], methods.Method]


def _next_class(key, own, num_classes):
    del key
    return labels.next_label(own, num_classes)


def _retrain(recipe, losses, optimizer):
    return methods.retrain(losses.noise, optimizer)


def _salun(recipe, losses, optimizer, **options):
    return methods.salun(
        losses.relabelled,
        optimizer,
        fraction=recipe.density,
        eval_loss_fn=losses.guided,
        joint=True,
        **options,
    )


def _random_scores(loss_fn, params, batches):
    """Saliency that knows nothing: the control that tells whether saliency matters."""
    del loss_fn
    leaves, structure = jax.tree.flatten(params)
    key = jax.random.fold_in(jax.random.key(1), batches[0]["index"][0])
    keys = jax.random.split(key, len(leaves))
    scores = [
        jax.random.uniform(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, scores)


def _semu(recipe, losses, optimizer, *, method):
    return method(
        losses.relabelled,
        optimizer,
        energy=recipe.energy,
        basis_loss_fn=losses.guided,
    )


def _ufg(recipe, losses, optimizer):
    # The two gradients are nearly opposite here, so that the published divisor, the
    # norm of their unweighted sum, is close to zero and blows single steps up.
    combine = transforms.correct_updates(
        recipe.threshold, recipe.correction, weighted_norm=True
    )
    return methods.ufg(losses.noise, optimizer, combine=combine, sampled=True)


METHODS: dict[str, Build] = {
    "gradient_ascent": lambda recipe, losses, tx: methods.gradient_ascent(
        losses.noise, tx
    ),
    "finetune": lambda recipe, losses, tx: methods.finetune(losses.noise, tx),
    "random_label": lambda recipe, losses, tx: methods.random_label(
        losses.relabelled, tx, joint=True
    ),
    "salun": _salun,
    "random_mask": functools.partial(_salun, score=_random_scores),
    "semu": functools.partial(_semu, method=methods.semu),
    "semu_retain": functools.partial(_semu, method=methods.semu_retain),
    "esd": lambda recipe, losses, tx: methods.esd(losses.erase, tx),
    "ufg": _ufg,
}

TRAINING: Mapping[str, Recipe] = {
    "digits": Recipe(learning_rate=2e-3, epochs=50, batch_size=64, cosine=True),
    "fashion_mnist": Recipe(learning_rate=1e-3, epochs=10, batch_size=64, cosine=True),
    "cifar10": Recipe(learning_rate=2e-4, epochs=500, batch_size=128),
}
"""Recipe of the original model and of Retrain, by data set."""

_RELABELLING = Recipe(learning_rate=2e-3, epochs=3)
RECIPES: Mapping[str, Recipe] = {
    "gradient_ascent": Recipe(learning_rate=4e-4, epochs=4),
    "finetune": Recipe(epochs=3),
    "random_label": _RELABELLING,
    "salun": _RELABELLING,
    "random_mask": _RELABELLING,
    "semu": Recipe(learning_rate=8e-4, epochs=8, energy=0.8),
    "semu_retain": Recipe(learning_rate=3e-3, epochs=4, energy=0.8),
    "esd": Recipe(learning_rate=3e-4, epochs=6),
    "ufg": Recipe(epochs=3, correction=0.3),
}
"""Recipes of the methods where they are not the defaults; chosen by hand on seed 0."""

NOTES: Mapping[str, MethodNote] = {
    **recipes.NOTES,
    "random_mask": MethodNote(
        "Random mask", "", "SalUn with a random mask of the same density: the control."
    ),
    "esd": MethodNote(
        "ESD",
        "arXiv:2303.07345",
        "Answers the class as the original, guided away from it, would.",
    ),
}


if __name__ == "__main__":
    sys.exit(main())
