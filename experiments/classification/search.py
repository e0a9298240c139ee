"""Searches each method's recipe against Retrain, on data that no report uses.

``python -m experiments.tune --dataset digits --scenario random`` moves a fifth of the
training images into a validation set that stands in for the test set, trains
originals and Retrains on the rest with seeds (and random forget sets) of its own, and
lets optuna look for the recipe whose mean gap to the validation Retrain is least. The
best few then run on further seeds, which alone decide: the best of many noisy trials
is partly the luckiest. Every method gets the same number of trials, baselines too. The
recipe goes to ``configs/`` beside this file with the gap that it reached on the further
seeds. Run again, a finished method is not searched anew.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
import optuna

from experiments import data
from experiments.classification import config as classification
from experiments.classification import evaluation, recipes
from experiments.classification.methods import METHODS
from experiments.classification.request import as_learned, make_split
from experiments.classification.task import Classification
from experiments.classification.trials import Trials, finished
from experiments.engine import cli, kernels, loop, study
from experiments.engine.bench import Bench
from experiments.engine.progress import Display
from experiments.engine.recipes import changed, resolve
from experiments.engine.store import Store
from experiments.engine.task import BASELINES, inputs
from experiments.engine.workers import Job, check, work
from experiments.errors import say
from experiments.files import to_json, write_atomically

FIRST_SEED = 1000  # far from the seeds of any report
WORST = 100.0  # the gap of a run that diverged

Benches = Mapping[int, Bench]
Trial = optuna.trial.Trial
FrozenTrial = optuna.trial.FrozenTrial


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Search recipes against a validation Retrain.

    Examples:
      python -m experiments.tune --trials 24 --seeds 4 --final-seeds 10 --finalists 6
      python -m experiments.tune --dataset npz:own.npz --recipes own.json
      python -m experiments.tune --methods salun --salun.batch-size 128
    """

    HEADING: ClassVar[str] = "search"

    seeds: int = 3
    """Number of validation seeds; each redoes training as well."""
    minutes: float | None = dataclasses.field(default=None, metadata={"flag": None})
    trials: int = 40
    """Recipes to try for every method."""
    max_epochs: int = 15
    """Epochs of the longest recipe to try; a third of them in each stage of CUFG."""
    finalists: int = 5
    """How many of the best recipes run on the further seeds."""
    final_seeds: int = 8
    """Number of further seeds, which decide between the finalists."""
    storage: str | None = None
    """Journal file, or URL of a database, whose trials many processes share, each with
    an --out of its own; None keeps them in the folder."""
    validation_fraction: float = 0.2
    """Share of the training images that stands in for the test set."""

    @property
    def together(self) -> bool:
        """Processes share trials by the storage alone."""
        return False

    @property
    def task(self) -> str:
        """Name of the task, for the default folder."""
        return f"tune-{super().task}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(Config, search, "experiments.tune", arguments)


def search(config: Config) -> None:
    """Searches what has no recipe of this many trials yet."""
    chosen = cli.chosen(config)
    if config.trials < 1:
        raise cli.ConfigError(f"--trials {config.trials}: give at least 1.")
    if config.checkpoint is not None or config.trainings:
        raise cli.ConfigError(
            "--checkpoint and --trainings: a search trains originals of its own, which "
            "have not seen its validation images."
        )
    if config.scenario == "indices":
        raise cli.ConfigError(
            "--scenario indices: its indices mean other images once a validation set "
            "is split off. Search on --scenario random with a like --forget-fraction."
        )
    path = config.recipes or recipes.CONFIGS / f"{config.recipe_task}.json"
    if not path.parent.is_dir():
        raise cli.ConfigError(
            f"There is no folder {path.parent} for the recipes: say with --recipes "
            "FILE where to write them."
        )
    dataset = data.validation_split(
        classification.load_data(config), config.validation_fraction, FIRST_SEED
    )
    split = make_split(config, dataset)
    task = Classification(config, as_learned(config, dataset, split), split)
    training = recipes.TRAINING.get(config.dataset, recipes.DEFAULT_TRAINING)
    defaults = {name: method.Recipe() for name, method in METHODS.items()}
    numbers = resolve(config.changes, training, defaults)
    kernels.check(task.shapes(), {name: numbers[name] for name in chosen})
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seeds = list(range(FIRST_SEED, FIRST_SEED + config.seeds + config.final_seeds))
    extendable = {*cli.EXTENDABLE, "trials", "finalists", "final_seeds"} - {"seeds"}
    settings = cli.plain(config)
    storage = settings.pop("storage")  # it may hold a password
    settings |= {
        "input": inputs(task),
        "recipes": {name: dataclasses.asdict(r) for name, r in numbers.items()},
    }
    with Store(config.folder, settings, tuple(extendable)) as store:
        common = {k: v for k, v in settings.items() if k not in extendable}
        tried = Trials(store, storage, config.task, common)
        for name in chosen:
            tried.study(name)  # what cannot be shared is refused before training
        bench = Bench(task, numbers, store, config)
        benches = {seed: bench.with_task(task.for_seed(seed)) for seed in seeds}
        with Display(1, lambda: "") as display:
            for seed in seeds:
                for name in BASELINES:
                    if store.row(name, seed) is None:
                        benches[seed].run(name, seed, display)
        if lost := [row["method"] for row in store.rows if row["status"] != "ok"]:
            raise cli.ConfigError(
                f"{lost[0]} diverged: give a smaller --train.learning-rate, and "
                "another --out."
            )
        for name in chosen:
            log = tried.study(name)
            objective = _objective(name, benches, seeds[: config.seeds], config)
            if not tried.run(log, config.trials, objective):
                say(
                    f"{name}: {len(finished(log))} of {config.trials} trials have "
                    "ended; other processes are at the rest, and the last decides."
                )
                continue
            further = seeds[config.seeds :] or seeds
            best, gap = _decide(name, benches, further, log, config.finalists)
            _keep(path, name, best, gap, len(finished(log)))
            print(f"{name}: gap {gap:.2f} with {best.params}", flush=True)
            _forget_compiled()


