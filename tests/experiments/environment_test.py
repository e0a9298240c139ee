"""Where a command is started: no home, no terminal, closed streams, other locales.

A subprocess each, since streams, locale and home are a process's own. ``/dev/null`` as
a folder stands for what cannot be written, for root too.
"""

import json
import os
import pathlib
import pwd
import subprocess
import sys
import tempfile
from unittest import mock

import jax
import pytest
from absl.testing import absltest, parameterized

import experiments
from experiments.engine import cli

ROOT = pathlib.Path(experiments.__file__).parents[1]


def command(*flags, cwd, shell="", **environment):
    """Runs the main job in an environment of its own; ``shell`` redirects streams."""
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LD_LIBRARY_PATH")}
    env = kept | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment
    words = [sys.executable, "-m", "experiments.classification", *flags]
    line = ["sh", "-c", f'exec "$@" {shell}', "sh", *words]
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True)


class EnvironmentTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory(prefix="a space and ü ")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)


@pytest.mark.slow
class StartTest(EnvironmentTestCase):
    @parameterized.named_parameters(
        ("closed_streams", "<&- >&- 2>&-", {}, ""),
        ("a_full_disk_behind_output", ">/dev/full", {}, "No space left"),
        ("ascii", "", {"PYTHONIOENCODING": "ascii", "HOME": "/dev/null"}, ""),
        ("latin_1_and_dumb", "", {"PYTHONIOENCODING": "latin-1", "TERM": "dumb"}, ""),
    )
    def test_help(self, shell, environment, words):
        done = command("--help", cwd=self.folder, shell=shell, **environment)
        self.assertEqual(done.returncode, 1 if words else 0, done.stderr)
        self.assertLessEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertIn(words, done.stderr)

    @parameterized.named_parameters(
        ("no_home", {"HOME": "/dev/null/home"}, "--seeds 0"),
        ("c_locale", {"LC_ALL": "C"}, "--seeds 0"),
        (
            "a_locale_without_the_folders_letters",
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            "letters that this locale does not know. Set PYTHONUTF8=1",
        ),
    )
    def test_a_refusal_is_a_line(self, environment, words):
        flags = ("--seeds", "0") if "seeds" in words else ("--seeds", "1")
        done = command(*flags, cwd=self.folder, **environment)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn(words, done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertNotIn("---- ", done.stderr)

    @parameterized.parameters("/dev/null/out", "")
    def test_nowhere_to_write(self, out):
        # The default is a folder in the current one, of which a file takes the place.
        (self.folder / "results").touch()
        flags = ["--out", out] if out else []
        done = command(*flags, cwd=self.folder)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("Cannot write to", done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)


class KeepCompiledTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        before = jax.config.values["jax_compilation_cache_dir"]
        self.addCleanup(jax.config.update, "jax_compilation_cache_dir", before)
        jax.config.update("jax_compilation_cache_dir", "another")

    def found(self, **environment):
        with mock.patch.dict(os.environ, environment, clear=True):
            cli.keep_compiled()
        return jax.config.values["jax_compilation_cache_dir"]

    def test_in_the_cache_of_the_home(self):
        with tempfile.TemporaryDirectory() as home:
            wanted = f"{home}/.cache/mujax/compiled"
            self.assertEqual(self.found(HOME=home), wanted)
            self.assertEqual(self.found(XDG_CACHE_HOME=home), f"{home}/mujax/compiled")
            self.assertEqual(self.found(JAX_COMPILATION_CACHE_DIR=home), home)

    def test_nowhere_without_a_word_if_there_is_no_home(self):
        self.assertIsNone(self.found(HOME="/dev/null"))
        with mock.patch.object(pwd, "getpwuid", side_effect=KeyError):
            self.assertIsNone(self.found())

    def test_a_folder_that_was_named_is_missed(self):
        with mock.patch.object(cli, "say") as say:
            self.assertIsNone(self.found(JAX_COMPILATION_CACHE_DIR="/dev/null/x"))
        self.assertIn("not kept in JAX_COMPILATION_CACHE_DIR", say.call_args.args[0])

    def test_a_bucket_is_left_to_jax(self):
        self.assertEqual(self.found(JAX_COMPILATION_CACHE_DIR="gs://b/c"), "another")


@pytest.mark.slow
class WholeRunTest(EnvironmentTestCase):
    @parameterized.named_parameters(
        ("nothing_at_all", "<&- >&- 2>&-", {}),
        ("no_home_or_reader", ">/dev/null 2>/dev/full", {"HOME": "/dev/null/home"}),
        (
            "ascii_and_no_caches",
            "",
            {
                "PYTHONIOENCODING": "ascii",
                "TERM": "dumb",
                "HOME": "/dev/null",
                "MPLCONFIGDIR": "/dev/null/matplotlib",
            },
        ),
    )
    def test_the_results_are_there(self, shell, environment):
        flags = (
            *("--seeds", "1", "--methods", "finetune", "--out", "o ü"),
            *("--train.epochs", "1", "--recipe.epochs", "1"),
            *("--cache", "/dev/null/cache"),
        )
        done = command(*flags, cwd=self.folder, shell=shell, **environment)
        self.assertEqual(done.returncode, 0, done.stderr)
        results = json.loads((self.folder / "o ü" / "results.json").read_text())
        self.assertLen(results["rows"], 4)
        self.assertTrue((self.folder / "o ü" / "report.html").exists())
        lines = [x for x in done.stderr.splitlines() if ", seed " not in x]
        self.assertLessEqual(len(lines), 1, lines)  # of the cache, once


if __name__ == "__main__":
    absltest.main()
