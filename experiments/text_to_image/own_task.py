"""Forgetting in a person's own pipeline: losses, what is fed, and what is measured.

The U-Net is trained in latent space, with the pipeline's schedule and kind of
prediction; the text encoder and the autoencoder stay as they are. A picture is one
latent, whichever prompt it is shown with. There is no Retrain: what is measured is how
far drawings move from the original's, which start from the same noise.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.diffusion import generation
from experiments.engine import loop
from experiments.engine.devices import Devices
from experiments.models.border import Model
from experiments.reporting.summary import Column
from experiments.text_to_image import concept
from experiments.text_to_image.methods import METHODS as ALL
from experiments.text_to_image.methods import uce
from experiments.text_to_image.own_concepts import Prompts
from experiments.text_to_image.own_pictures import Artist
from experiments.text_to_image.pipeline import Networks
from mujax import diffusion, methods

METHODS = {name: method for name, method in ALL.items() if method is not uce}
"""Methods that learn from pictures; UCE edits what the small pipeline reads alone."""

_RELABELLED = dict(forget_weight=2.0)  # SalUn's α of 0.5 beside it
NUMBERS: Mapping[str, Mapping[str, Any]] = {
    "random_label": _RELABELLED,
    "salun": _RELABELLED,
    "random_mask": _RELABELLED,
    "smallest_mask": _RELABELLED,
    "esd": dict(epochs=10),
}
"""What differs from 5 epochs of Adam at 1e-5 in steps of 8, as SalUn's program has."""


def _relative(key: str, label: str, what: str) -> Column:
    """A distance in units of what another noise to start from changes."""
    text = f"{what}, as a multiple of the distance between two seeds of the original."
    return Column(key, label, "", 3, reference=False, description=text)


COLUMNS = (
    _relative(
        "forgotten",
        "Forgotten",
        "Distance from the original's drawings for the forgotten prompts: 0 has "
        "changed nothing, 1 is as different as another seed",
    ),
    _relative("paraphrased", "Paraphrases", "The same for their paraphrases"),
    _relative(
        "to_target",
        "To target",
        "Distance of drawings for the forgotten prompts to those that the original "
        "makes for the target from the same noise",
    ),
    _relative(
        "retained",
        "Retained",
        "Distance from the original's drawings for the prompts to keep; the smaller, "
        "the better",
    ),
    Column(
        "moved",
        "Moved",
        "",
        4,
        reference=False,
        description="Share of the U-Net's parameters whose value in the new folder is "
        "another one.",
    ),
    Column(
        "trainable_fraction",
        "Trainable",
        "",
        4,
        reference=False,
        description="Share of the U-Net's parameters that the method may move; cores "
        "count as they are, and each moves a whole kernel.",
    ),
    Column(
        "seconds", "Time", "s", 1, reference=False, description="Without compilation."
    ),
)


def recipes() -> dict[str, Any]:
    """A recipe for every method."""
    usual = dict(learning_rate=1e-5, epochs=5, batch_size=8)
    return {
        name: method.Recipe(**{**usual, **NUMBERS.get(name, {})})
        for name, method in METHODS.items()
    }


class OwnPipeline:
    """What a study needs of a pipeline.

    Args:
      model: its networks.
      prompts: the texts by number.
      states: of the texts, (P, L, D).
      latents: by the number of their prompt, each (n, h, w, 4).
      guidance: as Stable Diffusion counts it, for losses of the guided output.
      devices: where examples lie.
    """

    def __init__(
        self,
        model: Networks,
        prompts: Prompts,
        states: np.ndarray,
        latents: Mapping[int, np.ndarray],
        guidance: float,
        devices: Devices,
    ):
        self.prompts = prompts
        labels = np.repeat(
            np.array(list(latents), np.int32), [len(x) for x in latents.values()]
        )
        examples = {
            "image": np.concatenate(list(latents.values())).astype(np.float32),
            "label": labels,
            "index": np.arange(len(labels), dtype=np.int32),
        }
        forgotten = np.isin(labels, prompts.forgotten)
        self.feed = loop.Feed(
            devices.everywhere(jax.tree.map(jnp.asarray, examples)),
            len(prompts.texts),
            forget=(np.flatnonzero(forgotten).astype(np.int32),),
            retain=np.flatnonzero(~forgotten).astype(np.int32),
            scan=jax.default_backend() != "cpu",  # convolutions are slow in loops
            devices=devices,
        )

        def apply(params, model_state, x, *, train, key=None):
            del train, key  # nothing is dropped in a U-Net of this kind
            noised, t, numbers = x
            context = jnp.asarray(states)[numbers]
            return model.predict({"unet": params}, noised, t, context), model_state

        def init(key):
            del key
            raise AssertionError("A pipeline comes with its parameters.")

        targets = {
            "epsilon": diffusion.true_noise,
            "v_prediction": diffusion.velocity,
        }
        kept = np.array(prompts.retained or [prompts.null], np.int32)
        self.losses = functools.partial(
            _losses,
            Model(init, apply),
            model.schedule,
            null=prompts.null,
            guidance=guidance - 1,
            mirrored=False,
            target=targets[model.prediction],
            signal=lambda latents: latents,
            others=concept.others(kept),
        )

    def build(self, name: str, recipe: Any) -> methods.Method:
        """A method that knows the steps of its epochs."""
        make = METHODS[name].build
        use = make(recipe, self.losses, 1).data_use
        steps = loop.steps_per_epoch(use, self.feed, recipe.batch_size)
        method = make(recipe, self.losses, steps)
        method = methods.with_data(method, epochs=recipe.epochs)
        if use.relabel is None:
            return method
        instead = {own: [other] for own, other in self.prompts.target.items()}
        return methods.with_data(method, relabel=concept.relabelling(instead, True))

    def forget_batches(self, batch_size: int) -> list[Any]:
        """All pictures of the concept in order, once."""
        return generation.rounds(self.feed, batch_size, 0, 1)


