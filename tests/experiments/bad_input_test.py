"""Whatever is typed, and whatever lies in a file: a study, or a line or two of help.

Training is left out. The loaders themselves are fuzzed in ``data_test.py``.
"""

import contextlib
import functools
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import experiments
from experiments import data
from experiments.classification import __main__ as classification
from experiments.classification import task
from experiments.classification.methods import METHODS
from experiments.classification.optimisation import Optimisation
from experiments.engine import bench, cli, store
from experiments.engine.recipes import fields, flag
from experiments.models import build
from experiments.reporting import summary, tables

FLAGS = (
    *("dataset", "methods", "seeds", "out", "keep-every", "scenario", "model"),
    *("forget-fraction", "forget-seed", "forget-class", "forget-indices"),
    *("forgotten-indices", "attack", "checkpoint"),
)
RECIPES = {"train": Optimisation} | {name: m.Recipe for name, m in METHODS.items()}
RECIPE_FLAGS = (
    *(
        flag(group, name)
        for group, recipe in RECIPES.items()
        for name in fields(recipe)
    ),
    *sorted(
        {flag("recipe", name) for m in METHODS.values() for name in fields(m.Recipe)}
    ),
    *("--recipe.no-such", "--salun.energy", "--train.density", "--magic.epochs"),
)
NUMBERS = (
    *("0", "1", "-1", "2", "3", "0.1", "1.5", "1e-9", "1e400", "-0.0", "nan", "-inf"),
    *("9" * 30, "9" * 5000, "1_0", "0x10", "1,5", "٣", "", " ", "None", "True"),
)
WORDS = (
    *("all", "class", "indices", "random", "digits", "salun", ",", "salun,salun"),
    *("salun,magic\n", "npz:", "npz:/", "npz:own.npz", "small_cnn", "no.such:thing"),
    *("..", "/", "/dev/null", "/dev/null/out", "~", "a\0b", "\udcff", "x" * 300),
    *("\x1b[31m", "--help", "-h", "--", "-", "--seeds", "{x}", "%s", "'", "a:b:c"),
)
VALUES = st.sampled_from(NUMBERS + WORDS) | st.text(max_size=8) | st.floats().map(str)


digits = functools.cache(data.LOADERS["digits"])


class CommandLineTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.enterContext(contextlib.chdir(self.folder))
        # Building is dear: a model that is known comes from a cache.
        known = functools.cache(build)
        self.enterContext(mock.patch.object(task, "build", known))
        load = mock.patch.dict(data.LOADERS, {"digits": digits})
        self.enterContext(load)

    def run_job(self, arguments):
        """Runs up to the first training; returns the code and what was said."""
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(bench.Bench, "run_batch"),
            mock.patch.object(bench.report, "write"),
        ):
            try:
                code = classification.main(arguments)
            except SystemExit as stop:
                self.assertFalse(stop.code)
                self.assertIn("--help", out.getvalue())
                code = 0
        message = err.getvalue()
        self.assertIn(code, (0, 2), message)
        self.assertNotIn("Traceback", message)
        if code:
            self.assertStartsWith(message, "experiments.classification: ")
            self.assertBetween(message.count("\n"), 1, 2, message)
            lines = message.splitlines()
            self.assertTrue(all(map(str.isprintable, lines)), message)
        return code, message

    @settings(max_examples=250, deadline=None)
    @given(
        st.lists(
            st.tuples(st.sampled_from(FLAGS), VALUES).map(
                lambda pair: [f"--{pair[0]}", pair[1]]
            )
            | st.tuples(st.sampled_from(FLAGS), VALUES).map(
                lambda pair: [f"--{pair[0]}={pair[1]}"]
            )
            | VALUES.map(lambda value: [value]),
            max_size=4,
        ).map(lambda parts: [word for part in parts for word in part])
    )
    @example(["--forget-seed", "-1"])
    @example(["--keep-every", "nan"])
    @example(["--seeds", "9" * 30])
    @example(["--methods", "salun,magic\nmagic"])
    @example(["--out", "/dev/null/a\nb"])
    @example(["--out", "a\0b"])
    @example(["--out", "\udcff"])
    @example(["--scenario", "indices", "--forget-indices", "a\nb"])
    def test_any_flags(self, arguments):
        self.run_job(arguments)

    @settings(max_examples=40, deadline=None)
    @given(
        st.dictionaries(
            st.sampled_from(RECIPE_FLAGS),
            st.sampled_from(NUMBERS) | st.floats().map(str) | st.integers().map(str),
            min_size=1,
            max_size=3,
        )
    )
    @example({"--recipe.stages": "145"})
    @example({"--recipe.forget-decay": "nan"})
    @example({"--train.batch-size": "9" * 30})
    def test_any_recipe(self, numbers):
        flags = [f"{name}={value}" for name, value in numbers.items()]
        self.run_job([*flags, "--out", tempfile.mkdtemp(dir=self.folder)])

    @parameterized.parameters(
        ("--seeds 0", "from 1 to a million"),
        ("--keep-every -1", "--keep-every -1"),
        ("--keep-every nan", "--keep-every nan"),
        ("--forget-seed -1", "seed is -1"),
        ("--forget-fraction nan", "fraction is nan"),
        ("--forget-fraction 0", "fraction is 0"),
        ("--forget-fraction 1", "fraction is 1"),
        ("--forget-fraction 1e-9", "^.*0 of the 1437"),
        ("--forget-fraction 0.999", "No training image of"),
        ("--recipe.stages 145", "144 images"),
        ("--recipe.threshold nan", "--recipe.threshold nan"),
        ("--recipe.batch-size 0", "--recipe.batch-size 0"),
        ("--train.epochs 99999999999", "--train.epochs 99999999999"),
        ("--train.learning-rate inf", "--train.learning-rate inf"),
        ("--train.density 0.5", "--train.density"),
        ("--salun.density 2", "--salun.density 2.*share between 0 and 1"),
        ("--salun.energy 0.5", "--salun.energy.*--help-method"),
        (
            "--methods ufg --recipe.density 0.5",
            "none of.* ufg reads.*salun, salun_soft",
        ),
        ("--methods ufg --salun.density 0.5", "salun is not among --methods ufg"),
        ("--methods ufg --gradient-ascent.epochs 2", "gradient-ascent.epochs 2: grad"),
        ("--help-method magic", "no such method.*salun"),
        ("--scenario class --forget-class ten", "no class 'ten'"),
        ("--scenario indices --forget-indices none.txt", "no file"),
        ("--dataset npz:none.npz", "no file or folder"),
        ("--model no.such:thing", "no.such"),
        ("--out /dev/null/out", "Cannot write to"),
        ("--no-such-flag", "no-such-flag"),
    )
    def test_says_what_came_and_what_to_do(self, line, words):
        code, message = self.run_job(line.split())
        self.assertEqual(code, 2)
        self.assertRegex(message, words)
        self.assertEqual(list(self.folder.rglob("results.json")), [])

    @settings(max_examples=60, deadline=None)
    @given(
        st.integers(1, 6).flatmap(
            lambda classes: st.lists(st.integers(0, classes), min_size=1, max_size=24)
        ),
        st.sampled_from(["random", "class", "indices"]),
        st.sampled_from(["0", "1", "7", "0.5", "0.01"]),
    )
    def test_any_own_data(self, labels, scenario, detail):
        count, size = len(labels), 4
        np.savez(
            self.folder / "own.npz",
            train_images=np.zeros((count, size, size), np.uint8),
            train_labels=np.array(labels),
            test_images=np.zeros((2, size, size), np.uint8),
            test_labels=np.array([0, max(labels)]),
        )
        (self.folder / "forget.txt").write_text(detail)
        flags = {
            "random": ["--forget-fraction", detail],
            "class": ["--forget-class", detail],
            "indices": ["--forget-indices", "forget.txt"],
        }[scenario]
        out = tempfile.mkdtemp(dir=self.folder)
        self.run_job(
            ["--dataset", "npz:own.npz", "--scenario", scenario, *flags, "--out", out]
        )

    def test_an_interruption_while_it_imports_shows_no_traceback(self):
        (self.folder / "jax.py").write_text("raise KeyboardInterrupt")
        child = subprocess.run(
            [sys.executable, "-m", "experiments.classification"],
            cwd=pathlib.Path(experiments.__file__).parents[1],
            env=os.environ | {"PYTHONPATH": str(self.folder)},
            capture_output=True,
            text=True,
        )
        self.assertEqual(child.stderr, "\nInterrupted.\n")
        self.assertEqual(child.returncode, -signal.SIGINT)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
ROWS = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["retrain", "salun", "x", "../x"]) | JSON,
        "seed": st.integers(-1, 2) | JSON,
        "status": st.sampled_from(["ok", "diverged"]) | JSON,
    },
    optional={key: JSON | st.floats(0, 100) for key in ("ua", "gap", "reason", "x")},
)


class StudyFolderTest(parameterized.TestCase):
    @settings(
        max_examples=150,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(
        st.sampled_from(["results.json", "config.json"]),
        st.binary(max_size=20)
        | JSON.map(lambda value: json.dumps(value).encode())
        | st.lists(ROWS, max_size=3).map(
            lambda rows: json.dumps({"rows": rows}).encode()
        ),
    )
    @example("config.json", b'{"\\r": 1}')
    def test_any_file(self, name, content):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, name)
            path.write_bytes(content)
            try:
                with store.Store(pathlib.Path(folder), {"seeds": 1}) as kept:
                    kept.row("retrain", 0)
                    means = summary.summarise(kept.rows, task.COLUMNS)
                    tables.rich_table(means, pending=("retrain", "salun"))
            except store.StoreError as error:
                self.assertLessEqual(len(str(error).splitlines()), 2)
                self.assertEqual(path.read_bytes(), content)


class ParserTest(parameterized.TestCase):
    @settings(max_examples=100, deadline=None)
    @given(st.text(max_size=20))
    def test_any_list_of_methods(self, text):
        try:
            chosen = cli.choose(text, METHODS)
        except cli.ConfigError:
            return
        self.assertNotEmpty(chosen)
        self.assertContainsSubset(chosen, METHODS)


if __name__ == "__main__":
    absltest.main()
