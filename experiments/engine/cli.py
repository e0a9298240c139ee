"""The command line of an experiment script, from a dataclass to an exit code.

Bad input ends with exit code 2 and a line or two on standard error, an interruption
with 130, a full disk or memory with 1. None shows a traceback or loses what was
computed.
"""

import _thread
import contextlib
import dataclasses
import logging
import os
import pathlib
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NoReturn, TypeVar

import jax

from experiments import data
from experiments.engine import flags, processes, recipes
from experiments.errors import UserError, printable, say
from experiments.models.precision import Precision

EXTENDABLE = (
    *("methods", "seeds", "out", "cache", "keep_every", "memory", "minutes"),
    *("workers", "batch_models", "devices", "shard_parameters"),
    *("coordinator", "processes", "process", "command", "adapted"),
)
"""Settings that say how much to do or where, not what: a folder may differ in them."""


class ConfigError(UserError):
    """A setting that cannot be; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """Settings that every study has.

    A kind of experiment adds its own below a ``HEADING``, and says whose numbers are
    flags: ``TRAINING`` is the recipe of the baselines, ``METHODS`` has the others, of
    which ``USUAL`` are run where nobody says which (all where it is empty).
    """

    HEADING: ClassVar[str] = "study"
    METHODS: ClassVar[Mapping[str, recipes.MethodFile]] = {}
    USUAL: ClassVar[Sequence[str]] = ()
    TRAINING: ClassVar[type[Any]] = object

    dataset: str = "digits"
    """Data: digits, fashion_mnist, cifar10, cifar100, svhn, or npz:PATH."""
    augment: bool | None = None
    """Crop and mirror training images at random; None where the data allow it."""
    memory: float = 4.0
    """Gigabytes of training images that may lie on the device; more are streamed."""
    checkpoint: pathlib.Path | None = None
    """Start from this trained model (an Orbax folder, or a file of msgpack, npz or
    safetensors) instead of training one."""
    methods: str = "usual"
    """Methods to run, separated by commas, or all; or usual, which leaves out those
    that other papers have proposed."""
    seeds: int = 5
    """Number of seeds, from 0."""
    trainings: int = 0
    """Trainings of the original and of each Retrain; 0 redoes them for every seed."""
    out: pathlib.Path | None = None
    """Folder for the results; by default results/TASK."""
    cache: pathlib.Path | None = pathlib.Path("results/cache")
    """Folder where trained originals and Retrains are kept for other studies."""
    keep_every: float = 60.0
    """Seconds between two checkpoints of a run in progress."""
    precision: Precision = "float32"
    """What layers compute in, float32 or bfloat16; parameters, statistics and gradients
    are float32."""
    minutes: float | None = None
    """Begin no run after so many minutes, and show what there is by then; the same
    command goes on with the rest."""
    workers: int | None = None
    """Runs at once, each on a thread; None is one a core for small models on CPU, and
    one else. Times are exact where it is 1."""
    batch_models: int | None = None
    """Seeds that go as one batch of models, over all devices; None is 16 for small
    models on an accelerator, and one else."""
    devices: int | None = None
    """Devices of this machine to run on, each with its part of every batch; None is
    all."""
    shard_parameters: bool = False
    """Split parameters and the optimiser's state over the devices, for a model that
    one cannot hold."""
    coordinator: str | None = None
    """HOST:PORT of the first of several processes, each started with this command;
    clusters (SLURM, TPU, Open MPI) need none of these three."""
    processes: int | None = None
    """Number of processes; 1 alone keeps out of a cluster's."""
    process: int | None = None
    """Number of this process, from 0."""
    changes: recipes.Changes = dataclasses.field(default_factory=dict)
    """What takes the place of recipes' numbers, by group: the flags with a dot."""

    def __post_init__(self):
        for name, limit in (
            ("seeds", recipes.COUNT),
            ("keep_every", recipes.NOT_NEGATIVE),
            ("memory", recipes.NOT_NEGATIVE),
            ("workers", recipes.COUNT_OR_NONE),
            ("batch_models", recipes.COUNT_OR_NONE),
            ("minutes", recipes.NOT_NEGATIVE_OR_NONE),
        ):
            value = getattr(self, name)
            if not limit.holds(value):
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {value}: give {limit.wanted}.")
        self._check_processes()
        if self.shard_parameters and (self.batch_models or 1) > 1:
            raise ConfigError(
                f"--batch-models {self.batch_models} lays whole models over the "
                "devices, --shard-parameters the parts of one. Leave one of them out."
            )
        if not 0 <= self.trainings <= self.seeds:
            raise ConfigError(
                f"--trainings {self.trainings}: give one for each of the {self.seeds} "
                "seeds, fewer, or 0."
            )
        if self.out is not None and not str(self.out).isprintable():
            raise ConfigError(
                f"--out {str(self.out)!r} holds characters that do not print. Give "
                "another, or set PYTHONUTF8=1 if they are letters."
            )
        try:
            str(self.folder.absolute()).encode()
        except UnicodeEncodeError:
            raise ConfigError(
                "The name of the current folder holds letters that this locale does "
                "not know. Set PYTHONUTF8=1, or give an --out elsewhere."
            ) from None
        except FileNotFoundError:
            raise ConfigError(
                "The current folder is gone. Change to one that exists."
            ) from None

    @property
    def together(self) -> bool:
        """Whether several processes run it as one; else each has work of its own."""
        return True

    def _check_processes(self) -> None:
        given = self.coordinator, self.processes, self.process
        if given in ((None, None, None), (None, 1, None)):
            return
        if not self.together:
            raise ConfigError(
                "--coordinator, --processes, --process: each process has work of its "
                "own here, so that none waits for another. Leave them out."
            )
        words = (
            "Give --coordinator HOST:PORT and --processes N, the same for all, and "
            "--process I from 0 to N - 1, or none of the three."
        )
        if self.coordinator is None or self.processes is None or self.process is None:
            raise ConfigError(f"One of three flags is missing. {words}")
        if not re.fullmatch(r"[\w.\-\[\]:]+:\d{1,5}", self.coordinator):
            raise ConfigError(f"--coordinator {self.coordinator!r}: {words}")
        if self.processes < 1 or not 0 <= self.process < self.processes:
            raise ConfigError(
                f"--process {self.process} of --processes {self.processes}: {words}"
            )

    @property
    def task(self) -> str:
        """Name of the task, for the default folder; experiments add their own."""
        return self.dataset

    @property
    def seed_numbers(self) -> Sequence[int]:
        """The seeds that are run here."""
        return range(self.seeds)

    @property
    def folder(self) -> pathlib.Path:
        """Where the results go."""
        if self.out is not None:
            return self.out
        return pathlib.Path("results") / self.task.replace("/", "_").replace(":", "_")


