"""Several processes run one study: the table of one, and what becomes of a dead one."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments.audit import __main__ as audit
from experiments.classification import __main__ as classification
from experiments.classification import search
from experiments.engine import processes
from experiments.engine.checkpoints import load_checkpoint
from experiments.errors import UserError
from tests import command_line
from tests.experiments.classification_test import tiny_npz

ROOT = pathlib.Path(__file__).parents[2]
METHODS = "finetune,salun,semu,ufg"


def start(*flags: str, count: int = 2) -> list[subprocess.Popen]:
    """The job in so many processes, each of two devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    where = ("--coordinator", f"127.0.0.1:{port}", "--processes", str(count))
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "experiments.classification", *flags),
                *(*where, "--process", str(number)),
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def rows(folder: pathlib.Path) -> list[dict]:
    """The rows of a study, without its times."""
    with contextlib.suppress(FileNotFoundError):
        found = json.loads((folder / "results.json").read_text())["rows"]
        return [{k: v for k, v in row.items() if k != "seconds"} for row in found]
    return []


def own_lines(said: str) -> list[str]:
    """What is ours of the output: collectives print lines of their own."""
    theirs = re.compile(r"\[Gloo\]|^[EWIF]\d{4} |^\s*$")
    return [line for line in said.splitlines() if not theirs.search(line)]


@pytest.mark.slow
class DistributedTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.data = tiny_npz(self.folder / "own.npz")

    def flags(self, out, *flags):
        return [
            *("--dataset", str(self.data), "--methods", METHODS, "--seeds", "1"),
            *("--train.epochs", "3", "--recipe.epochs", "2", "--keep-every", "0"),
            *("--train.batch-size", "16", "--recipe.batch-size", "16"),
            *("--forget-fraction", "0.25", "--out", str(self.folder / out), *flags),
        ]

    def ended(self, children) -> list[tuple[int, str, str]]:
        for child in children:
            self.addCleanup(child.kill)
        said = [child.communicate(timeout=300) for child in children]
        return [
            (child.returncode, *words)
            for child, words in zip(children, said, strict=True)
        ]

    def assert_same_rows(self, one, other):
        self.assertEqual([r["method"] for r in one], [r["method"] for r in other])
        for found, wanted in zip(one, other, strict=True):
            self.assertEqual(found["status"], "ok")
            for key, value in wanted.items():
                if isinstance(value, float):
                    # A picture on the boundary may turn with the last digit.
                    np.testing.assert_allclose(
                        found[key], value, atol=2.1, rtol=0.02, err_msg=key
                    )

    @parameterized.parameters(((),), (("--shard-parameters",),))
    def test_the_table_of_one_process(self, layout):
        cache = ("--cache", str(self.folder / "cache"))
        ends = self.ended(start(*self.flags("two", *cache, *layout)))
        for code, _, err in ends:
            self.assertEqual(code, 0, err)
        # The first one writes and shows, the other is silent.
        self.assertIn("Report: ", ends[0][1])
        self.assertEqual(own_lines(ends[1][1] + ends[1][2]), [])
        self.assertTrue((self.folder / "two/report.html").exists())
        environment = json.loads((self.folder / "two/results.json").read_text())
        self.assertEqual(environment["environment"]["processes"], 2)
        self.assertIn("4 × ", environment["environment"]["device"])

        flags = self.flags("one", "--cache", "None", "--devices", "1")
        code, _, err = command_line.run(classification.main, *flags)
        self.assertEqual(code, 0, err)
        self.assert_same_rows(rows(self.folder / "two"), rows(self.folder / "one"))
        # A checkpoint of two processes is read by one.
        for method in ("original", "semu"):
            two, one = (
                load_checkpoint(self.folder / out / "checkpoints" / method / "seed_0")
                for out in ("two", "one")
            )
            for name, leaf in one["params"]["dense"].items():
                np.testing.assert_allclose(
                    two["params"]["dense"][name], leaf, atol=5e-3, rtol=0.02
                )

    def test_one_is_killed_and_the_other_ends_in_a_line(self):
        flags = self.flags("killed", "--cache", "None")
        children = start(*flags)
        for child in children:
            self.addCleanup(child.kill)
        deadline = time.monotonic() + 200
        while len(rows(self.folder / "killed")) < 2:
            self.assertLess(time.monotonic(), deadline)
            self.assertIsNone(children[0].poll())
            time.sleep(0.01)
        children[1].kill()
        code, out, err = self.ended(children)[0]
        self.assertEqual((code, own_lines(out)), (1, []), err)
        self.assertIn("another process has ended", own_lines(err)[-1])
        self.assertNotIn("Traceback", err)
        before = rows(self.folder / "killed")
        self.assertGreaterEqual(len(before), 2)

        # One process alone goes on where two were.
        code, _, err = command_line.run(classification.main, *flags, "--devices", "1")
        self.assertEqual(code, 0, err)
        after = rows(self.folder / "killed")
        self.assertEqual(after[: len(before)], before)
        self.assertLen(after, 3 + len(METHODS.split(",")))

    def test_what_the_leading_process_refuses_ends_all(self):
        (self.folder / "busy").mkdir()
        (self.folder / "busy/config.json").write_text('{"dataset": "digits"}')
        for code, out, err in self.ended(start(*self.flags("busy"))):
            self.assertEqual((code, own_lines(out)), (2, []), err)
            [line] = own_lines(err)
            self.assertIn("another configuration", line)


