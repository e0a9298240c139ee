"""Trained baselines, kept for every study that would train the same ones again.

The original does not depend on what will be forgotten, nor Retrain on the methods that
are compared with it. An entry is found by what made it: data, model, recipe, seed,
and the versions and device that decide the last bit.
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.engine import processes
from experiments.engine.checkpoints import load_checkpoint, save_checkpoint
from experiments.engine.store import describe_environment
from experiments.engine.study import Result
from experiments.errors import say
from experiments.files import to_json, write_atomically

VERSIONS = ("python", "mujax", "jax", "jaxlib", "flax", "optax", "numpy", "device")


class Cache:
    """A folder of trained models.

    Args:
      folder: made when the first model is kept; None keeps nothing.
    """

    def __init__(self, folder: pathlib.Path | None):
        self._folder, self._told = folder, False
        environment = describe_environment()
        self._environment = {k: environment.get(k) for k in VERSIONS}

    def load(self, identity: Mapping[str, Any]) -> Result | None:
        """The model of this identity, if it was kept and can be read."""
        if self._folder is None:
            return None
        found = self._read(self._path(identity))
        # One that not all can read, all train.
        return found if processes.all_have(found is not None) else None

    def _read(self, path: pathlib.Path) -> Result | None:
        try:
            notes = json.loads((path / "notes.json").read_text())
            tree = load_checkpoint(path / "model")
            curves = {k: np.array(v) for k, v in notes["curves"].items()}
            return Result(**tree, seconds=notes["seconds"], curves=curves)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, identity: Mapping[str, Any], result: Result) -> None:
        """Keeps a model; the notes are written last and make it valid.

        A disk that is full or not to be written to fails no study: it says so, once.
        """
        if self._folder is None:
            return
        path = self._path(identity)
        aside = path.with_name(f".{path.name}.{processes.led(os.getpid)}")
        tree = {"params": result.params, "model_state": result.model_state}
        notes = {
            "identity": {**identity, **self._environment},
            "seconds": result.seconds,
            "curves": {k: v.tolist() for k, v in result.curves.items()},
        }
        try:
            save_checkpoint(aside / "model", tree)
            if not processes.leads():
                return
            write_atomically(aside / "notes.json", to_json(notes).encode())
            shutil.rmtree(path, ignore_errors=True)
            aside.replace(path)
        except OSError as error:
            if not self._told:
                say(f"Trained models are not kept in --cache: {error}")
            self._told = True
        finally:
            if processes.leads():
                shutil.rmtree(aside, ignore_errors=True)
            processes.wait("a model is cached")

    def _path(self, identity: Mapping[str, Any]) -> pathlib.Path:
        assert self._folder is not None
        text = to_json({**identity, **self._environment})
        return self._folder / hashlib.sha256(text.encode()).hexdigest()[:24]