def _objective(
    name: str, benches: Benches, seeds: Sequence[int], config: Config
) -> Callable[[Trial], float]:
    """Mean gap to the validation Retrain over the seeds."""
    base = METHODS[name].Recipe()

    def objective(trial: Trial) -> float:
        tried = METHODS[name].suggest(trial, config.max_epochs)
        recipe = dataclasses.replace(base, **tried)
        # A number that a flag gives is not searched.
        recipe = changed(recipe, config.changes, name)
        trial.set_user_attr("recipe", dataclasses.asdict(recipe))
        gap = _mean_gap(name, benches, seeds, recipe)
        if trial.number % 8 == 7:
            _forget_compiled()
        return gap

    return objective


def _decide(
    name: str,
    benches: Benches,
    seeds: Sequence[int],
    log: optuna.Study,
    finalists: int,
) -> tuple[FrozenTrial, float]:
    """The trial that is best on further seeds, of those that were best so far."""
    ranked = sorted(finished(log), key=lambda trial: trial.value or 0.0)[
        : max(finalists, 1)
    ]
    gaps = []
    for trial in ranked:
        note = f"gap of trial {trial.number} on seeds {seeds[0]} to {seeds[-1]}"
        if note not in log.user_attrs:
            recipe = METHODS[name].Recipe(**trial.user_attrs["recipe"])
            log.set_user_attr(note, _mean_gap(name, benches, seeds, recipe))
        gaps.append(log.user_attrs[note])
    return ranked[int(np.argmin(gaps))], min(gaps)


def _mean_gap(name: str, benches: Benches, seeds: Sequence[int], recipe: Any) -> float:
    """Mean gap of a recipe to the validation Retrain."""
    trying = benches[seeds[0]].with_recipe(name, recipe)
    gaps: dict[int, float] = {}

    def run(seed: int) -> None:
        reference = trying.store.row("retrain", seed)
        assert reference is not None
        bench = trying.with_task(benches[seed].task)
        gaps[seed] = _gap(bench, name, seed, reference)

    jobs = [Job([seed], (), functools.partial(run, seed)) for seed in seeds]
    work(jobs, trying.at_once)
    return float(np.mean([gaps[seed] for seed in seeds]))


def _gap(bench, name: str, seed: int, reference: dict[str, Any]) -> float:
    """Gap of one run, without keeping anything of it."""
    try:
        run = bench.prepare(name, seed)
        state = loop.run(
            run.method,
            study.start(run),
            run.feed,
            batch_size=run.batch_size,
            on_epoch=lambda *_: check(),
            seed=study.run_seed(name, seed),
            traced=run.traced,
        )
        ours = bench.task.measure(*run.method.finish(state), seed)
        return evaluation.compare(ours.row, reference)["gap"]
    except loop.DivergedError:
        return WORST


def _forget_compiled() -> None:
    """Drops old trials' programs: a process may hold only so many memory maps."""
    loop.clear_cache()
    jax.clear_caches()


def _keep(
    path: pathlib.Path, name: str, trial: FrozenTrial, gap: float, trials: int
) -> None:
    """Writes a recipe beside those of the other methods."""
    found = json.loads(path.read_text()) if path.exists() else {}
    recipe = trial.user_attrs["recipe"]
    found[name] = {"recipe": recipe, "validation_gap": gap, "trials": trials}
    ordered = {method: found[method] for method in METHODS if method in found}
    write_atomically(path, (to_json(ordered) + "\n").encode())
