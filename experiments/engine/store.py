"""The folder of a study: what is finished stays finished.

::

    config.json            the exact configuration
    results.json           configuration, environment and a row for each finished run
    records/METHOD-SEED.npz   its curves and outputs, for the report
    checkpoints/METHOD/seed_N its parameters and model state (Orbax), its card seed_N.md
    forgotten/seed_N.txt   indices of what its models were made to forget
    progress/METHOD-SEED/  where an unfinished run stands (Orbax), then removed

Every file appears in one step and a run's row is written last, so that a kill at any
moment loses no finished run. One process at a time holds the folder.
"""

import copy
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np

from experiments.engine import processes
from experiments.engine.checkpoints import (
    StoreError,
    load_checkpoint,
    reason,
    save_checkpoint,
)
from experiments.files import to_json, write_atomically, write_npz

PACKAGES = ("mujax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

_LEFTOVERS = (
    ".*.json.*.tmp",
    ".*.md.*.tmp",
    ".*.html.*.tmp",
    "plots/.*.png.*.tmp",
    "forgotten/.*.txt.*.tmp",
    "records/.*.npz.*.tmp",
    "checkpoints/*/.*.md.*.tmp",
    "checkpoints/*/seed_*.orbax-checkpoint-tmp*",
)


class Store:
    """A study's folder, held for this process. Use it in a ``with`` statement.

    Args:
      folder: made if it is not there.
      config: plain values; those named in ``extendable`` may differ from the
        configuration that the folder was begun with.
      extendable: fields that only say how much to do, such as the number of seeds.
      order: methods in the order of the rows of a seed, whichever ends first.

    Raises:
      StoreError: the folder is busy, unwritable, damaged, or of another study.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        config: Mapping[str, Any],
        extendable: tuple[str, ...] = (),
        order: Sequence[str] = (),
    ):
        self._order = {method: i for i, method in enumerate(order)}
        self._extendable = extendable
        self.folder, self._writing = folder, threading.Lock()
        self.config = json.loads(to_json(dict(config)))
        self.rows: list[dict[str, Any]] = processes.led(self._open)

    def _open(self) -> list[dict[str, Any]]:
        """Takes the folder; the rows that it has."""
        folder = self.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / ".lock").open("w")
        except OSError as error:
            raise StoreError(
                f"Cannot write to {folder}: {error.strerror}. Give another --out."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise StoreError(
                f"Another run is busy in {folder}. Wait for it, or give another --out."
            ) from error
        try:
            self._check_config()
            rows = self._read_rows()
            self._sweep(rows)
        except BaseException:
            self._lock.close()
            raise
        return rows

    def __enter__(self) -> Self:
        """The store itself."""
        return self

    def __exit__(self, *_) -> None:
        """Lets the folder go."""
        if processes.leads():
            self._lock.close()

    def row(self, method: str, seed: int) -> dict[str, Any] | None:
        """The row of a finished run, or None."""
        for row in self.rows:
            if (row["method"], row["seed"]) == (method, seed):
                return row
        return None

    def finish(
        self,
        row: dict[str, Any],
        record: Mapping[str, np.ndarray],
        checkpoint: Any | None,
    ) -> None:
        """Keeps a finished run: its record, its checkpoint, and last its row."""
        method, seed = row["method"], row["seed"]
        with self._writing:
            if processes.leads():
                self._begin()
                write_npz(self._record_path(method, seed), record)
            if checkpoint is not None:
                save_checkpoint(self.checkpoint_path(method, seed), checkpoint)
            # Times differ between processes: all have the row of one.
            self.rows.append(processes.led(lambda: json.loads(to_json(row))))
            self.rows.sort(key=self._place)
            if processes.leads():
                self._save(self.folder / "results.json", self.results)
                shutil.rmtree(self._progress(method, seed), ignore_errors=True)
        processes.wait("a run is kept")

    def keep(self, name: str, text: str) -> None:
        """Keeps a text beside the runs, unless it is there."""
        path = self.folder / name
        if processes.leads() and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode())

    def kept(self, name: str) -> str:
        """A text kept beside the runs.

        Raises:
          StoreError: it is gone, or damaged.
        """
        try:
            return (self.folder / name).read_text()
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{self.folder / name} cannot be read: {reason(error)}. Put it back, "
                "or give another --out."
            ) from error

    def adopt(self, folder: pathlib.Path) -> None:
        """Takes over the finished runs of a like study that another process had.

        Raises:
          StoreError: something of it is damaged, or its configuration is another.
        """
        other = copy.copy(self)
        other.folder = folder
        other._check_config()
        for row in other._read_rows():
            method, seed = row["method"], row["seed"]
            if self.row(method, seed) is not None:
                continue
            record, checkpoint = {}, None
            if row["status"] == "ok":
                record = other.record(method, seed)
                if other.checkpoint_path(method, seed).exists():
                    checkpoint = other.checkpoint(method, seed)
            self.finish(row, record, checkpoint)

    def _sweep(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Removes what a killed process has left: only the holder writes here."""
        for pattern in _LEFTOVERS:
            for path in self.folder.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        # By what is there, not by the rows: these may have been written by hand.
        finished = {f"{row['method']}-{row['seed']}" for row in rows}
        for path in self.folder.glob("progress/*"):
            if path.name in finished:
                shutil.rmtree(path, ignore_errors=True)

    @property
    def results(self) -> dict[str, Any]:
        """What ``results.json`` holds."""
        environment = describe_environment()
        environment["precision"] = self.config.get("precision", "float32")
        return {"config": self.config, "environment": environment, "rows": self.rows}

    def has_record(self, method: str, seed: int) -> bool:
        """Whether a run's arrays lie here; a folder may keep its rows alone."""
        return self._record_path(method, seed).exists()

    def record(self, method: str, seed: int) -> dict[str, np.ndarray]:
        """The arrays kept with a finished run.

        Raises:
          StoreError: they are gone, or damaged.
        """
        path = self._record_path(method, seed)
        try:
            # Opened here: np.load leaves the file open where the archive is damaged.
            with path.open("rb") as file, np.load(file) as data:
                return dict(data)
        except Exception as error:  # zip, zlib and numpy raise a dozen kinds
            raise StoreError(
                f"{path} cannot be read: {reason(error)}. {self._remedy(method, seed)}"
            ) from error

    def checkpoint_path(self, method: str, seed: int) -> pathlib.Path:
        """Folder of a run's parameters and model state."""
        return self.folder / "checkpoints" / method / f"seed_{seed}"

    def checkpoint(self, method: str, seed: int) -> Any:
        """Parameters and model state of a finished run.

        Raises:
          StoreError: they are gone, or damaged.
        """
        try:
            return load_checkpoint(self.checkpoint_path(method, seed))
        except StoreError as error:
            raise StoreError(f"{error}. {self._remedy(method, seed)}") from error

    def save_progress(
        self, method: str, seed: int, epoch: int, state: Any, notes: dict[str, Any]
    ) -> None:
        """Keeps where a run stands after an epoch, in place of what was kept before."""
        folder = self._progress(method, seed)
        with self._writing:
            if processes.leads():
                self._begin()
        leaves = {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
        save_checkpoint(folder / f"epoch_{epoch}", leaves)
        if not processes.leads():
            return
        # The notes name the epoch: they turn the new checkpoint into the valid one.
        self._save(folder / "notes.json", notes | {"epoch": epoch})
        for old in folder.glob("epoch_*"):
            if old.name != f"epoch_{epoch}":
                shutil.rmtree(old, ignore_errors=True)

    def load_progress(
        self, method: str, seed: int, like: Callable[[], Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        """State, in the structure of ``like()``, and notes of an unfinished run.

        None if there is none, or if it is damaged: the run then begins anew.
        """
        folder = self._progress(method, seed)
        try:
            notes = json.loads((folder / "notes.json").read_text())
            leaves = load_checkpoint(folder / f"epoch_{notes['epoch']}")
            ordered = [leaves[name] for name in sorted(leaves)]
        except (OSError, ValueError, TypeError, KeyError):
            return None
        expected, structure = jax.tree.flatten(like())
        if list(map(_form, ordered)) != list(map(_form, expected)):
            return None
        return jax.tree.unflatten(structure, ordered), notes

    def _place(self, row: dict[str, Any]) -> tuple[int, int]:
        return row["seed"], self._order.get(row["method"], len(self._order))

    def _begin(self) -> None:
        """Keeps the configuration, once there is something to keep it for."""
        self._save(self.folder / "config.json", self.config)

    def _progress(self, method: str, seed: int) -> pathlib.Path:
        return self.folder / "progress" / f"{method}-{seed}"

    def _record_path(self, method: str, seed: int) -> pathlib.Path:
        return self.folder / "records" / f"{method}-{seed}.npz"

    def _remedy(self, method: str, seed: int) -> str:
        return (
            f"Put it back, or remove the row of {method}, seed {seed} from "
            f"{self.folder / 'results.json'}: it is then computed again."
        )

    def _save(self, path: pathlib.Path, value: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, to_json(value).encode())

    def _check_config(self) -> None:
        begun = self._read("config.json")
        if begun is None:
            begun = (self._read("results.json") or {}).get("config")
        if not isinstance(begun, dict):
            return
        there, now = _flat(begun), _flat(self.config)
        differing = [
            f"{_shown(name)}={there.get(name)!r} there, {now.get(name)!r} now"
            for name in sorted(there.keys() | now.keys())
            if name.split(".")[0] not in self._extendable
            and there.get(name) != now.get(name)
        ]
        if differing:
            listed = "; ".join(differing[:4])
            more = f"; {len(differing) - 4} more" if len(differing) > 4 else ""
            raise StoreError(
                f"{self.folder} holds a study of another configuration "
                f"({listed}{more}). Give another --out, or the same flags."
            )

    def _read_rows(self) -> list[dict[str, Any]]:
        results = self._read("results.json")
        if results is None:
            return []
        rows = results.get("rows")
        if not isinstance(rows, list) or not all(
            isinstance(row, dict)
            and isinstance(row.get("method"), str)
            and isinstance(row.get("seed"), int)
            and isinstance(row.get("status"), str)
            for row in rows
        ):
            raise StoreError(
                f"{self.folder / 'results.json'} has no list of rows with method, seed "
                "and status. Move it away to compute everything again, or mend it."
            )
        return rows

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        if not path.exists():
            return None
        try:
            value = json.loads(path.read_text())
            if not isinstance(value, dict):
                raise ValueError(f"it holds a {type(value).__name__}")
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(
                f"{path} cannot be read ({reason(error)}). Move it away to begin "
                "anew, or give another --out."
            ) from error
        return value


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields of a configuration, those of its groups as ``group.field``."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            fields |= _flat(value, f"{prefix}{name}.")
        else:
            fields[f"{prefix}{name}"] = value
    return fields


def _shown(name: str) -> str:
    """The name, quoted if it would not print."""
    return name if name.isprintable() else repr(name)


def _form(leaf: Any) -> tuple[tuple[int, ...], Any]:
    """Shape and type of a leaf."""
    return np.shape(leaf), getattr(leaf, "dtype", None)


def describe_environment() -> dict[str, Any]:
    """Versions and devices, for the results."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "device": f"{jax.device_count()} × {device.device_kind} ({device.platform})",
        "processes": jax.process_count(),
        "cores": os.cpu_count(),
    }