class FlagsTest(parameterized.TestCase):
    @parameterized.parameters(
        ("--coordinator localhost:1 --processes 2", "is missing"),
        ("--process 0", "is missing"),
        ("--coordinator localhost --processes 2 --process 0", "'localhost'"),
        ("--coordinator h:1 --processes 2 --process 2", "--process 2 of --processes 2"),
    )
    def test_bad_flags_are_a_line(self, flags, words):
        code, out, err = command_line.run(classification.main, *flags.split())
        self.assertEqual((code, out, err.count("\n")), (2, "", 1))
        self.assertIn(words, err)

    @parameterized.parameters(
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_NTASKS": "4"}, False),  # a job whose step is not of srun
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    )
    def test_clusters_are_joined_where_a_step_has_several_processes(self, told, joins):
        with (
            mock.patch.dict(os.environ, told),
            mock.patch.object(jax.distributed, "initialize") as initialize,
            mock.patch.object(jax.config, "update"),
        ):
            processes.start(None, 1, None)
            self.assertEqual(initialize.call_count, 0)
            processes.start(None, None, None)
            self.assertEqual(initialize.call_count, int(joins))

    @parameterized.parameters(
        (search.main, "--storage j.log"), (audit.main, "--share 1/2")
    )
    def test_work_of_ones_own_joins_nobody(self, main, flags):
        # Each of a cluster's processes would wait for the others' other trials.
        told = {"SLURM_STEP_NUM_TASKS": "4"}
        with (
            mock.patch.dict(os.environ, told),
            mock.patch.object(processes, "start", side_effect=AssertionError),
        ):
            code, _, err = command_line.run(main, *flags.split(), "--dataset", "none")
        self.assertEqual((code, err.count("\n")), (2, 1), err)
        where = "--coordinator h:1 --processes 2 --process 0"
        code, _, err = command_line.run(main, *flags.split(), *where.split())
        self.assertEqual((code, err.count("\n")), (2, 1), err)
        self.assertIn("each process has work of its own", err)

    def test_processes_that_do_not_come_together_are_a_line(self):
        with (
            mock.patch.object(jax.distributed, "initialize", side_effect=RuntimeError),
            mock.patch.object(jax.config, "update"),
            self.assertRaisesRegex(UserError, "did not come together by --coordinator"),
        ):
            processes.start("host:1", 2, 0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    absltest.main()
