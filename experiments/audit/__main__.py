"""Audits of unlearning over a bank of models: ``python -m experiments.audit``.

Many models are trained, each on R and half of a pool, and each unlearns its half by
every method (:mod:`experiments.audit.pool`). What they then say of every example is
held against models that never saw the pool, and against models that were made to
forget something else.
"""

import dataclasses
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import ClassVar, Literal

import rich.console

from experiments.audit import audits, meta, pictures, scoring
from experiments.audit import bank as banks
from experiments.audit import pool as pools
from experiments.classification import config as classification
from experiments.classification import heldout, recipes
from experiments.classification.methods import METHODS, USUAL
from experiments.classification.optimisation import Optimisation
from experiments.classification.request import fit
from experiments.data import Pixels
from experiments.engine import cli, kernels, processes
from experiments.engine.bench import Bench
from experiments.engine.store import Store
from experiments.engine.task import BASELINES, inputs
from experiments.files import write_npz
from experiments.reporting import report, summary, tables

LOADING = """\
import numpy as np
from mujax import auditing
bank = np.load("{folder}/bank/{method}.npz")  # margins (models, examples), member
scores = auditing.likelihood_ratio(bank["pool"], bank["member"])
print(auditing.roc_area(scores, bank["member"]))"""
PANELS = {
    "mislabelled": "a random share of the training images, with wrong labels",
    "random": "a random share of the training images",
    "class": "the training images of the class {}",
    "memorised": "those training images that models which never saw them are least "
    "certain of",
    "typical": "those training images that models which never saw them are most "
    "certain of",
}


