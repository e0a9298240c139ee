"""Forget a concept in a text-to-image pipeline of one's own.

``python -m experiments.text_to_image --pipeline FOLDER --concept "…"`` opens a folder
of the diffusers layout, draws (or reads) pictures of the concept and of what is to be
kept, unlearns it by the chosen methods, and leaves a folder for each that diffusers
opens, with pictures before and after, results and a report. Run again it computes what
is missing.
"""

import dataclasses
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import rich.console

from experiments.diffusion.recipes import resolve
from experiments.engine import cli, study
from experiments.engine.devices import Devices
from experiments.engine.loop import DivergedError
from experiments.engine.progress import Display
from experiments.engine.store import Store
from experiments.engine.task import ORIGINAL, digest
from experiments.errors import UserError, say
from experiments.reporting import figures, report, summary, tables
from experiments.text_to_image import (
    own_concepts,
    own_pictures,
    own_task,
    pipeline,
    sizes,
)
from experiments.text_to_image import recipes as usual
from experiments.text_to_image.own_concepts import Concept, Prompts
from experiments.text_to_image.own_task import METHODS

PROG = "experiments.text_to_image"
CONCEPT = ("concept", "target", "paraphrases", "retain", "images")
EXTENDABLE = (*cli.EXTENDABLE, "pipeline", "concepts", "images", "draw_at_once")
LOADING = """\
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained("{path}")"""
NO_RETRAIN = (
    "There is no Retrain here, for nobody can train such a model anew without the "
    "concept: the numbers say how far drawings moved and where to, not how close a "
    "model is to one that never saw it. That a concept is not drawn for these prompts "
    "does not show that it cannot be drawn."
)


_UNREAD = {"flag": None}  # a setting of studies that nothing here reads


@dataclasses.dataclass(frozen=True)
class NoTraining:
    """The original is given: no number of its training is a flag."""


@dataclasses.dataclass(frozen=True)
class Config(cli.StudyConfig):
    """Forget a concept in a text-to-image pipeline of one's own.

    Examples:
      python -m experiments.text_to_image --pipeline stable-diffusion-v1-4 --concept
        "a photo of a cat" --target "a photo of a dog" --retain "a photo of a car"
      python -m experiments.text_to_image --pipeline stable-diffusion-v1-4 --concepts
        concepts.json --methods salun,esd --precision bfloat16 --remat
    """

    HEADING: ClassVar[str] = "pipeline"
    METHODS: ClassVar = METHODS
    TRAINING: ClassVar = NoTraining

    pipeline: pathlib.Path | None = None
    """Folder of the pipeline, in the diffusers layout: Stable Diffusion 1 or 2."""
    concept: str | None = None
    """Prompt that calls for what is to be forgotten."""
    target: str | None = None
    """Prompt that takes its place."""
    paraphrases: str = ""
    """Other prompts that call for it, commas between: drawn for, never trained on."""
    retain: str = ""
    """Prompts whose pictures are to stay, commas between."""
    images: pathlib.Path | None = None
    """Folder of pictures of the concept, with or without a table of captions; None has
    the pipeline draw them."""
    concepts: pathlib.Path | None = None
    """File of JSON instead of these five, for several concepts or for prompts with
    commas: a list of {"prompts": [], "target": "", "paraphrases": [], "retain": [],
    "images": "folder"}."""
    draw: int = 32
    """Pictures that the pipeline draws of each forgotten and each retained prompt."""
    samples: int = 4
    """Pictures drawn before and after for each prompt, to be compared."""
    size: int | None = None
    """Height and width of the pictures; None is what the U-Net was trained for."""
    guidance: float = 7.5
    """Strength of classifier-free guidance; 1 is none."""
    sampling_steps: int = 50
    """DDIM steps of a drawing."""
    draw_at_once: int = 4
    """Pictures in a batch of drawing."""
    remat: bool = False
    """Compute the insides of the U-Net's blocks again in the gradient, which saves
    memory."""
    save_as: Literal["same", "float32"] = "same"
    """Type of the saved weights; the same as in the given files drops changes that
    half precision cannot hold."""

    dataset: str = dataclasses.field(default="", metadata=_UNREAD)
    augment: bool | None = dataclasses.field(default=None, metadata=_UNREAD)
    memory: float = dataclasses.field(default=4.0, metadata=_UNREAD)
    checkpoint: pathlib.Path | None = dataclasses.field(default=None, metadata=_UNREAD)
    seeds: int = dataclasses.field(default=1, metadata=_UNREAD)
    trainings: int = dataclasses.field(default=0, metadata=_UNREAD)
    minutes: float | None = dataclasses.field(default=None, metadata=_UNREAD)
    workers: int | None = dataclasses.field(default=None, metadata=_UNREAD)
    batch_models: int | None = dataclasses.field(default=None, metadata=_UNREAD)
    coordinator: str | None = dataclasses.field(default=None, metadata=_UNREAD)
    processes: int | None = dataclasses.field(default=None, metadata=_UNREAD)
    process: int | None = dataclasses.field(default=None, metadata=_UNREAD)

    def __post_init__(self):
        super().__post_init__()
        if self.pipeline is None:
            raise cli.ConfigError("Give --pipeline FOLDER, in the diffusers layout.")
        given = [name for name in CONCEPT if getattr(self, name) not in (None, "")]
        if self.concepts is not None and given:
            raise cli.ConfigError(
                f"--{given[0]} stands in the file of --concepts. Leave one of them out."
            )
        if self.concepts is None and not (self.concept or "").strip():
            raise cli.ConfigError(
                "Give --concept PROMPT, which calls for what is to be forgotten, or "
                "--concepts FILE.json."
            )
        for name, least in (("draw", 1), ("samples", 2), ("draw_at_once", 1)):
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise cli.ConfigError(
                    f"--{flag} {getattr(self, name)}: give at least {least}."
                )
        if not 1 <= self.sampling_steps <= 999:
            raise cli.ConfigError(
                f"--sampling-steps {self.sampling_steps}: give 1 to 999."
            )
        if not np.isfinite(self.guidance):
            raise cli.ConfigError(f"--guidance {self.guidance}: give a finite number.")

    @property
    def together(self) -> bool:
        """One process runs it."""
        return False

    @property
    def task(self) -> str:
        """Name of the task, for the default folder."""
        assert self.pipeline is not None
        what = self.concept or pathlib.Path(self.concepts or "").stem
        parts = ("text-to-image", self.pipeline.resolve().name, what)
        return "-".join("".join(c if c.isalnum() else "_" for c in p) for p in parts)


