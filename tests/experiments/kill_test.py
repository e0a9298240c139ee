"""A study that is killed, interrupted or started twice, in processes of its own.

``python -m tests.experiments.kill_test FLAGS`` is the main job, which also notes on
which epoch each run of the loop starts.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from flax import linen

from experiments.classification import __main__ as classification
from experiments.engine import cli, loop, study
from experiments.engine.checkpoints import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
MODULE = "tests.experiments.kill_test"
# Runs in their order, and how many epochs each has: SalUn has a mask, SEMU bases, and
# CUFG stages to come back to.
EPOCHS = {
    "retrain": 3,
    "retrain_again": 3,
    "original": 3,
    "salun": 2,
    "semu": 2,
    "cufg": 6,
}
FLAGS = (
    *("--model", f"{MODULE}:Tiny", "--methods", "salun,semu,cufg"),
    *("--train.epochs", "3", "--recipe.epochs", "2", "--recipe.stages", "3"),
    *("--seeds", "1", "--keep-every", "0", "--cache", "None"),
)
KILLS = 10
PAUSE = 0.2  # seconds after an epoch, which is a moment: or none would be hit


class Tiny(linen.Module):
    """Compiles fast, and has a model state."""

    num_classes: int
    input_shape: tuple[int, int, int]

    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.Conv(4, (3, 3), strides=2)(x)
        x = linen.relu(linen.BatchNorm(use_running_average=not train)(x))
        return linen.Dense(self.num_classes)(x.reshape(len(x), -1))


def main() -> int:
    """The main job; ``STARTS`` names the file for the starts of its runs."""
    starts = pathlib.Path(os.environ["STARTS"])
    run = loop.run

    def noted(*arguments, seed, on_epoch, start_epoch=0, **options):
        with starts.open("a") as file:
            file.write(f"{seed[1]} {start_epoch}\n")

        def slowly(*epoch):
            on_epoch(*epoch)
            time.sleep(PAUSE)

        options |= {"seed": seed, "start_epoch": start_epoch, "on_epoch": slowly}
        return run(*arguments, **options)

    with mock.patch.object(loop, "run", noted):
        return classification.main()


class KillTest(parameterized.TestCase):
    folder: pathlib.Path

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        # The run that nothing disturbs; it compiles for the others.
        child = start(cls.folder / "whole")
        assert child.wait() == 0, errors(cls.folder / "whole")

    def start(self, out: pathlib.Path, *flags: str) -> subprocess.Popen:
        child = start(out, *flags)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        return child

    def wait_for(self, child: subprocess.Popen, out: pathlib.Path, aim) -> None:
        """Until the study has come as far as ``aim``."""
        while position(out) < aim:
            self.assertIsNone(child.poll(), f"ended too early: {errors(out)}")
            time.sleep(0.005)

    def test_ten_kills_change_no_bit_and_repeat_nothing(self):
        out = self.folder / "killed"
        rng = np.random.default_rng(0)
        points = [(i, e) for i, n in enumerate(EPOCHS.values()) for e in range(n)]
        aims = np.sort(rng.choice(np.arange(1, len(points) - 2), KILLS, replace=False))
        starts: list[tuple[str, int]] = []
        for aim in (*(points[i] for i in aims), None):
            rows, (place, epoch) = read_rows(out), position(out)
            child = self.start(out, "--workers", "1")
            if aim is None:
                self.assertEqual(child.wait(), 0, errors(out))
            else:
                # At least one epoch further, so that no kill falls on the imports.
                self.wait_for(child, out, max(aim, (place, epoch + 1)))
                time.sleep(rng.uniform(0, 0.3))
                child.kill()
                self.assertEqual(child.wait(), -signal.SIGKILL, "ended before its kill")
            self.assertEqual(read_rows(out)[: len(rows)], rows)
            starts, before = read_starts(out), len(starts)
            names = list(EPOCHS)[place : place + len(starts) - before]
            expected = [(name, epoch if i == 0 else 0) for i, name in enumerate(names)]
            self.assertEqual(starts[before:], expected)
        self.assertEqual(differing(contents(out), contents(self.folder / "whole")), [])

    def test_an_interruption_is_a_line_and_a_busy_folder_is_refused(self):
        out = self.folder / "interrupted"
        child = self.start(out)
        self.wait_for(child, out, (0, 1))
        child.send_signal(signal.SIGSTOP)  # busy for as long as the other asks
        other = self.start(out)
        self.assertEqual(other.wait(), 2)
        self.assertRegex(errors(out), r"(?m)^\S+: Another run is busy in .*--out\.\n\Z")
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGCONT)
        self.assertEqual(child.wait(), 130)
        self.assertRegex(errors(out), r"(?m)^Interrupted\. .* same command goes on\.$")
        self.assertNotIn("Traceback", errors(out))

        # A control: what is kept is what goes on, and other bits are seen.
        kept = out / f"progress/retrain-0/epoch_{position(out)[1]}"
        leaves = load_checkpoint(kept)
        save_checkpoint(kept, jax.tree.map(lambda x: x + x.dtype.type(1), leaves))
        child = self.start(out, "--workers", "1")  # in the order of the rows
        self.wait_for(child, out, (2, 0))
        child.kill()
        child.wait()
        others = differing(contents(out), contents(self.folder / "whole"))
        self.assertContainsSubset({"row retrain", "loss of retrain"}, others)
        self.assertNotIn("loss of retrain_again", others)


def start(out: pathlib.Path, *flags: str) -> subprocess.Popen:
    """The study in a process; its errors go to a file beside the folder."""
    environment = os.environ | {
        "STARTS": str(out.with_suffix(".starts")),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(out.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with out.with_suffix(".err").open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", MODULE, *FLAGS, *flags, "--out", str(out)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=file,
        )


def errors(out: pathlib.Path) -> str:
    """What the processes of a folder have said."""
    return out.with_suffix(".err").read_text()


def read_starts(out: pathlib.Path) -> list[tuple[str, int]]:
    """Runs that have begun or gone on, and after how many epochs."""
    names = {study.run_seed(name, 0)[1]: name for name in EPOCHS}
    lines = out.with_suffix(".starts").read_text().splitlines()
    return [(names[int(x)], int(y)) for x, y in map(str.split, lines)]


def read_rows(out: pathlib.Path) -> list[str]:
    """The rows of finished runs, each as text."""
    try:
        results = (out / "results.json").read_text()
    except FileNotFoundError:
        return []
    return [json.dumps(row) for row in json.loads(results)["rows"]]


def position(out: pathlib.Path) -> tuple[int, int]:
    """How many runs are finished, and how many epochs of the next are kept."""
    finished = len(read_rows(out))
    name = [*EPOCHS, "nothing"][finished]
    try:
        notes = (out / "progress" / f"{name}-0" / "notes.json").read_text()
    except FileNotFoundError:
        return finished, 0
    return finished, json.loads(notes)["epoch"]


def contents(out: pathlib.Path) -> dict[str, object]:
    """All that must not depend on kills: rows without times, bits, names of files."""
    found: dict[str, object] = {}
    for row in map(json.loads, read_rows(out)):
        name = row["method"]
        del row["seconds"]
        found[f"row {name}"] = row
        with np.load(out / "records" / f"{name}-0.npz") as record:
            for key, array in record.items():
                found[f"{key} of {name}"] = bits(array)
        tree = load_checkpoint(out / "checkpoints" / name / "seed_0")
        for path, leaf in jax.tree.leaves_with_path(tree):
            found[f"{name}{jax.tree_util.keystr(path)}"] = bits(leaf)
    files = (path.relative_to(out) for path in out.rglob("*"))
    found["files"] = sorted(str(path) for path in files if "seed_0" not in path.parts)
    return found


def differing(found: dict[str, object], expected: dict[str, object]) -> list[str]:
    """Keys under which two folders' contents are not the same."""
    keys = found.keys() | expected.keys()
    return sorted(key for key in keys if found.get(key) != expected.get(key))


def bits(array) -> tuple[str, tuple[int, ...], int]:
    """Type, shape and checksum of an array."""
    array = np.asarray(array)
    return str(array.dtype), array.shape, zlib.crc32(array.tobytes())


if __name__ == "__main__":
    if "STARTS" in os.environ:
        cli.leave(main())
    absltest.main()