@dataclasses.dataclass(frozen=True)
class Config(cli.StudyConfig):
    """Audit unlearning methods over a bank of models.

    Examples:
      python -m experiments.audit
      python -m experiments.audit --models 16 --methods finetune,salun --panels random
      python -m experiments.audit --panels class --forget-class 3
    """

    HEADING: ClassVar[str] = "audit"
    METHODS: ClassVar = METHODS
    USUAL: ClassVar = USUAL
    TRAINING: ClassVar = Optimisation

    seeds: int = dataclasses.field(default=32, metadata={"flag": "models"})
    """Number of models of the bank, even: 16 for a first look, 64 for a table that is
    to be published."""
    trainings: int = dataclasses.field(default=0, metadata={"flag": None})
    checkpoint: pathlib.Path | None = dataclasses.field(
        default=None, metadata={"flag": None}
    )
    panels: str = "mislabelled,random"
    """What the pools are, separated by commas: mislabelled, random, class, memorised
    (what is hardest to tell unseen) or typical (what is easiest)."""
    forget_fraction: float = 0.1
    """Share of the training images that each model forgets; the pool has twice that."""
    pool_seed: int = 0
    """Which images are drawn for the pool, which labels they get, and its halves."""
    forget_class: str = "0"
    """Panel class: name or number of the class."""
    meta: bool = False
    """Audit the audits instead of methods: which tell models that forgot nothing from
    models that never saw it."""
    share: str | None = None
    """Do a part of the work alone, such as 2/3: every third pair of models from the
    second on. Run once more without it, in the same --out, for the table of all."""
    train_size: int | None = None
    """Draw R and the pool from so many training images only; None takes all."""
    model: str = "small_cnn"
    """Network: small_cnn, fast_cnn, resnet18, resnet20, resnet20_strided, vgg16_bn,
    vit_tiny, or module:factory."""
    recipes: pathlib.Path | None = None
    """JSON file of searched recipes; by default that of the task, if there is one."""
    width: int | None = None
    """Width of the network (channels of its first layer); None takes its own."""
    pixels: Pixels = "standardised"
    """What the network is given: standardised by channel, in [0, 1], or bytes."""

    def __post_init__(self):
        if self.seeds < banks.MIN_MODELS or self.seeds % 2:
            raise cli.ConfigError(
                f"--models {self.seeds}: give an even number from {banks.MIN_MODELS} "
                "on, for each model has another one that forgets the other half."
            )
        if not 0 < self.forget_fraction < 0.5:
            raise cli.ConfigError(
                f"--forget-fraction {self.forget_fraction:g}: give one between 0 and "
                "0.5, for the pool has twice that."
            )
        if self.pool_seed < 0:
            raise cli.ConfigError(f"--pool-seed {self.pool_seed}: give 0 or more.")
        asked = {name.strip() for name in self.panels.split(",")} - {""}
        if not asked or not asked.issubset(pools.PANELS):
            raise cli.ConfigError(
                f"--panels {self.panels!r}: choose from {', '.join(pools.PANELS)}."
            )
        if self.meta and (self.methods != "usual" or self.share is not None):
            raise cli.ConfigError(
                "--meta judges audits, not methods, and in one piece: leave out "
                "--methods and --share."
            )
        if self.meta and self.seeds < 2 * scoring.GROUP:
            raise cli.ConfigError(
                f"--models {self.seeds}: --meta compares groups of {scoring.GROUP}, so "
                f"give at least {2 * scoring.GROUP}."
            )
        if self.share is not None:
            parts = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.share)
            if not (parts and 1 <= int(parts[1]) <= int(parts[2]) <= self.seeds // 2):
                raise cli.ConfigError(
                    f"--share {self.share!r}: give i/n with i from 1 to n, and n at "
                    f"most the number of pairs, {self.seeds // 2}."
                )
        super().__post_init__()

    @property
    def together(self) -> bool:
        """A share is done by a process alone."""
        return self.share is None

    @property
    def seed_numbers(self) -> Sequence[int]:
        """The models of this share."""
        first, every = map(int, (self.share or "1/1").split("/"))
        return [m for m in range(self.seeds) if m // 2 % every == first - 1]

    @property
    def panel_names(self) -> list[pools.Panel]:
        """The pools to audit."""
        asked = {name.strip() for name in self.panels.split(",")}
        return [panel for panel in pools.PANELS if panel in asked]

    @property
    def task(self) -> str:
        """Name of the task, for the default folder."""
        model = self.model if self.width is None else f"{self.model}_{self.width}"
        size = "" if self.train_size is None else f"_{self.train_size}"
        return f"audit-{self.dataset}{size}-{model}-{self.forget_fraction:g}"

    def study(self, scenario: Literal["random", "class"]) -> classification.Config:
        """The study of one model, whose recipes and network these are."""
        names = {field.name for field in dataclasses.fields(classification.Config)}
        shared = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name in names
        }
        return classification.Config(**shared, scenario=scenario)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(Config, audit, "experiments.audit", arguments)


def audit(config: Config) -> None:
    """Audits every panel, or does what of it is missing."""
    chosen, study = cli.chosen(config), config.study("random")
    dataset = classification.load_data(study)
    options = config.forget_fraction, config.forget_class, config.pool_seed
    ranked = {"memorised", "typical"}.intersection(config.panel_names)
    # Processes that share a bank each rank the images by the same cached models.
    name = "certainty" if config.share is None else f"certainty-{_part(config.share)}"
    certainty = None
    if ranked:
        study = dataclasses.replace(study, out=config.folder)
        certainty = heldout.certainty(study, dataset, config.pool_seed, name=name)
    drawn: dict[pools.Panel, pools.Pool] = {
        panel: pools.draw(dataset, panel, *options, certainty)
        for panel in config.panel_names
    }
    for panel, pool in drawn.items():
        if config.meta:
            kind = config.study("class" if panel == "class" else "random")
            command = ["python", "-m", "experiments.audit", *sys.argv[1:]]
            folder = config.folder / f"meta-{panel}"
            meta.audit_audits(kind, panel, pool, folder, command)
        else:
            _audit(config, panel, pool, chosen)


def _audit(
    config: Config, panel: pools.Panel, pool: pools.Pool, chosen: Sequence[str]
) -> None:
    """Audits one panel in a folder of its own."""
    study = config.study("class" if panel == "class" else "random")
    numbers = classification.resolve_recipes(study)
    numbers, notes = fit(numbers, chosen, study, pool.dataset, pool.split(0))
    bank = banks.Bank(study, pool)
    kernels.check(bank.shapes(), {name: numbers[name] for name in chosen})
    settings = cli.plain(config) | {
        "command": ["python", "-m", "experiments.audit", *sys.argv[1:]],
        "panel": panel,
        "input": inputs(bank),
        "recipes": {name: dataclasses.asdict(r) for name, r in numbers.items()},
    }
    labels = {name: note.label for name, note in recipes.NOTES.items()}
    folder, order = config.folder / panel, (*BASELINES, *METHODS)
    shares = folder.glob("share-*-of-*")
    if config.share is not None:
        folder, shares = folder / f"share-{_part(config.share)}", ()
    extendable = (*cli.EXTENDABLE, "panels", "share")
    with Store(folder, settings, extendable, order) as store:
        for other in shares:
            store.adopt(other)

        def accuracies() -> summary.Summary:
            return summary.summarise(store.rows, bank.columns, labels=labels)

        def table():
            return tables.rich_table(accuracies(), pending=(*BASELINES, *chosen))

        Bench(bank, numbers, store, config).run_all(chosen, table)
        if config.share is not None:
            print(f"Kept in {folder}: give the same flags without --share at the end.")
            return
        if not processes.leads():
            return
        found = banks.read(store, pool, [m.method for m in accuracies().methods])
        for name, margins in found.items():
            write_npz(folder / "bank" / f"{name}.npz", margins._asdict())
        audited = audits.audited(accuracies(), found)
        what = PANELS[panel].format(config.forget_class)
        count = len(found["retrain"].models) if "retrain" in found else 0
        report.write(
            folder,
            store.results,
            bank.columns,
            title=f"Audit of unlearning {config.task.removeprefix('audit-')}: {panel}",
            description=" ".join([_describe(config, pool, what, count), *notes]),
            figures=pictures.figures(audited, found),
            methods=recipes.NOTES,
            loading=LOADING.format(
                folder=folder, method=next(iter([*chosen, "original"]))
            ),
            texts=(report.Text("How to read the audits", audits.READING),),
            summary=audited,
        )
        console = rich.console.Console()
        width = None if console.is_terminal else 110
        rich.console.Console(width=width).print(tables.rich_table(audited))
        print(f"Report: {folder / 'report.html'}")


def _part(share: str) -> str:
    """A share as a part of a folder's name."""
    return share.replace("/", "-of-")


def _describe(config: Config, pool: pools.Pool, what: str, count: int) -> str:
    """The protocol, in a few sentences."""
    half = len(pool.pool) // 2
    return (
        f"{count} models ({config.model} on {config.dataset}) were each trained on "
        f"{len(pool.retain)} images that all share and on {half} of a pool of "
        f"{len(pool.pool)}: {what}. Each had to forget its half; every example of the "
        "pool is in half of the models. As many Retrains never saw the pool, and as "
        "many again stand as a method beside the others: what they score is chance."
    )


if __name__ == "__main__":
    cli.leave(main())
