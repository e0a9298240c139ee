"""SEMU's kernels on the command line: said by a flag, refused in a line, shown."""

import contextlib
import io
import pathlib
import re
import tempfile
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from flax import nnx

from experiments.classification import __main__ as classification
from experiments.engine import bench, kernels
from mujax.roles import MatrixAxes


class Mixer(nnx.Module):
    """A model with a kernel that neither its name nor its shape explains."""

    def __init__(self, num_classes, input_shape, *, rngs):
        height, width, channels = input_shape
        ones = nnx.initializers.normal(0.1)
        self.mix = nnx.Param(ones(rngs.params(), (height, width * channels, 6)))
        self.head = nnx.Linear(6, num_classes, rngs=rngs)

    def __call__(self, x):
        x = x.reshape(*x.shape[:2], -1)
        mixed = np.float32(0.1) * (x[:, :, None] @ self.mix[...][None])
        return self.head(nnx.relu(mixed[:, :, 0]).mean(1))


MODEL = f"{__name__}:Mixer"
STACK = "mix=batch:0;rows:1;columns:2"


class TextTest(parameterized.TestCase):
    @parameterized.parameters(
        ("", {}),
        ("a=none", {"a": None}),
        ("a/*=rows:0;columns:1", {"a/*": MatrixAxes((), (0,), (1,))}),
        (
            " *=b=none  c=batch:0,1;rows:2;columns:3,4 ",
            {"*=b": None, "c": MatrixAxes((0, 1), (2,), (3, 4))},
        ),
    )
    def test_parses(self, text, wanted):
        self.assertEqual(kernels.parse(text), wanted)
        self.assertTrue(kernels.AXES.holds(text))

    @parameterized.parameters(
        *("a", "=none", "a=", "a=None", "a=rows:0", "a=rows:0;columns:", "a=rows:x;"),
        *("a=columns:1;rows:0", "a=rows:-1;columns:0", "a=rows:0;columns:1;batch:2"),
        *("a=rows:\u0663;columns:1", "a=rows:0;columns:1 b", 7, None),
    )
    def test_refuses(self, text):
        self.assertFalse(kernels.AXES.holds(text))


@pytest.mark.slow
class CommandLineTest(parameterized.TestCase):
    def run_job(self, *flags):
        """The exit code, what was said, and whether it got to the first training."""
        err = io.StringIO()
        with (
            contextlib.redirect_stderr(err),
            mock.patch.object(bench, "run_study") as study,
        ):
            code = classification.main(["--model", MODEL, *flags])
        return code, err.getvalue(), study.called

    @parameterized.parameters("semu", "semu_retain")
    def test_open_role_names_leaf_and_flag(self, method):
        code, said, trained = self.run_job("--methods", f"{method},salun")
        self.assertEqual((code, trained), (2, False))
        self.assertEqual(said.count("\n"), 1)
        flag = f"--{method}.axes".replace("_", "-")
        self.assertRegex(said, rf"leaf mix of shape \(8, 8, 6\).*{flag} 'mix=")

    def test_only_where_semu_runs(self):
        self.assertEqual(self.run_job("--methods", "salun"), (0, "", True))

    @parameterized.parameters(STACK, "mix=none", "m*=rows:0,1;columns:2")
    def test_flag_tells(self, axes):
        for group in ("semu", "recipe"):
            flags = ("--methods", "semu", f"--{group}.axes", axes)
            self.assertEqual(self.run_job(*flags), (0, "", True))

    @parameterized.parameters(
        ("mixx=none", "'mixx' fits no leaf"),
        ("mix=rows:0;columns:1", "leaf mix of shape"),
        ("mix=batch:0;rows:1;columns:7", "leaf mix of shape"),
        ("mix", "give PATTERN=batch:0;rows:1;columns:2"),
        ("mix=none head/kernel=rows:0", "give PATTERN="),
    )
    def test_bad_flag_is_a_line(self, axes, message):
        code, said, trained = self.run_job("--methods", "semu", "--semu.axes", axes)
        self.assertEqual((code, trained), (2, False))
        self.assertEqual(said.count("\n"), 1)
        self.assertIn("--semu.axes", said)
        self.assertIn(message, said)

    def test_report_shows_the_kernels(self):
        with tempfile.TemporaryDirectory() as folder:
            flags = ("--model", MODEL, "--methods", "semu", "--semu.axes", STACK)
            flags += ("--seeds", "1", "--out", folder, "--cache", "None")
            flags += ("--recipe.epochs", "1", "--train.epochs", "1")
            with contextlib.redirect_stdout(io.StringIO()):
                self.assertEqual(classification.main(flags), 0)
            page = (pathlib.Path(folder) / "report.html").read_text()
        table = re.search(r"Kernels of SEMU, seed 0.*?<code>(.*?)</code>", page, re.S)
        assert table is not None
        lines = table[1].splitlines()
        self.assertEqual(lines[0].split()[:3], ["leaf", "shape", "role"])
        self.assertRegex(lines[3], r"^mix +8×8×6 +given +8 of 8×6 +\d+ +\d")
        self.assertRegex(table[1], r"head/kernel +6×10 +dense +1 of 6×10")


if __name__ == "__main__":
    absltest.main()