def asked(arguments: Sequence[str]) -> bool:
    """Whether a command line speaks of a pipeline of one's own."""
    return any(word.partition("=")[0] == "--pipeline" for word in arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(Config, unlearn, PROG, arguments)


def unlearn(config: Config) -> None:
    """Runs what is missing of the methods, and leaves folders and a report."""
    concepts = asked_for(config)
    numbers = resolve(config.changes, NoTraining(), own_task.recipes())
    names = able(config, numbers, Prompts(concepts))
    devices = Devices.choose(config.devices, config.shard_parameters)
    half = jnp.bfloat16 if config.precision == "bfloat16" else None
    assert config.pipeline is not None
    model = pipeline.load(config.pipeline, dtype=half, remat=config.remat)
    size = picture_size(config, model)
    try:
        Study(config, model, concepts, size, devices).run(names, numbers)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise UserError(memory_hint(model)) from error
        raise


def asked_for(config: Config) -> list[Concept]:
    """The concepts that the flags or their file name, with captions of pictures."""
    if config.concepts is not None:
        concepts = own_concepts.read(config.concepts)
    else:
        assert config.concept is not None
        concepts = [
            Concept(
                (config.concept.strip(),),
                config.target,
                own_concepts.listed(config.paraphrases),
                own_concepts.listed(config.retain),
                config.images,
            )
        ]
    found = []
    for concept in concepts:
        pictures = own_pictures.captions(concept.images) if concept.images else []
        texts = tuple(text for _, text in pictures if text)
        found.append(concept._replace(captions=texts))
    return found


def able(config: Config, numbers: Mapping[str, Any], prompts: Prompts) -> list[str]:
    """The methods to run: those asked for, or all whose needs are met.

    Raises:
      ConfigError: one that was asked for lacks something, or none is left.
    """
    names, reasons = cli.chosen(config), {}
    for name in names:
        if why := own_task.unmet(name, numbers[name], prompts):
            reasons[name] = f"--methods {name}: {why}."
    if reasons and config.methods not in ("usual", "all"):
        raise cli.ConfigError(next(iter(reasons.values())))
    for why in reasons.values():
        say(f"{PROG}: left out, {why}")
    return [name for name in names if name not in reasons]


def picture_size(config: Config, model: pipeline.Pipeline) -> int:
    """Height and width of the pictures.

    Raises:
      ConfigError: the networks' levels do not divide it.
    """
    size = config.size or model.factor * model.sample_size
    unit = model.factor * model.halvings
    if size < unit or size % unit:
        raise cli.ConfigError(
            f"--size {size}: give a multiple of {unit}, which the networks divide."
        )
    return size


def memory_hint(model: Any) -> str:
    """What training takes, in a line."""
    table = sizes.memory(model.shapes["unet"])
    full, cores = (table[name]["total"] / 1e9 for name in ("full", "cores"))
    return (
        f"There is not enough memory. Training this U-Net takes {full:.2f} GB and "
        f"activations, SEMU's cores {cores:.2f} GB. Give --remat, --precision "
        "bfloat16, a smaller --recipe.batch-size, --draw-at-once or --size, or several "
        "devices with --shard-parameters; what was finished is kept."
    )


class Study:
    """The methods on one pipeline.

    Args:
      config: the flags.
      model: the pipeline.
      concepts: what is to be forgotten.
      size: of the pictures.
      devices: where it runs.
    """

    def __init__(
        self,
        config: Config,
        model: pipeline.Pipeline,
        concepts: Sequence[Concept],
        size: int,
        devices: Devices,
    ):
        self.config, self.model, self.devices = config, model, devices
        self.concepts, self.prompts = concepts, Prompts(concepts)
        encode = jax.jit(model.text)
        text = {"text_encoder": model.params["text_encoder"]}
        tokens = model.tokens(self.prompts.texts)
        singly = [np.asarray(encode(text, row[None])) for row in tokens]
        self.states = np.concatenate(singly)
        self.artist = own_pictures.Artist(
            model,
            model.params,
            self.states,
            self.prompts.null,
            size=size,
            steps=config.sampling_steps,
            guidance=config.guidance,
            at_once=config.draw_at_once,
            devices=devices,
        )
        self.drawings = own_task.Drawings(self.artist, self.prompts, config.samples)
        self.digest = digest(jax.tree.leaves(model.params))
        self.unet = model.params["unet"]  # on the host, between two uses

    def run(self, names: Sequence[str], numbers: Mapping[str, Any]) -> None:
        """Runs what is missing, and writes the report."""
        config = self.config
        latents = self.latents()
        settings = cli.plain(config) | {
            "command": ["python", "-m", PROG, *sys.argv[1:]],
            "input": {
                "pipeline": self.digest,
                "concepts": [[*c.prompts, *c.captions] for c in self.concepts],
                "latents": digest(list(latents.values())),
            },
            "recipes": {name: dataclasses.asdict(numbers[name]) for name in METHODS},
        }
        labels = {name: note.label for name, note in usual.NOTES.items()}
        task = self.task(latents)
        order = (ORIGINAL, *METHODS)
        with Store(config.folder, settings, EXTENDABLE, order) as store:

            def estimates() -> summary.Summary:
                return summary.summarise(
                    store.rows, own_task.COLUMNS, reference="", floor="", labels=labels
                )

            def table() -> Any:
                return tables.rich_table(estimates(), pending=(ORIGINAL, *names))

            missing = [name for name in names if not self._done(store, name)]
            if store.row(ORIGINAL, 0) is None:
                self._keep_original(store)
            runs = [self._run(task, name, numbers[name]) for name in missing]
            with Display(sum(run.steps for run in runs), table) as display:
                for run in runs:
                    self._finish(run, store, display)
            self._report(store, estimates())
            rich.console.Console().print(tables.rich_table(estimates()))
            print(f"Report: {config.folder / 'report.html'}")

    def task(self, latents: Mapping[int, np.ndarray]) -> own_task.OwnPipeline:
        """The pipeline with its pictures, ready to forget."""
        return own_task.OwnPipeline(
            self.model,
            self.prompts,
            self.states,
            latents,
            self.config.guidance,
            self.devices,
        )

    def latents(self) -> dict[int, np.ndarray]:
        """Latents by the number of their prompt, made where they are not kept."""
        config, found = self.config, {}
        folder = (config.cache or config.folder / "cache") / "latents"
        for concept in self.concepts:
            if concept.images is None:
                continue
            pictures = own_pictures.captions(concept.images)
            images = own_pictures.load([p for p, _ in pictures], self.artist.size)
            encoded = own_pictures.kept(
                folder,
                ("encoded", self.digest, digest(images), self.artist.size),
                lambda images=images: self.artist.encode(images),
            )
            for i, (_, text) in enumerate(pictures):
                own = text or concept.prompts[i % len(concept.prompts)]
                found.setdefault(self.prompts.number(own), []).append(encoded[i])
        found = {number: np.stack(rows) for number, rows in found.items()}
        pictured = {
            self.prompts.number(text)
            for concept in self.concepts
            if concept.images is not None
            for text in concept.prompts
        }
        drawn = [n for n in self.prompts.forgotten if n not in pictured | found.keys()]
        for number in [*drawn, *self.prompts.retained]:
            text = self.prompts.texts[number]
            say(f"{PROG}: pictures for {text!r}")
            identity = (
                *("drawn", self.digest, text, config.draw, self.artist.size),
                *(config.guidance, config.sampling_steps, config.precision),
            )
            found[number] = own_pictures.kept(
                folder, identity, lambda number=number: self._drawn(number)
            )
        return found

    def _drawn(self, number: int) -> np.ndarray:
        """Latents that the original draws for a prompt."""
        name = f"pictures {self.prompts.texts[number]}"
        start = self.artist.noise(name, self.config.draw)
        return self.artist.draw(self.unet, np.full(len(start), number), start)

    def _keep_original(self, store: Store) -> None:
        """What the original draws, with which all others are compared."""
        images = self.drawings.draw(self.unet)
        row = {"method": ORIGINAL, "seed": 0, "status": "ok", "moved": 0.0}
        row |= self.drawings.measure(images, images)
        store.finish(row, {"images": images}, None)

    def _done(self, store: Store, name: str) -> bool:
        """Whether a method has ended; what is left of one that has not goes away."""
        row, folder = store.row(name, 0), self.config.folder / name
        if row is not None and (row["status"] != "ok" or folder.exists()):
            return True
        store.rows[:] = [row for row in store.rows if row["method"] != name]
        shutil.rmtree(folder, ignore_errors=True)
        return False

    def _run(self, task: own_task.OwnPipeline, name: str, recipe: Any) -> study.Run:
        """The run of a method."""
        method, size = task.build(name, recipe), recipe.batch_size

        def start():
            unet = self.devices.place(self.unet)
            return method.init(unet, {}, task.forget_batches(size))

        return study.Run(name, 0, method, start, task.feed, size)

    def _finish(self, run: study.Run, store: Store, display: Display) -> None:
        """Runs, saves and measures what lies in the new folder."""
        row: dict[str, Any] = {"method": run.name, "seed": 0, "status": "ok"}
        curves = [lambda params, model_state: {}]
        [result] = study.execute([run], store, display, curves, self.config.keep_every)
        folder, record = self.config.folder / run.name, {}
        try:
            if isinstance(result, DivergedError):
                raise result
            dtype = np.float32 if self.config.save_as == "float32" else None
            params = self.model.params | {"unet": jax.device_get(result.params)}
            self.model.save(folder, params, dtype=dtype)
            # As a person will have it: rounded to what the files hold.
            unet = pipeline.load(folder).params["unet"]
            images = self.drawings.draw(unet)
            row |= self.drawings.measure(images, store.record(ORIGINAL, 0)["images"])
            row |= {
                "moved": own_task.moved(unet, self.unet),
                "seconds": result.seconds,
                "trainable_fraction": result.trainable_fraction,
            }
            record = result.curves | {"images": images}
        except DivergedError as error:
            row |= {"status": "diverged", "reason": str(error)}
            shutil.rmtree(folder, ignore_errors=True)
        store.finish(row, record, None)
        display.finished(f"{run.name}: {row['status']}")

    def _report(self, store: Store, estimates: summary.Summary) -> None:
        """Pictures before and after, the table and what it means."""
        images = {
            row["method"]: store.record(row["method"], 0)["images"]
            for row in store.rows
            if row["status"] == "ok"
        }
        prompts, numbers = self.prompts, self.drawings.numbers
        texts = [prompts.texts[number] for number in numbers]
        framed = len(prompts.asked) + len(prompts.paraphrases)
        names = estimates.method_labels
        saved = [name for name in images if name != ORIGINAL]
        path = (self.config.folder / (saved[0] if saved else "METHOD")).resolve()
        figure = report.Figure(
            "samples",
            "What each model draws",
            "A column a prompt; the framed ones call for what had to be forgotten, "
            "first in the prompts that were trained on, then in paraphrases. All start "
            f"from the same noise. {'; '.join(texts)}.",
            lambda: figures.image_grids(images, names, texts, 0, framed),
        )
        wanted = "; ".join(repr(prompts.texts[number]) for number in prompts.asked)
        report.write(
            self.config.folder,
            store.results,
            own_task.COLUMNS,
            title=f"Forgetting in a pipeline: {self.config.task}",
            description=f"{self.config.pipeline} had to forget {wanted}. {NO_RETRAIN}",
            figures=(figure,),
            methods={name: usual.NOTES[name] for name in METHODS},
            loading=LOADING.format(path=path),
            summary=estimates,
        )


if __name__ == "__main__":
    cli.leave(main())