C = TypeVar("C", bound=Any)


def main(
    config_class: type[C],
    script: Callable[[C], None],
    prog: str,
    arguments: Sequence[str] | None = None,
) -> int:
    """Parses the flags, runs the script, and turns what can go wrong into an exit code.

    Args:
      config_class: a dataclass, for a study a :class:`StudyConfig`; its fields are the
        flags, its docstring the help.
      script: does the work.
      prog: the command as a person types it.
      arguments: of the command line; ``sys.argv[1:]`` by default.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _main(config_class, script, prog, arguments)
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # else Python's own last flush complains
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _main(
    config_class: type[C], script: Callable[[C], None], prog: str, arguments: list[str]
) -> int:
    """Runs the script; what it printed may still have to be written."""
    keep_compiled()
    for name in ("absl", "asyncio"):  # Orbax prints what it then raises
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with _interruptions(), _flushed():
            config = flags.parse(config_class, prog, arguments)
            if issubclass(config_class, StudyConfig) and config.together:
                processes.start(config.coordinator, config.processes, config.process)
            with _silent(processes.several() and not processes.leads()):
                script(config)
    except UserError as error:
        lines = f"{prog}: {error}".splitlines()
        say("\n".join(map(printable, lines)))
        return 2
    except KeyboardInterrupt:
        say("\nInterrupted. What was finished is kept: the same command goes on.")
        return 130
    except BrokenPipeError:  # nobody reads on
        return 1
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        full = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
        if not full and processes.several():
            why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            say(
                f"{prog}: another process has ended, or could not be heard ({why}). "
                "What was finished is kept: start all of them again to go on."
            )
            return 1
        if not full:
            raise
        say(
            f"{prog}: there is not enough memory. Give a smaller --memory, batch size "
            "or model; what was finished is kept."
        )
        return 1
    except OSError as error:
        say(
            f"{prog}: {error}. What was finished is kept: mend it, then run the same "
            "command to go on."
        )
        return 1
    return 0


def leave(code: int) -> NoReturn:
    """Ends the process with an exit code.

    After a failure at once, without Python's own tidying up: threads of Orbax and XLA
    that still end something and then ask for Python's lock would abort it.
    """
    if code:
        os._exit(code)
    sys.exit(code)


def keep_compiled() -> None:
    """Lets JAX keep compiled programs for the next process, where it can write."""
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if "://" in given:
        return  # JAX writes to the network itself
    if not given:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = pathlib.Path(given or f"{home}/mujax/compiled").expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            jax.config.update("jax_compilation_cache_dir", str(folder))
    except (OSError, RuntimeError) as error:  # not to be written to; no home at all
        # JAX would warn for each program that it compiles.
        jax.config.update("jax_compilation_cache_dir", None)
        if given:
            say(f"Compiled programs are not kept in JAX_COMPILATION_CACHE_DIR: {error}")


@contextlib.contextmanager
def _silent(quiet: bool) -> Iterator[None]:
    """Lets a process that does not lead print nothing but how it ends."""
    if not quiet:
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,  # noqa: PTH123
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


@contextlib.contextmanager
def _flushed() -> Iterator[None]:
    """Writes out what was printed, so that a reader that left is noticed here."""
    try:
        yield
    finally:
        sys.stdout.flush()


@contextlib.contextmanager
def _interruptions() -> Iterator[None]:
    """Repeats an interruption that fell into a callback, where Python drops it.

    JAX has such a callback for every garbage collection.
    """
    previous = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            threading.Timer(0.01, _thread.interrupt_main).start()
        else:
            previous(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = previous


def chosen(config: StudyConfig) -> list[str]:
    """The methods to run, in the order of the table.

    Raises:
      ConfigError: one is unknown, there is none, or none of them reads a number that
        was given.
    """
    wanted = config.methods
    if wanted == "usual":
        wanted = ",".join(config.USUAL or config.METHODS)
    names = choose(wanted, config.METHODS)
    read = {
        name: recipes.fields(config.METHODS[name].Recipe) for name in config.METHODS
    }
    for group, numbers in config.changes.items():
        for number, value in numbers.items():
            given = f"{recipes.flag(group, number)} {value}"
            if group in config.METHODS and group not in names:
                raise ConfigError(
                    f"{given}: {group} is not among --methods {config.methods}. Add "
                    "it, or leave the flag out."
                )
            if group == "recipe" and not any(number in read[name] for name in names):
                readers = [name for name in read if number in read[name]]
                raise ConfigError(
                    f"{given}: none of --methods {config.methods} reads it. Leave it "
                    f"out, or add one of {', '.join(readers)}."
                )
    return names


def choose(names: str, known: Iterable[str], of: str = "method") -> list[str]:
    """The names in a comma-separated list, in the known order.

    Args:
      names: the value of the flag.
      known: names to choose from.
      of: what is named; the flag is its plural.

    Raises:
      ConfigError: a name is unknown, or there is none.

    >>> choose("salun,finetune", ["finetune", "salun", "semu"])
    ['finetune', 'salun']
    """
    known = list(known)
    if names == "all":
        return known
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        what = printable(", ".join(unknown)) or "in it"
        raise ConfigError(
            f"--{of}s {names!r}: there is no {of} {what}. Choose from "
            f"{', '.join(known)}, or all."
        )
    return [name for name in known if name in wanted]


def load_data(config: StudyConfig) -> data.Dataset:
    """The data set that the flags name."""
    dataset = data.load(config.dataset)
    if config.augment is None:
        return dataset
    return dataclasses.replace(dataset, augment=config.augment)


def plain(config: StudyConfig) -> dict[str, Any]:
    """The configuration as plain values, without what the recipes hold already."""
    values = dataclasses.asdict(config)
    del values["changes"]
    return values
