"""Forgetting a concept in the small pipeline as a task: its model, measures, report."""

import functools
import re
from collections.abc import Mapping
from typing import Any, Self

import jax
import numpy as np
from jax.core import Tracer

from experiments.data.captions import Captioned
from experiments.diffusion import generation
from experiments.engine import bench, cli, study
from experiments.engine.cache import Cache
from experiments.engine.devices import Devices
from experiments.engine.store import Store
from experiments.engine.task import ORIGINAL, Measured, Page
from experiments.errors import say
from experiments.models.precision import computing_in
from experiments.reporting import figures, report, summary
from experiments.reporting.summary import Column
from experiments.text_to_image import concept, recipes
from experiments.text_to_image.config import SCHEDULE_STEPS, Config
from experiments.text_to_image.methods import METHODS, uce
from experiments.text_to_image.small import text_to_image
from mujax import diffusion, methods, roles

COLUMNS = (
    Column(
        "ua",
        "UA",
        "%",
        1,
        description="Pictures drawn for the forgotten prompts that the judge does not "
        "take for the concept.",
    ),
    Column(
        "ua_paraphrased",
        "UA para.",
        "%",
        1,
        description="The same for paraphrases that neither training nor unlearning "
        "has seen.",
    ),
    Column(
        "ua_nearest",
        "UA near.",
        "%",
        1,
        reference=False,
        description="UA on the forgotten prompts by a second judge: the nearest real "
        "picture.",
    ),
    Column(
        "ira",
        "IRA",
        "%",
        1,
        description="Pictures drawn for the other prompts that show the right thing "
        "(or, where a style is forgotten, the right style).",
    ),
    Column(
        "cra",
        "CRA",
        "%",
        1,
        description="Pictures drawn for the other prompts in the right style (or, "
        "where a style is forgotten, of the right thing).",
    ),
    Column(
        "frechet_retained",
        "Fréchet",
        "",
        2,
        description="Fréchet distance of the other prompts' pictures to real ones.",
    ),
    Column(
        "frechet_retrain",
        "Distance",
        "",
        2,
        reference=False,
        description="Fréchet distance of the other prompts' pictures to Retrain's, by "
        "seed.",
    ),
    Column(
        "frechet_forgotten",
        "On forgotten",
        "",
        1,
        reference=False,
        description="Fréchet distance between what is drawn for the forgotten prompts "
        "and what Retrain draws for them, by seed.",
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
        description="Share of the U-Net's parameters that the method may move.",
    ),
)
LOADING = """\
import orbax.checkpoint as ocp
path = "{path}"  # absolute
params = ocp.StandardCheckpointer().restore(path)["params"]"""
ROUNDS = 4  # passes over the forget set with other noise
SHOWN, SHOWN_OTHERS = 2, 9  # rows of a grid, and its columns of other prompts
KNOWN = 90  # per cent of the original's pictures that the judge has to recognise


