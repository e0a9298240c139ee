"""Runs a study: originals, Retrains and methods over seeds, each measured and kept.

A kind of experiment is a ``task.Task``: its data, its model, its methods and its
measures. What all kinds share is here: which runs there are, what starts from what,
what is trained once and used again, and what becomes of a run that diverges.
"""

import copy
import dataclasses
import functools
import hashlib
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
import rich.console
import rich.table

from experiments.engine import (
    cards,
    cli,
    loop,
    processes,
    programs,
    study,
    together,
    workers,
)
from experiments.engine.cache import Cache
from experiments.engine.checkpoints import load_original
from experiments.engine.progress import Display
from experiments.engine.store import Store
from experiments.engine.task import (
    BASELINES,
    ORIGINAL,
    REFERENCE,
    Measured,
    Task,
    digest,
    inputs,
)
from experiments.errors import say
from experiments.reporting import report, summary, tables
from mujax import methods


def run_study(
    script: str,
    config: cli.StudyConfig,
    task: Task,
    numbers: Mapping[str, Any],
    names: Sequence[str],
    adapted: Sequence[str] = (),
) -> None:
    """Runs what is missing of a study, shows its table as it fills, leaves a report.

    Args:
      script: the module that a person runs.
      config: its flags.
      task: the kind of experiment.
      numbers: recipe of every method, and of training under ``"training"``.
      names: of the methods to run.
      adapted: what differs from the usual for this request; said and kept.
    """
    for note in adapted:
        say(f"{script}: {note}")
    given = None
    if config.checkpoint is not None:
        given = load_original(config.checkpoint, task.init)
    settings = cli.plain(config) | {
        "command": ["python", "-m", script, *sys.argv[1:]],
        "input": inputs(task, given),
        "recipes": {name: dataclasses.asdict(r) for name, r in numbers.items()},
        **({"adapted": list(adapted)} if adapted else {}),
    }
    labels = {name: note.label for name, note in task.notes.items()}
    order = (*BASELINES, *config.METHODS)
    with Store(config.folder, settings, cli.EXTENDABLE, order) as store:

        def estimates() -> summary.Summary:
            return summary.summarise(
                store.rows, task.columns, gap=task.gap, labels=labels
            )

        def table() -> rich.table.Table:
            return tables.rich_table(estimates(), pending=(*BASELINES, *names))

        Bench(task, numbers, store, config, given).run_all(names, table)
        if not processes.leads():
            return
        page = task.page(store, estimates())
        report.write(
            config.folder,
            store.results,
            task.columns,
            **page._asdict(),
            methods=task.notes,
            gap=task.gap,
        )
        cards.write(store, task, page, estimates())
        console = rich.console.Console()
        # Where no terminal says how wide it is, the table needs its hundred columns.
        width = None if console.is_terminal else 100
        rich.console.Console(width=width).print(table())
        print(f"Report: {config.folder / 'report.html'}")


def example_checkpoint(store: Store) -> pathlib.Path:
    """Where an unlearned model lies, for the lines that load one."""
    done = [row for row in store.rows if row["status"] == "ok"]
    best = [row for row in done if row["method"] not in BASELINES] or done
    row = best[0] if best else {"method": REFERENCE, "seed": 0}
    return store.checkpoint_path(row["method"], row["seed"]).absolute()


