"""The command line of an experiment script, from a dataclass to an exit code.

Bad input ends with exit code 2 and a line or two on standard error, an interruption
with 130, a full disk or memory with 1. None shows a traceback or loses what was
computed.
"""

import _thread
import contextlib
import dataclasses
import io
import itertools
import logging
import os
import pathlib
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

import jax
from typing_extensions import Doc

from experiments import data
from experiments.classification.recipes import RecipeError
from experiments.data import DataError
from experiments.engine.checkpoints import StoreError
from experiments.models import ModelError

EXTENDABLE = (
    *("methods", "seeds", "out", "cache", "keep_every", "memory"),
    *("command", "adapted"),
)
"""Settings that say how much to do or where, not what: a folder may differ in them."""


class ConfigError(ValueError):
    """A setting that cannot be; the message says what to do."""


def overrides(recipe_class: type) -> Any:
    """A recipe class whose fields are None where the recipe's own value stands."""
    return dataclasses.make_dataclass(
        f"{recipe_class.__name__}Overrides",
        [
            (f.name, Annotated[f.type | None, Doc(f.metadata["help"])], None)
            for f in dataclasses.fields(recipe_class)
        ],
        frozen=True,
    )


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """Settings that every experiment has."""

    dataset: str = "digits"
    """Data: digits, fashion_mnist, cifar10, cifar100, svhn, or npz:PATH."""
    augment: bool | None = None
    """Crop and mirror training images at random; None where the data allow it."""
    memory: float = 4.0
    """Gigabytes of training images that may lie on the device; more are streamed."""
    checkpoint: pathlib.Path | None = None
    """Start from this trained model (an Orbax folder) instead of training one."""
    methods: str = "all"
    """Methods to run, separated by commas, or all."""
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

    def __post_init__(self):
        if not _COUNT[0](self.seeds):
            raise ConfigError(f"--seeds {self.seeds}: give {_COUNT[1]}.")
        if not 0 <= self.trainings <= self.seeds:
            raise ConfigError(
                f"--trainings {self.trainings}: give one for each of the {self.seeds} "
                "seeds, fewer, or 0."
            )
        for name in ("keep_every", "memory"):
            value = getattr(self, name)
            if not _NOT_NEGATIVE[0](value):
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {value}: give {_NOT_NEGATIVE[1]}.")
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
    def task(self) -> str:
        """Name of the task, for the default folder; experiments add their own."""
        return self.dataset

    @property
    def folder(self) -> pathlib.Path:
        """Where the results go."""
        if self.out is not None:
            return self.out
        return pathlib.Path("results") / self.task.replace("/", "_").replace(":", "_")


C = TypeVar("C", bound=StudyConfig)
R = TypeVar("R", bound=Any)


def main(
    config_class: type[C],
    script: Callable[[C], None],
    prog: str,
    arguments: Sequence[str] | None = None,
) -> int:
    """Parses the flags, runs the script, and turns what can go wrong into an exit code.

    Args:
      config_class: a dataclass; its fields are the flags, its docstring the help.
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
            script(parse(config_class, prog, arguments))
    except (ConfigError, DataError, ModelError, RecipeError, StoreError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nInterrupted. What was finished is kept: the same command goes on.",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:  # nobody reads on
        return 1
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
            raise
        print(
            f"{prog}: there is not enough memory. Give a smaller --memory, batch size "
            "or model; what was finished is kept.",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        print(
            f"{prog}: {error}. What was finished is kept: mend it, then run the same "
            "command to go on.",
            file=sys.stderr,
        )
        return 1
    return 0


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
            print(
                f"Compiled programs are not kept in JAX_COMPILATION_CACHE_DIR: {error}",
                file=sys.stderr,
            )


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


def parse(config_class: type[C], prog: str, arguments: Sequence[str]) -> C:
    """The configuration that the flags describe.

    Raises:
      ConfigError: a flag or a value is wrong.
    """
    import tyro  # not on every machine that runs experiments from Python

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(config_class, args=arguments, prog=prog)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_first_words(said.getvalue())) from None


def choose(names: str, known: Iterable[str]) -> list[str]:
    """The names in a comma-separated list, in the known order.

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
        what = _printable(", ".join(unknown)) or "in it"
        raise ConfigError(
            f"--methods {names!r}: there is no method {what}. Choose from "
            f"{', '.join(known)}, or all."
        )
    return [name for name in known if name in wanted]


def load_data(config: StudyConfig) -> data.Dataset:
    """The data set that the flags name."""
    dataset = data.load(config.dataset)
    if config.augment is None:
        return dataset
    return dataclasses.replace(dataset, augment=config.augment)


def override(recipe: R, changes: Any, group: str) -> R:
    """The recipe with what the command line gives.

    Raises:
      ConfigError: a number is out of its range.
    """
    given = {k: v for k, v in dataclasses.asdict(changes).items() if v is not None}
    recipe = dataclasses.replace(recipe, **given)
    for name, (holds, wanted) in _RANGES.items():
        value = getattr(recipe, name, None)
        if value is not None and not holds(value):
            flag = name.replace("_", "-")
            raise ConfigError(f"--{group}.{flag} {value}: give {wanted}.")
    return recipe


_POSITIVE = (lambda x: 0 < x < float("inf"), "a positive number")
_COUNT = (lambda x: 1 <= x <= 10**6, "a number from 1 to a million")
_FINITE = (lambda x: abs(x) < float("inf"), "a finite number")
_SHARE = (lambda x: 0 <= x <= 1, "a share between 0 and 1")
_NOT_NEGATIVE = (lambda x: 0 <= x < float("inf"), "a number of at least 0")
_RANGES = {
    "learning_rate": _POSITIVE,
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "momentum": _SHARE,
    "weight_decay": _NOT_NEGATIVE,
    "density": _SHARE,
    "retain_share": _SHARE,
    "energy": (lambda x: 0 < x <= 1, "a share above 0, up to 1"),
    "rank": _NOT_NEGATIVE,
    "threshold": _FINITE,
    "threshold_fall": _FINITE,
    "forget_weight": _NOT_NEGATIVE,
    "forget_decay": _FINITE,
    "strength": _FINITE,
    "correction": _FINITE,
    "stages": _COUNT,
}


def plain(config: StudyConfig) -> dict[str, Any]:
    """The configuration as plain values, without overrides that are not given."""
    values = dataclasses.asdict(config)
    for group in {"train", "recipe"} & values.keys():
        values[group] = {k: v for k, v in values[group].items() if v is not None}
    return values


def _first_words(box: str) -> str:
    """What the parser says, out of its frame and on one line."""
    lines = [line.strip("│╭╮╰╯─| ") for line in box.splitlines()[1:]]
    # Where the locale has no other characters, the frame is of these.
    inside = itertools.dropwhile(lambda line: not line.strip("-+"), lines)
    words = itertools.takewhile(lambda line: line.strip("-+"), inside)
    return f"{_printable(' '.join(words))} See --help."


def _printable(text: str) -> str:
    """The text with a question mark for what would not print."""
    return "".join(char if char.isprintable() else "?" for char in text)