class TextToImage:
    """Forgetting a concept in a text-to-image model: a ``task.Task``.

    Args:
      config: the U-Net's widths and how to draw.
      pictures: with captions.
      wanted: what is to be forgotten of them.
    """

    columns, gap, keeps_models = COLUMNS, "frechet_retrain", True
    notes = recipes.NOTES

    def __init__(self, config: Config, pictures: Captioned, wanted: concept.Concept):
        self.config, self.pictures, self.concept = config, pictures, wanted
        devices = Devices.choose(config.devices, config.shard_parameters)
        material = concept.material(
            pictures, wanted, config.channels, bool(config.augment), devices
        )
        self.feed, self.prompts = material.feed, material.prompts
        shape = self.feed.examples["image"].shape[1:]
        model = text_to_image(self.prompts, shape[-1], config.levels)
        self.model = computing_in(model, config.precision)
        self.identity = {
            "model": "text-to-image",
            "widths": config.widths,
            "channels": config.channels,
            "augment": bool(config.augment),
            "dataset": pictures.fingerprint,
        }
        self.schedule = diffusion.scaled_linear_schedule(SCHEDULE_STEPS)
        self.drawn = _drawn(config, wanted, self.prompts.paraphrased())
        self.sampler = generation.Sampler(
            diffusion.from_velocity(
                generation.network(self.model, train=False, key=None), self.schedule
            ),
            self.schedule,
            shape,
            self.prompts.null,
            guidance=config.guidance,
            num_steps=config.sampling_steps,
            batch_size=min(250, len(self.drawn)),
            devices=devices,
            clip=None,
            decode=material.patches.decode,
        )

        self._check_names(".*")

        @functools.lru_cache(maxsize=16)  # equal functions share what they compile
        def made(forget_weight: float, anchor: float, strength: float, part: bool):
            losses = generation.losses(
                self.model,
                self.schedule,
                null=self.prompts.null,
                guidance=config.guidance,
                mirrored=False,
                forget_weight=forget_weight,
                anchor=anchor,
                strength=strength,
                target=diffusion.velocity,
                signal=lambda latents: latents,
                others=concept.others(wanted.retained),
            )
            if not part:
                return losses
            return generation.Losses(*map(methods.loss_on_part, losses))

        self._made = made

    def _check_names(self, pattern: str) -> None:
        """Raises where no weight whose name fits the pattern may move."""
        if self.config.trainable == "full":
            return
        shapes, _ = jax.eval_shape(self.init, jax.random.key(0))
        names = [x for x in roles.leaf_names(shapes) if re.fullmatch(pattern, x)]
        if not any(map(self.config.moves, names)):
            raise cli.ConfigError(
                f"--trainable {self.config.trainable!r} fits no weight that could "
                f"move; they are named like {names[0]} and {names[-1]}."
            )

    def losses(
        self,
        forget_weight: float = 1.0,
        anchor: float = 3.0,
        strength: float = 1.0,
        *,
        whole: bool = False,
    ) -> generation.Losses:
        """The losses of the weights that methods move, or of the whole U-Net.

        See :func:`generation.losses`.
        """
        part = not whole and self.config.trainable != "full"
        weights = forget_weight, anchor, strength
        if any(isinstance(weight, Tracer) for weight in weights):
            return self._made.__wrapped__(*weights, part)  # known to one program alone
        return self._made(*weights, part)

    @functools.cached_property
    def states(self) -> uce.States:
        """What cross-attention reads of the captions, a row a token."""
        erased, instead = zip(*self.concept.instead.items(), strict=True)
        kept = [*self.concept.retained, self.prompts.null]
        numbers = erased, [among[0] for among in instead], kept
        spoken = (self.prompts.spoken(np.array(x)) for x in numbers)
        return uce.States(*(x.reshape(-1, x.shape[-1]) for x in spoken))

    @functools.cached_property
    def judge(self) -> concept.Judge:
        """Says what is drawn; trained when the first drawing is there."""
        cache = Cache(self.config.cache)
        return concept.Judge(self.pictures, cache, self.feed.devices)

    @functools.cached_property
    def real_features(self) -> np.ndarray:
        """Features of the real pictures of the other captions."""
        kept = np.isin(self.pictures.numbers, self.concept.retained)
        moved = concept.shifted(self.pictures.images[kept], concept.SHIFTS)
        return self.judge.see(moved)[1]

    def for_seed(self, seed: int) -> Self:
        """All seeds forget the same concept."""
        del seed
        return self

    def init(self, key: Any) -> tuple[Any, Any]:
        """New parameters and (empty) model state."""
        return self.model.init(key)

    def build(self, name: str, recipe: Any, steps: int) -> methods.Method:
        """A method or the training of a baseline."""
        if name not in METHODS:
            return recipes.retrain(
                recipe, functools.partial(self.losses, whole=True), steps
            )
        read = {}
        if METHODS[name] is uce:
            self._check_names(uce.EDITED)
            read["states"] = self.states
        method = METHODS[name].build(recipe, self.losses, steps, **read)
        if self.config.trainable != "full":
            method = methods.on_part(method, self.config.moves)
        if method.data_use.relabel is None:
            return method
        relabel = concept.relabelling(self.concept.instead, recipe.next_class)
        return methods.with_data(method, relabel=relabel)

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
        """What the judges say of drawn pictures, and some to look at."""
        del model_state
        prompts, wanted = self.drawn.T
        images = self.sampler.draw(params, study.random_key("samples", seed), prompts)
        seen, features = self.judge.see(images)
        forgotten, own, other = (getattr(self.concept, x) for x in FIELDS)
        paraphrased = prompts > self.prompts.null
        ours = ~np.isin(wanted, forgotten)
        asked = ~ours & ~paraphrased

        def missed(found: np.ndarray) -> float:
            return 100 * float(np.mean(~np.isin(found, forgotten)))

        row = {
            "ua": missed(seen[asked]),
            "ua_nearest": missed(self.judge.nearest(images[asked])),
            "ira": 100 * float(np.mean(own[seen[ours]] == own[wanted[ours]])),
            "frechet_retained": diffusion.frechet_distance(
                features[ours], self.real_features
            ),
        }
        if paraphrased.any():
            row["ua_paraphrased"] = missed(seen[paraphrased])
        if other.any():
            row["cra"] = 100 * float(np.mean(other[seen[ours]] == other[wanted[ours]]))
        shown = [images[prompts == c][:SHOWN] for c in dict.fromkeys(prompts)]
        return Measured(
            row,
            {
                "images": np.stack(shown),
                "retrain_features": features[ours],
                "forgotten_features": features[asked],
            },
        )

    def compare(self, ours: Measured, reference: Measured) -> Mapping[str, float]:
        """Fréchet distances to what Retrain draws."""

        def distance(part):
            pair = (m.record[f"{part}_features"] for m in (ours, reference))
            return max(0.0, diffusion.frechet_distance(*pair))

        return {f"frechet_{part}": distance(part) for part in ("retrain", "forgotten")}

    def page(self, store: Store, estimates: summary.Summary) -> Page:
        """What was forgotten, who judged, picture grids and plots."""
        names = estimates.method_labels
        images, losses = {}, {}
        shown, texts, framed = self._shown()
        for row in store.rows:
            name, seed = row["method"], row["seed"]
            if row["status"] != "ok" or not store.has_record(name, seed):
                continue
            record = store.record(name, seed)
            images.setdefault(name, record["images"][shown])
            if "loss" in record:
                epochs = np.arange(1, len(record["loss"]) + 1)
                losses[name, seed] = {"epoch": epochs, **record}
        columns = "; ".join(texts)
        plots = (
            report.Figure(
                "samples",
                "What each model draws",
                "A column a prompt; the framed ones speak of what had to be forgotten, "
                "first in words of training, then in paraphrases. All models start "
                f"from the same noise. First seed. {columns}. {self.pictures.credit}",
                lambda: figures.image_grids(images, names, texts, 0, framed),
            ),
            report.Figure(
                "metrics",
                "UA, retained accuracy and Fréchet distance against Retrain",
                "Retrain never saw the concept; it still draws something for it.",
                lambda: figures.metric_comparison(estimates),
            ),
            report.Figure(
                "distance",
                "Distance to Retrain on the other prompts",
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
            f"Forgetting in a text-to-image model: {self.config.task}",
            self._describe(store),
            plots,
            LOADING.format(path=path),
        )

    def _shown(self) -> tuple[list[int], list[str], int]:
        """The grid's prompts: places in a record, texts, and how many are framed."""
        forgotten, order = self.concept.forgotten, list(dict.fromkeys(self.drawn[:, 0]))
        kept = [c for c in order if c < self.prompts.null and c not in forgotten]
        step = max(1, len(kept) // SHOWN_OTHERS)
        asked = [c for c in order if c in forgotten][:4]
        again = [c for c in order if c > self.prompts.null][:4]
        columns = [*asked, *again, *kept[::step][:SHOWN_OTHERS]]
        texts = [self.prompts.text(int(c)) for c in columns]
        return [order.index(c) for c in columns], texts, len(asked) + len(again)

    def _describe(self, store: Store) -> str:
        """What was forgotten and who judged, in a few sentences."""
        row = store.row(ORIGINAL, 0) or {}
        original, words = row.get("ira"), self.config.forget
        known = "" if original is None else f", {original:.1f} % on the original's"
        shared = ""
        if original is not None and original < KNOWN:
            shared = (
                f" The judge recognises fewer than {KNOWN} % of what the original "
                "draws: train it longer, or on fewer pictures; its numbers mean little."
            )
            say(f"experiments.text_to_image:{shared}")
        if 0 < self.config.trainings < self.config.seeds:
            shared += (
                " Intervals are over seeds of unlearning and of drawing; "
                f"{self.config.trainings} training of the original and of each Retrain "
                "serves them all."
            )
        return (
            f"A text-to-image model trained on {len(self.pictures.images)} pictures "
            f"({self.config.dataset}) had to forget what its captions call {words!r}. "
            "Every method starts from the same original and is compared with Retrain, "
            "which never saw it. A held-out classifier judges what is drawn: "
            f"{self.judge.test_accuracy:.1f} % right on unseen views of real pictures"
            f"{known} pictures of what is kept.{shared}"
        )


FIELDS = ("forgotten", "own", "other")


def _drawn(config: Config, wanted: concept.Concept, said: np.ndarray) -> np.ndarray:
    """Prompts to draw for and the captions they stand for, int32 (n, 2)."""
    kept = np.repeat(wanted.retained, config.samples)
    asked = np.repeat(wanted.forgotten, config.forgotten_samples)
    again = said[np.isin(said[:, 1], wanted.forgotten)]
    again = np.repeat(again, max(SHOWN, config.forgotten_samples // 2), axis=0)
    same = np.concatenate([kept, asked])
    return np.concatenate([np.stack([same, same], axis=1), again])
