"""A class-conditional diffusion model: its losses, its images, and who judges them.

The classifier is trained on the real training images alone. Its predictions tell
whether a class is still drawn, the features before its last layer how far two sets of
images are apart (Fréchet distance).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.classification import evaluation, recipes
from experiments.classification.optimisation import Optimisation
from experiments.data import Dataset
from experiments.data.augment import normalise
from experiments.engine import loop, study
from experiments.engine.cache import Cache
from experiments.engine.devices import ONE, Devices
from experiments.engine.loop import DivergedError
from experiments.models import Model, build
from mujax import diffusion, labels, methods

DROPPED = 0.1  # conditions replaced by the null condition in training


class Classifier:
    """A small network trained on real images to judge drawn ones.

    Args:
      dataset: the real images.
      examples: its training images and labels, on the device where they fit.
      cache: where it is kept for the next study.
      devices: where the examples lie.
      batch_size: images a step when it judges.
      recipe: how it is trained; None takes the data set's.
    """

    def __init__(
        self,
        dataset: Dataset,
        examples: loop.Examples,
        cache: Cache,
        devices: Devices = ONE,
        batch_size: int = 256,
        recipe: Optimisation | None = None,
    ):
        self.batch_size, self._devices = batch_size, devices
        self._model = build("small_cnn", dataset.num_classes, dataset.input_shape)
        if recipe is None:
            usual = recipes.TRAINING["fashion_mnist"]
            recipe = recipes.TRAINING.get(dataset.name, usual)
        identity = {
            "name": "classifier",
            "dataset": dataset.fingerprint,
            "recipe": dataclasses.asdict(recipe),
        }
        kept = cache.load(identity)
        if kept is None:
            kept = self._train(dataset, examples, recipe)
            cache.save(identity, kept)
        params, model_state = devices.place((kept.params, kept.model_state))
        size = params["dense"]["kernel"].shape[0]
        through = {"kernel": jnp.eye(size), "bias": jnp.zeros(size)}

        @jax.jit
        def see(params, model_state, images):
            x = normalise(devices.split(images), dataset.mean, dataset.std)
            apply = functools.partial(self._model.apply, train=False)
            # The last layer as an identity shows what it would have been given.
            features, _ = apply({**params, "dense": through}, model_state, x)
            logits, _ = apply(params, model_state, x)
            return devices.everywhere((jnp.argmax(logits, axis=-1), features))

        self._see = functools.partial(see, params, model_state)
        classes, _ = self.see(dataset.test_images)
        self.test_accuracy = 100 * float(np.mean(classes == dataset.test_labels))

    def see(
        self, images: np.ndarray, indices: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Classes (N,) and features (N, D) of uint8 images, or of some of them."""
        indices = np.arange(len(images)) if indices is None else indices
        classes, features = [], []
        for start in range(0, len(indices), self.batch_size):
            chunk = indices[start : start + self.batch_size]
            found = self._see(images[np.resize(chunk, self.batch_size)])
            classes.append(np.asarray(found[0])[: len(chunk)])
            features.append(np.asarray(found[1])[: len(chunk)])
        return np.concatenate(classes), np.concatenate(features)

    def _train(
        self, dataset: Dataset, examples: loop.Examples, recipe: Optimisation
    ) -> study.Result:
        everything = np.arange(len(dataset.train_labels))
        feed = loop.Feed(
            examples,
            dataset.num_classes,
            forget=(everything[:1],),
            retain=everything,
            devices=self._devices,
        )
        losses = evaluation.cross_entropy_losses(self._model, dataset)
        steps = -(-len(everything) // recipe.batch_size)
        method = methods.with_data(
            recipes.retrain(recipe, losses, steps), epochs=recipe.epochs
        )
        model = self._model.init(study.random_key("classifier", 0))
        state = loop.run(
            method,
            method.init(*self._devices.place(model)),
            feed,
            batch_size=recipe.batch_size,
            seed=study.run_seed("classifier", 0),
        )
        params, model_state = method.finish(state)
        return study.Result(params, model_state)


class Sampler:
    """Draws uint8 images of given conditions by DDIM with classifier-free guidance.

    Args:
      predict: the noise network, see :mod:`mujax.diffusion`.
      schedule: its noise schedule.
      input_shape: of one image, or of what ``decode`` makes one of.
      null: the null condition, such as the number of classes.
      guidance: strength of the guidance.
      num_steps: evaluations of the guided network.
      devices: each draws its part of the images.
      batch_size: images drawn at once.
      clip: largest value of the signal; None for any.
      decode: makes uint8 images of signals; :func:`to_images` if None.
    """

    def __init__(
        self,
        predict: diffusion.Predict,
        schedule: diffusion.Schedule,
        input_shape: Sequence[int],
        null: int,
        *,
        guidance: float,
        num_steps: int,
        devices: Devices = ONE,
        batch_size: int = 500,
        clip: float | None = 1.0,
        decode: Callable[[jax.Array], jax.Array] | None = None,
    ):
        self.batch_size = batch_size

        def split(params, x, t, condition):
            return predict(params, *devices.split((x, t, condition)))

        @jax.jit
        def draw(params, key, condition):
            x = diffusion.ddim_sample(
                diffusion.guided(split, guidance, null),
                params,
                schedule,
                key,
                condition,
                (batch_size, *input_shape),
                num_steps=num_steps,
                clip=clip,
            )
            finite = jnp.isfinite(x).all()
            return devices.everywhere(((decode or to_images)(x), finite))

        self._draw = draw

    def draw(self, params: Any, key: jax.Array, condition: np.ndarray) -> np.ndarray:
        """Images of the conditions (N,); equal keys start from one noise.

        Raises:
          DivergedError: the network's output is not finite.
        """
        size, images = self.batch_size, []
        for i, start in enumerate(range(0, len(condition), size)):
            chunk = condition[start : start + size]
            wanted = jnp.asarray(np.resize(chunk, size), jnp.int32)
            drawn, finite = self._draw(params, jax.random.fold_in(key, i), wanted)
            if not finite:
                raise DivergedError("The drawn images are no longer finite.")
            images.append(np.asarray(drawn)[: len(chunk)])
        return np.concatenate(images)


def rounds(
    feed: loop.Feed, batch_size: int, seed: int, count: int
) -> list[dict[str, Any]]:
    """The forget set in order, several times; indices tell the noise of each pass."""
    forget = np.concatenate(feed.forget)
    total = len(feed.examples["label"])
    # Of one size, so that the gradient compiles once: the rest is filled up.
    whole = np.resize(forget, -(-len(forget) // batch_size) * batch_size)
    batches = loop.in_order(feed, whole, batch_size)
    return [
        batch | {"index": batch["index"] + (seed * count + i) * total}
        for i in range(count)
        for batch in batches
    ]


def to_signal(images: jax.Array) -> jax.Array:
    """Images in 0 to 255 as the signal in [-1, 1] that is noised."""
    return images.astype(jnp.float32) / 127.5 - 1


def to_images(x: jax.Array) -> jax.Array:
    """The inverse of :func:`to_signal`, rounded to uint8."""
    return jnp.clip(jnp.round((x + 1) * 127.5), 0, 255).astype(jnp.uint8)


def network(model: Model, *, train: bool, key: jax.Array | None) -> diffusion.Predict:
    """A U-Net as the noise network that :mod:`mujax.diffusion` calls."""

    def predict(params, x, t, condition):
        return model.apply(params, {}, (x, t, condition), train=train, key=key)[0]

    return predict


class Losses(NamedTuple):
    """Losses of a noise network, each a ``mujax.methods.LossFn``.

    Attributes:
      noise: of denoising, with conditions dropped.
      guided: of denoising by the guided output, for saliency and bases.
      relabelled: ``noise``, where a changed label's prediction is the target.
      anchored: the original's prediction for the changed label is the target, and
        those for the other classes and the null one are kept; a
        ``mujax.methods.PairLossFn``.
      erase: ESD's, another one.
    """

    noise: Any
    guided: Any
    relabelled: Any
    anchored: Any
    erase: Any


MakeLosses = Callable[..., Losses]
"""Losses for ``forget_weight``, ``anchor`` and ``strength``, each with a default."""


def losses(
    model: Model,
    schedule: diffusion.Schedule,
    *,
    null: int,
    guidance: float,
    mirrored: bool,
    forget_weight: float,
    anchor: float,
    strength: float,
    target: diffusion.Target = diffusion.true_noise,
    signal: Callable[[jax.Array], jax.Array] | None = None,
    others: Callable[[jax.Array, jax.Array, int], jax.Array] = labels.random_labels,
) -> Losses:
    """The losses of a U-Net; a key that is None is drawn from the batch's indices.

    Args:
      model: the U-Net.
      schedule: its noise schedule.
      null: the null condition.
      guidance: strength of the guidance that ``guided`` looks at.
      mirrored: mirror images at random in training.
      forget_weight: of a relabelled example beside a retained one.
      anchor: weight of what ``anchored`` keeps beside what it changes.
      strength: of ESD's guidance.
      target: what the network answers, the noise or the velocity.
      signal: makes what is noised of a batch's images; :func:`to_signal` if None.
      others: ``(key, conditions, null) -> conditions`` that ``anchored`` keeps.
    """

    def prepare(batch, key, train):
        if key is None:
            key = jax.random.fold_in(jax.random.key(0), batch["index"][0])
        key, net_key, flip_key, drop_key = jax.random.split(key, 4)
        x0 = (signal or to_signal)(batch["image"])
        if train and mirrored:
            flipped = jax.random.bernoulli(flip_key, shape=(len(x0), 1, 1, 1))
            x0 = jnp.where(flipped, x0[:, :, ::-1], x0)
        return x0, network(model, train=train, key=net_key), key, drop_key

    def mean(loss_fn, *arguments, model_state, weights):
        loss = loss_fn(*arguments, weights=weights, pixel_reduction=jnp.mean)
        return loss, (model_state, None)

    def noise(params, model_state, batch, key):
        x0, predict, key, drop_key = prepare(batch, key, train=True)
        condition = diffusion.drop_condition(
            drop_key, batch["true_label"], DROPPED, null
        )
        return mean(
            functools.partial(diffusion.noise_loss, target=target),
            *(predict, params, schedule, x0, condition, key),
            model_state=model_state,
            weights=batch["weight"],
        )

    def guided(params, model_state, batch, key):
        x0, predict, key, _ = prepare(batch, key, train=False)
        predict = diffusion.guided(predict, guidance, null)
        return mean(
            functools.partial(diffusion.noise_loss, target=target),
            *(predict, params, schedule, x0, batch["true_label"], key),
            model_state=model_state,
            weights=batch["weight"],
        )

    def relabelled(params, model_state, batch, key):
        x0, predict, key, drop_key = prepare(batch, key, train=True)
        new, true = batch["label"], batch["true_label"]
        changed = new != true
        share = jnp.where(changed, 0.0, DROPPED)
        condition = diffusion.drop_condition(drop_key, true, share, null)
        return mean(
            functools.partial(diffusion.relabel_loss, target=target),
            *(predict, params, schedule, x0, condition, new, changed, key),
            model_state=model_state,
            weights=batch["weight"] * jnp.where(changed, forget_weight, 1.0),
        )

    def anchored(params, original, model_state, batch, key):
        x0, predict, key, drop_key = prepare(batch, key, train=True)
        true, new = batch["true_label"], batch["label"]
        label_key, drop_key = jax.random.split(drop_key)
        other = others(label_key, true, null)
        other = diffusion.drop_condition(drop_key, other, DROPPED, null)

        def match(condition, target):
            return mean(
                functools.partial(diffusion.match_loss, teacher_params=original),
                *(predict, params, schedule, x0, condition, target, key),
                model_state=model_state,
                weights=batch["weight"],
            )

        (changed, rest), (kept, _) = match(true, new), match(other, other)
        return changed + anchor * kept, rest

    def erase(params, original, model_state, batch, key):
        x0, predict, key, _ = prepare(batch, key, train=True)
        true = batch["true_label"]
        return mean(
            functools.partial(diffusion.erase_loss, strength=strength),
            *(predict, params, original, schedule, x0, true, null, key),
            model_state=model_state,
            weights=batch["weight"],
        )

    return Losses(noise, guided, relabelled, anchored, erase)
