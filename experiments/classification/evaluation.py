"""One pass over each split, and every metric of a classifier from its outputs."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.classification.methods.cufg import Difficulty
from experiments.classification.optimisation import Losses
from experiments.data import Dataset, Split
from experiments.data.augment import crop_and_flip, normalise
from experiments.engine.devices import ONE, Devices
from experiments.engine.loop import DivergedError
from experiments.models import Model
from mujax import auditing, curriculum, gradients, methods, metrics

Attack = Literal[
    "confidence", "correctness", "entropy", "modified_entropy", "probabilities"
]
"""What the membership attack looks at: a name in ``auditing.FEATURES``."""


class Outputs(NamedTuple):
    """Probabilities (N, K) and labels (N,) of each split."""

    forget: tuple[np.ndarray, np.ndarray]
    retain: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def cross_entropy_losses(model: Model, dataset: Dataset) -> Losses:
    """Weighted cross-entropy in training mode (augmented) and in evaluation mode."""
    mean, std = dataset.mean, dataset.std

    def outputs(params, model_state, batch, key, *, train):
        images = batch["image"]
        if train and dataset.augment and key is not None:
            crop_key, key = jax.random.split(key)
            images = crop_and_flip(crop_key, images)
        logits, new_state = model.apply(
            params, model_state, normalise(images, mean, std), train=train, key=key
        )
        logits = logits.astype(jnp.float32)
        return methods.Outputs(logits, batch["label"], batch["weight"], new_state)

    def loss(params, model_state, batch, key, *, train):
        ours = outputs(params, model_state, batch, key, train=train)
        log_probs = jax.nn.log_softmax(ours.logits)
        losses = -jnp.take_along_axis(log_probs, ours.labels[:, None], 1)[:, 0]
        return jnp.mean(batch["weight"] * losses), (ours.model_state, None)

    return Losses(
        functools.partial(loss, train=True),
        functools.partial(loss, train=False),
        functools.partial(outputs, train=True),
        functools.partial(outputs, train=False),
        model.init,
        dataset.num_classes,
    )


class Forgetting(NamedTuple):
    """What a difficulty score may look at.

    Attributes:
      loss_fn: the loss in evaluation mode.
      params: of the original model.
      model_state: of the original model.
      forget: the whole forget set as one batch.
      probs: probabilities on it (N, K).
      retain: batches of the retain set.
      key: for random scores.
    """

    loss_fn: methods.LossFn
    params: Any
    model_state: Any
    forget: dict[str, Any]
    probs: np.ndarray
    retain: list[dict[str, Any]]
    key: jax.Array

    @property
    def labels(self) -> Any:
        """True labels of the forget set."""
        return self.forget["label"]

    @property
    def plain_loss(self) -> gradients.LossFn:
        """The loss as ``(params, batch) -> scalar``."""
        return methods.plain_loss(self.loss_fn, self.model_state)


DIFFICULTIES: Mapping[Difficulty, Callable[[Forgetting], Any]] = {
    "confidence": lambda f: curriculum.confidence_difficulty(f.probs, f.labels),
    "el2n": lambda f: curriculum.el2n(f.probs, f.labels),
    "loss": lambda f: curriculum.loss_difficulty(f.probs, f.labels),
    "gradient_norm": lambda f: curriculum.gradient_norm(
        f.plain_loss, f.params, f.forget
    ),
    "gradient_alignment": lambda f: curriculum.gradient_alignment(
        f.plain_loss,
        f.params,
        f.forget,
        gradients.mean_gradient(f.plain_loss, f.params, f.retain),
    ),
    "random": lambda f: curriculum.random_difficulty(f.key, len(f.labels)),
}
"""Difficulty of the forget examples, by the name that a recipe gives."""


class Evaluator:
    """Outputs of a model on the splits of a data set.

    Args:
      model: the classifier.
      dataset: the images.
      devices: each is given its part of the images.
      batch_size: images a step.
    """

    def __init__(
        self,
        model: Model,
        dataset: Dataset,
        devices: Devices = ONE,
        batch_size: int = 256,
    ):
        self.dataset, self.batch_size = dataset, batch_size

        def logits(params, model_state, images):
            x = normalise(devices.split(images), dataset.mean, dataset.std)
            logits, _ = model.apply(params, model_state, x, train=False)
            return devices.everywhere(logits.astype(jnp.float32))

        @jax.jit
        def probabilities(params, model_state, images):
            return jax.nn.softmax(logits(params, model_state, images))

        @jax.jit
        def scores(params, model_state, images, labels):
            stops = np.cumsum([len(part) for part in labels])[:-1]
            probs = probabilities(params, model_state, jnp.concatenate(images))
            return _accuracies(*zip(jnp.split(probs, stops), labels, strict=True))

        self._logits, self._probabilities = jax.jit(logits), probabilities
        self._scores = scores

    def outputs(self, params: Any, model_state: Any, split: Split) -> Outputs:
        """Probabilities on each part."""
        model = self._probabilities, params, model_state
        return Outputs(
            *(
                (self._predict(*model, images, indices), labels[indices])
                for images, labels, indices in self._parts(split)
            )
        )

    def logits(
        self, params: Any, model_state: Any, images: Any, indices: np.ndarray
    ) -> np.ndarray:
        """Logits (N, K) of some images."""
        return self._predict(self._logits, params, model_state, images, indices)

    def accuracies(
        self, params: Any, model_state: Any, split: Split, limit: int
    ) -> dict[str, float]:
        """UA, RA and TA in percent on the first ``limit`` images of each part."""
        some = [(x, y, indices[:limit]) for x, y, indices in self._parts(split)]
        images = [x[indices] for x, _, indices in some]
        labels = [y[indices] for _, y, indices in some]
        return _row(self._scores(params, model_state, images, labels))

    def _parts(self, split: Split):
        """Images, labels and indices of each part."""
        data = self.dataset
        train = data.train_images, data.train_labels
        return (
            (*train, split.forget),
            (*train, split.retain),
            (data.test_images, data.test_labels, split.test),
        )

    def _predict(self, outputs, params, model_state, images, indices) -> np.ndarray:
        """Outputs for some images, in batches of one size, fetched at the end."""
        size, chunks = self.batch_size, []
        for start in range(0, len(indices), size):
            chunk = indices[start : start + size]
            batch = images[np.resize(chunk, size)]
            chunks.append(outputs(params, model_state, batch)[: len(chunk)])
        return np.concatenate(jax.device_get(chunks))


def accuracies(outputs: Outputs) -> dict[str, float]:
    """UA, RA and TA in percent."""
    return _row(_accuracies(*outputs))


def measure(outputs: Outputs, seed: int, attack: Attack) -> dict[str, float]:
    """UA, RA, TA and MIA in percent; the standard error and the draws behind MIA.

    Raises:
      DivergedError: an output is not finite.
    """
    if not all(np.isfinite(probs).all() for probs, _ in outputs):
        raise DivergedError("The model's outputs are no longer finite.")
    # Fits of many images take seconds each, and hardly turn with the draw.
    many = min(len(outputs.retain[1]), len(outputs.test[1])) > 2000
    min_draws, max_draws = (4, 16) if many else (10, 100)
    mia = auditing.mean_forget_efficacy(
        *outputs.retain,
        *outputs.test,
        *outputs.forget,
        feature=auditing.FEATURES[attack],
        seed=seed,
        min_draws=min_draws,
        max_draws=max_draws,
    )
    attacked = {"mia": mia.mean, "mia_error": mia.error, "mia_draws": mia.draws}
    return accuracies(outputs) | attacked


def compare(row: dict[str, float], reference: dict[str, float]) -> dict[str, float]:
    """Average gap and tug-of-war to the Retrain of the same seed."""

    def three(r):
        return 100 - r["ua"], r["ra"], r["ta"]

    return {
        "gap": float(metrics.average_gap(row, reference)),
        "tow": float(metrics.tow(*three(row), reference=three(reference))),
    }


def confidence(outputs: Outputs) -> dict[str, np.ndarray]:
    """Probability of the true class on each split, for histograms."""
    return {
        f"confidence_{name}": auditing.confidence(*pair).astype(np.float32)
        for name, pair in outputs._asdict().items()
    }


@jax.jit
def _accuracies(forget, retain, test):
    """UA, RA and TA; one program, for they are asked for after every epoch."""
    return (
        metrics.unlearning_accuracy(*forget),
        metrics.retain_accuracy(*retain),
        metrics.test_accuracy(*test),
    )


def _row(accuracies: Sequence[Any]) -> dict[str, float]:
    return dict(zip(("ua", "ra", "ta"), map(float, accuracies), strict=True))
