"""The methods on a pipeline of one's own: pictures, runs, folders, report."""

import dataclasses
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.console

from experiments.engine import cli, study
from experiments.engine.devices import Devices
from experiments.engine.loop import DivergedError
from experiments.engine.progress import Display
from experiments.engine.store import Store
from experiments.engine.task import ORIGINAL, digest
from experiments.errors import say
from experiments.reporting import figures, report, summary, tables
from experiments.text_to_image import own_pictures, own_task, pipeline
from experiments.text_to_image import recipes as usual
from experiments.text_to_image.own_concepts import Concept, Prompts
from experiments.text_to_image.own_config import PROG, Config
from experiments.text_to_image.own_task import METHODS

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