class Bench:
    """A task with the numbers to run it by, and what of it is finished.

    Args:
      task: the kind of experiment.
      numbers: recipe of every method, and of training under ``"training"``.
      store: keeps the rows.
      config: how often to keep progress, where trained baselines are kept for other
        studies, and how many trainings there are.
      given: a trained original, in place of one to train.
    """

    def __init__(
        self,
        task: Task,
        numbers: Mapping[str, Any],
        store: Store,
        config: cli.StudyConfig,
        given: dict[str, Any] | None = None,
    ):
        count = task.feed.devices.count
        if count > 1 and (config.workers or 1) > 1:
            raise cli.ConfigError(
                f"--workers {config.workers}: runs that share {count} devices go one "
                "by one. Leave it out, or give --devices 1."
            )
        if processes.several() and config.minutes is not None:
            raise cli.ConfigError(
                f"--minutes {config.minutes:g}: several processes have as many clocks. "
                "Leave it out, and end all of them with Ctrl-C instead."
            )
        if processes.several() and (config.batch_models or 1) > 1:
            raise cli.ConfigError(
                f"--batch-models {config.batch_models}: a batch of models lies in one "
                "process. Leave it out."
            )
        self.task, self.numbers, self.store = task, dict(numbers), store
        self.config, self.given, self._cache = config, given, Cache(config.cache)
        self._originals: dict[int, Any] = {}
        self._methods: dict[str, methods.Method] = {}
        self._makes: dict[tuple[str, Any], Any] = {}
        self._programs: dict[str, str] = {}

    def run_all(self, names: Sequence[str], table: Any) -> None:
        """Runs what is missing of baselines and methods, seed by seed.

        Args:
          names: of the methods.
          table: draws the rows so far.
        """
        self.run_these(
            [
                (name, seed)
                for seed in self.config.seed_numbers
                for name in (*BASELINES, *names)
            ],
            table,
        )

    def run_these(self, wanted: Sequence[tuple[str, int]], table: Any) -> None:
        """Runs what is missing of methods on seeds, in this order."""
        runs = [run for run in wanted if self.store.row(*run) is None]
        size = self.config.batch_models or self._default_batch()
        with Display(sum(self.steps(name) for name, _ in runs), table) as display:
            jobs = [self._job(*batch, display) for batch in _batches(runs, size)]
            minutes = math.inf if self.config.minutes is None else self.config.minutes
            workers.work(jobs, self.at_once, 60 * minutes)

    @property
    def at_once(self) -> int:
        """Runs at once."""
        if self.task.feed.devices.count > 1:
            return 1  # programs of several devices must begin in one order on all
        return self.config.workers or workers.default(self._num_params())

    def _default_batch(self) -> int:
        """Seeds in a batch; one where a model lies over devices or processes."""
        if self.task.feed.devices.shard_parameters or processes.several():
            return 1
        return together.default(self._num_params())

    def run(self, name: str, seed: int, display: Display) -> None:
        """Trains or unlearns, measures, and keeps the row."""
        self.run_batch(name, {seed: self}, display)

    def run_batch(
        self, name: str, benches: Mapping[int, Self], display: Display
    ) -> None:
        """Does so for several seeds at once, each on its own task."""
        for seed, result in self._results(name, benches, display).items():
            benches[seed]._keep(name, seed, result, display)

    def _keep(
        self,
        name: str,
        seed: int,
        result: study.Result | loop.DivergedError,
        display: Display,
    ) -> None:
        """Measures what a run ended with, and keeps its row."""
        row: dict[str, Any] = {"method": name, "seed": seed, "status": "ok"}
        checkpoint, record = None, {}
        try:
            if isinstance(result, loop.DivergedError):
                raise result
            ours = self.task.measure(result.params, result.model_state, seed)
            reference = ours if name == REFERENCE else self._measured(REFERENCE, seed)
            row |= ours.row
            if reference is not None:
                row |= self.task.compare(ours, reference)
        except loop.DivergedError as error:
            row |= {"status": "diverged", "reason": str(error)}
        else:
            row |= {
                "seconds": result.seconds,
                "trainable_fraction": result.trainable_fraction,
            }
            record = result.curves | ours.record
            if result.kernels:
                record["kernels"] = np.array(result.kernels)
            if self.task.keeps_models or name == ORIGINAL:
                checkpoint = {
                    "params": result.params,
                    "model_state": result.model_state,
                }
        self.store.keep(f"forgotten/seed_{seed}.txt", self._forgotten())
        self.store.finish(row, record, checkpoint)
        if name == ORIGINAL:
            self._originals[seed] = checkpoint
        display.finished(self._line(row))

    def _job(self, name: str, seeds: Sequence[int], display: Display) -> workers.Job:
        """A method's runs on some seeds, as one thing to do."""
        benches = {seed: self.with_task(self.task.for_seed(seed)) for seed in seeds}
        return workers.Job(
            names=[(name, seed) for seed in seeds],
            needs=[need for seed in seeds for need in self._needs(name, seed)],
            run=functools.partial(self.run_batch, name, benches, display),
        )

    def _needs(self, name: str, seed: int) -> list[tuple[str, int]]:
        """The runs that a run starts from, or is compared with."""
        needs = [(REFERENCE, seed), (ORIGINAL, seed)]
        if name in BASELINES:
            trained = seed % (self.config.trainings or seed + 1)
            needs = [(REFERENCE, seed), (name, trained)]
        return [need for need in needs if need != (name, seed)]

    def _num_params(self) -> int:
        params, _ = jax.eval_shape(self.task.init, jax.random.key(0))
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    def steps(self, name: str) -> int:
        """Optimiser steps of a method's run."""
        use = self._method(name).data_use
        return self._epoch_steps(name, use) * loop.num_epochs(use)

    def with_recipe(self, name: str, recipe: Any) -> Self:
        """A bench with the same data and originals where one method differs."""
        other = copy.copy(self)
        other.numbers = self.numbers | {name: recipe}
        other._methods = {}
        return other

    def with_task(self, task: Task) -> Self:
        """A bench of the same methods on a task of the same sizes."""
        other = copy.copy(self)
        other.task = task
        return other

    def prepare(self, name: str, seed: int) -> study.Run:
        """The run of a method on a seed."""
        method, batch_size = self._method(name), self._recipe(name).batch_size
        feed = self._feed(name, method.data_use)
        if method.data_use.fresh_start:

            def start():
                model = self.task.init(study.random_key(name, seed))
                return method.init(*feed.devices.place(model))

        else:
            original = self._original(seed)
            if method.data_use.stages > 1:
                stages = self.task.stages(original, self.numbers[name], seed)
                feed = dataclasses.replace(feed, forget=stages)

            def start():
                batches = self.task.forget_batches(batch_size, seed)
                model = original["params"], original["model_state"]
                options = {}
                if method.data_use.retain_at_start:
                    options["retain_batches"] = self._some_retained(name, seed, feed)
                    options["key"] = study.random_key(f"{name}_start", seed)
                return method.init(*feed.devices.place(model), batches, **options)

        traced = self._traced(name)
        return study.Run(name, seed, method, start, feed, batch_size, traced)

    def _some_retained(self, name: str, seed: int, feed: loop.Feed) -> list[Any]:
        """As much of the retain set as there is to forget, drawn for a run."""
        rng = np.random.default_rng(study.run_seed(name, seed))
        count = min(sum(map(len, feed.forget)), len(feed.retain))
        some = np.sort(rng.permutation(feed.retain)[:count])
        return loop.in_order(feed, some, self._recipe(name).batch_size)

    def _results(
        self, name: str, benches: Mapping[int, Self], display: Display
    ) -> dict[int, study.Result | loop.DivergedError]:
        """Finished trainings or unlearnings, from the cache where they can be."""
        results: dict[int, study.Result | loop.DivergedError] = {}
        if name == ORIGINAL and self.given is not None:
            display.advance(self.steps(name) * len(benches))
            return {seed: study.Result(**self.given) for seed in benches}
        runs: dict[int, study.Run] = {}
        for seed, bench in benches.items():
            try:
                runs[seed] = bench._drawn(name, seed)
            except loop.DivergedError as error:
                results[seed] = error
        first = {run.drawn_from: seed for seed, run in reversed(runs.items())}
        if name in BASELINES:
            for seed in first.values():
                kept = self._cache.load(benches[seed]._identity(runs[seed]))
                if kept is not None:
                    results[seed] = kept
        ahead = [seed for seed in first.values() if seed not in results]
        ended = study.execute(
            [runs[seed] for seed in ahead],
            self.store,
            display,
            [benches[seed].task.curve for seed in ahead],
            self.config.keep_every,
        )
        for seed, result in zip(ahead, ended, strict=True):
            results[seed] = result
            if name in BASELINES and isinstance(result, study.Result):
                self._cache.save(benches[seed]._identity(runs[seed]), result)
        for seed, run in runs.items():
            results[seed] = results[first[run.drawn_from]]
            if seed not in ahead:
                display.advance(run.steps)
        return {seed: results[seed] for seed in benches}

    def _drawn(self, name: str, seed: int) -> study.Run:
        """The run of a seed, whose training may serve several seeds."""
        drawn_from = seed
        if name in BASELINES:
            drawn_from %= self.config.trainings or seed + 1
        run = self.prepare(name, drawn_from)
        return dataclasses.replace(run, seed=seed, drawn_from=drawn_from)

    def _identity(self, run: study.Run) -> dict[str, Any]:
        """All that decides what a training ends with."""

        def begin():
            index = np.zeros(run.batch_size, int)
            labels = run.feed.examples["label"]
            weights = np.ones(run.batch_size, np.float32)
            return run.start(), loop.take(run.feed, labels, index, weights)

        def step(state, batch, key):
            return run.method.step(state, batch, key=key)

        # The program of a step knows the model, the loss and the optimiser.
        if run.name not in self._programs:
            begun, key = jax.eval_shape(begin), jax.random.key(0)
            program = jax.jit(step).lower(*begun, key).as_text()
            self._programs[run.name] = hashlib.sha256(program.encode()).hexdigest()
        return {
            "task": self.task.identity,
            "name": run.name,
            "seed": run.drawn_from,
            "recipe": dataclasses.asdict(self.numbers["training"]),
            "retain": digest(run.feed.retain),
            "step": self._programs[run.name],
        }

    def _forgotten(self) -> str:
        """All that this seed's models are to have forgotten, as a list of indices."""
        feed = self.task.feed
        left = np.ones(len(feed.examples["label"]), bool)
        left[feed.retain] = False
        lines = ["# Training images that these models have been made to forget."]
        return "\n".join([*lines, *map(str, np.flatnonzero(left)), ""])

    def _recipe(self, name: str) -> Any:
        """The numbers of a method or of a baseline's training."""
        return self.numbers["training" if name in BASELINES else name]

    def _method(self, name: str) -> methods.Method:
        """A method, built once so that it compiles once for all seeds."""
        if name not in self._methods:
            recipe = self._recipe(name)
            # The data use tells the steps of an epoch, which schedules need to know.
            use = self.task.build(name, recipe, 1).data_use
            method = self.task.build(name, recipe, self._epoch_steps(name, use))
            self._methods[name] = methods.with_data(method, epochs=recipe.epochs)
        return self._methods[name]

    def _traced(self, name: str) -> programs.Traced:
        """The method as a function of its numbers; recipes of one kind share it."""
        numbers, rest = programs.split(self._recipe(name))
        key, task = ("training" if name in BASELINES else name, rest), self.task
        if key not in self._makes:

            def make(values):
                values = dict(values)
                steps = values.pop("steps")
                return task.build(name, dataclasses.replace(rest, **values), steps)

            self._makes[key] = make
        steps = float(self._epoch_steps(name, self._method(name).data_use))
        return programs.Traced(self._makes[key], numbers | {"steps": steps})

    def _feed(self, name: str, use: methods.DataUse) -> loop.Feed:
        """The examples of a method, for as many stages as it has."""
        feed = self.task.feed
        forget = np.concatenate(feed.forget)
        if use.stages > len(forget):
            raise cli.ConfigError(
                f"--recipe.stages {use.stages}: the forget set has {len(forget)} "
                "images; give no more stages than that."
            )
        stages = tuple(np.array_split(forget, use.stages))
        retain = feed.retain
        if name == ORIGINAL:
            retain = np.sort(np.concatenate([forget, retain]))
        return dataclasses.replace(feed, forget=stages, retain=retain)

    def _epoch_steps(self, name: str, use: methods.DataUse) -> int:
        feed = self._feed(name, use)
        return loop.steps_per_epoch(use, feed, self._recipe(name).batch_size)

    def _original(self, seed: int) -> Any:
        """Parameters and model state of the original model."""
        row = self.store.row(ORIGINAL, seed)
        if row is None or row["status"] != "ok":
            raise loop.DivergedError("There is no original model to start from.")
        if seed not in self._originals:
            self._originals[seed] = self.store.checkpoint(ORIGINAL, seed)
        return self._originals[seed]

    def _measured(self, name: str, seed: int) -> Measured | None:
        """What was measured of a finished run."""
        row = self.store.row(name, seed)
        if row is None or row["status"] != "ok":
            return None
        return Measured(row, self.store.record(name, seed))

    def _line(self, row: dict[str, Any]) -> str:
        """A finished run on one line."""
        start = f"{row['method']}, seed {row['seed']}:"
        if row["status"] != "ok":
            return f"{start} {row['status']} ({row['reason']})"
        numbers = [
            f"{column.label} {tables.run_number(row, column)}"
            for column in self.task.columns
            if row.get(column.key) is not None
        ]
        return f"{start} {', '.join(numbers)}"


def _batches(runs: Sequence[tuple[str, int]], size: int) -> list[tuple[str, list[int]]]:
    """The runs by method, so many seeds at once, in the order of their first."""
    groups: dict[tuple[str, int], list[int]] = {}
    for name, seed in runs:
        groups.setdefault((name, seed // size), []).append(seed)
    return [(name, seeds) for (name, _), seeds in groups.items()]