def _losses(
    model: Model,
    schedule: diffusion.Schedule,
    forget_weight: float = 1.0,
    anchor: float = 3.0,
    strength: float = 1.0,
    **options: Any,
) -> generation.Losses:
    """The losses of a U-Net, see :func:`generation.losses`."""
    return generation.losses(
        model,
        schedule,
        forget_weight=forget_weight,
        anchor=anchor,
        strength=strength,
        **options,
    )


def unmet(name: str, recipe: Any, prompts: Prompts) -> str | None:
    """What a method needs and was not given, or None.

    Example:
      >>> from experiments.text_to_image.own_concepts import Concept
      >>> prompts = Prompts([Concept(("a cat",))])
      >>> unmet("esd", recipes()["esd"], prompts)
      >>> unmet("salun", recipes()["salun"], prompts)
      'it shows the pictures with the target prompt: give --target'
    """

    def no_losses(**_):
        nothing = lambda *_: None  # noqa: E731
        return generation.Losses(*[nothing] * len(generation.Losses._fields))

    use = METHODS[name].build(recipe, no_losses, 1).data_use
    if use.relabel is not None and set(prompts.forgotten) - prompts.target.keys():
        return "it shows the pictures with the target prompt: give --target"
    reads = {part for pass_ in use.passes for part in pass_}
    if methods.RETAIN in reads and not prompts.retained:
        return "it learns from pictures of what is kept: give --retain"
    anchored = "anchor" in {field.name for field in dataclasses.fields(recipe)}
    if anchored and not prompts.retained:
        return "it keeps the answers to other prompts: give --retain"
    return None


class Drawings:
    """Draws before and after, and says how far apart they are.

    Args:
      artist: who draws.
      prompts: for what.
      samples: drawings for each prompt.
    """

    def __init__(self, artist: Artist, prompts: Prompts, samples: int):
        self._artist, self._samples, self.prompts = artist, samples, prompts
        targets = [prompts.target[n] for n in prompts.asked if n in prompts.target]
        order = [*prompts.asked, *prompts.paraphrases, *prompts.retained, *targets]
        self.numbers = list(dict.fromkeys(order))

    def draw(self, unet: Any) -> np.ndarray:
        """Pictures, uint8 (prompts, samples, H, W, 3); equal noise for all prompts."""
        start = self._artist.noise("drawings", self._samples)
        numbers = np.repeat(self.numbers, self._samples)
        start = np.tile(start, (len(self.numbers), 1, 1, 1))
        images = self._artist.decode(self._artist.draw(unet, numbers, start))
        return images.reshape(len(self.numbers), self._samples, *images.shape[1:])

    def measure(self, images: np.ndarray, before: np.ndarray) -> dict[str, float]:
        """The distances of ``COLUMNS`` from drawings of the original."""
        prompts, row = self.prompts, {}
        for name, part in (
            ("forgotten", prompts.asked),
            ("paraphrased", prompts.paraphrases),
            ("retained", prompts.retained),
        ):
            if part:
                at = self._places(part)
                row[name] = relative_distance(images[at], before[at], before[at])
        if prompts.asked and all(n in prompts.target for n in prompts.asked):
            at = self._places(prompts.asked)
            there = before[self._places([prompts.target[n] for n in prompts.asked])]
            row["to_target"] = relative_distance(images[at], there, there)
        return row

    def _places(self, numbers: Sequence[int]) -> list[int]:
        return [self.numbers.index(number) for number in numbers]


def relative_distance(ours: np.ndarray, theirs: np.ndarray, seeds: np.ndarray) -> float:
    r"""Root mean square distance of pictures over that of a prompt's other seeds.

    .. math:: \sqrt{\overline{(a_{ps} - b_{ps})^2} \,/\,
       \overline{(c_{ps} - c_{ps'})^2}_{s \ne s'}}

    Args:
      ours: pictures (prompts, samples, ...).
      theirs: the same from the same noise.
      seeds: pictures whose samples differ by their noise, two or more.

    Example:
      >>> seeds = np.array([[0.0, 2.0], [5.0, 7.0]])
      >>> relative_distance(seeds + 1, seeds, seeds)
      0.5
    """
    ours, theirs, seeds = (np.asarray(x, np.float64) for x in (ours, theirs, seeds))
    count = seeds.shape[1]
    # The mean over pairs of different seeds is twice the unbiased variance.
    noise = 2 * np.mean(np.var(seeds, axis=1)) * count / (count - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.sqrt(np.mean((ours - theirs) ** 2) / noise))


def moved(ours: Any, original: Any) -> float:
    """Share of a tree's entries that are other numbers than the original's."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(original), strict=True)
    counts = [(np.sum(np.asarray(a) != np.asarray(b)), np.size(b)) for a, b in pairs]
    changed, all_of_them = np.sum(counts, axis=0)
    return float(changed / all_of_them)
