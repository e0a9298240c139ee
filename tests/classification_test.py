"""The main job from its command line, on a short training."""

import contextlib
import gc
import io
import json
import pathlib
import tempfile
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl.testing import absltest, parameterized

from experiments import classification, cli, data, recipes, study
from experiments.models import build

SHORT = ("--train.epochs", "3", "--recipe.epochs", "1", "--seeds", "1")


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = classification.main(list(arguments))
        except SystemExit as stop:
            code = stop.code
    return int(code or 0), out.getvalue(), err.getvalue()


class MainJobTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.out = self.folder / "out"

    def rows(self):
        results = json.loads((self.out / "results.json").read_text())
        return {(row["method"], row["seed"]): row for row in results["rows"]}

    def test_leaves_results_that_can_be_used_and_run_again_computes_nothing(self):
        density = ("--recipe.density", "0.5")
        flags = (*SHORT, *density, "--methods", "salun,cufg", "--out", str(self.out))
        code, out, err = run(*flags)
        self.assertEqual(code, 0, err)
        self.assertIn("Noise floor".lower(), out.lower())
        rows = self.rows()
        names = ("retrain", "retrain_again", "original", "salun", "cufg")
        self.assertCountEqual([method for method, _ in rows], names)
        for row in rows.values():
            self.assertEqual(row["status"], "ok")
            for key in ("ua", "ra", "ta", "mia", "gap"):
                self.assertBetween(row[key], 0, 100)
            reference = rows["retrain", 0]
            expected = np.mean(
                [abs(row[k] - reference[k]) for k in ("ua", "ra", "ta", "mia")]
            )
            self.assertAlmostEqual(row["gap"], expected, places=4)
        self.assertEqual(rows["retrain", 0]["tow"], 1)
        self.assertEqual(rows["salun", 0]["trainable_fraction"], 0.5)
        for name in ("table.md", "report.html", "config.json", "plots/gap.png"):
            self.assertTrue((self.out / name).stat().st_size)

        # The three documented lines give parameters that score as the row says.
        path = (self.out / "checkpoints" / "salun" / "seed_0").absolute()
        tree = ocp.StandardCheckpointer().restore(path)
        digits = data.load("digits")
        split = data.random_split(digits, 0.1, 0)
        model = build("small_cnn", digits.num_classes, digits.input_shape)
        x = jnp.asarray((digits.test_images / 255 - digits.mean) / digits.std)
        logits, _ = model.apply(tree["params"], tree["model_state"], x, train=False)
        accuracy = 100 * np.mean(np.argmax(logits, 1) == digits.test_labels)
        self.assertAlmostEqual(accuracy, rows["salun", 0]["ta"], places=4)
        self.assertLen(split.forget, 144)

        # SalUn's mask kept half of the weights of the original, bit for bit.
        original = ocp.StandardCheckpointer().restore(
            (self.out / "checkpoints" / "original" / "seed_0").absolute()
        )
        same = jax.tree.map(
            lambda a, b: np.sum(np.asarray(a) == np.asarray(b)),
            tree["params"],
            original["params"],
        )
        total = sum(leaf.size for leaf in jax.tree.leaves(tree["params"]))
        self.assertGreaterEqual(sum(jax.tree.leaves(same)), total / 2)

        with mock.patch.object(study, "execute", side_effect=AssertionError):
            code, _, err = run(*flags)
        self.assertEqual(code, 0, err)
        self.assertEqual(self.rows(), rows)

        code, _, err = run(*flags, "--recipe.energy", "0.3")
        self.assertEqual(code, 2)
        self.assertIn("another configuration", err)
        self.assertEqual(self.rows(), rows)

    def test_a_class_is_left_out_of_the_test_set_and_retrain_forgets_it(self):
        flags = ("--scenario", "class", "--forget-class", "3", "--methods", "finetune")
        code, _, err = run(*SHORT, *flags, "--out", str(self.out))
        self.assertEqual(code, 0, err)
        self.assertEqual(self.rows()["retrain", 0]["ua"], 100)
        self.assertGreater(self.rows()["retrain", 0]["ta"], 50)

    def test_a_method_that_diverges_is_a_row_and_the_rest_goes_on(self):
        flags = ("--methods", "gradient_ascent,finetune", "--recipe.cosine", "False")
        code, _, err = run(
            *SHORT, *flags, "--recipe.learning-rate", "1e30", "--out", str(self.out)
        )
        self.assertEqual(code, 0, err)
        rows = self.rows()
        self.assertEqual(rows["gradient_ascent", 0]["status"], "diverged")
        self.assertIn(("finetune", 0), rows)
        self.assertIn("diverged", (self.out / "table.md").read_text())

    def test_forgets_the_indices_in_a_file(self):
        path = self.folder / "forget.txt"
        path.write_text("5\n17\n1400\n")
        config = classification.Config(scenario="indices", forget_indices=path)
        split = classification.make_split(config, data.load("digits"))
        np.testing.assert_array_equal(split.forget, [5, 17, 1400])
        self.assertLen(split.retain, 1434)

    @parameterized.named_parameters(
        ("method", ["--methods", "salun,magic"], "no method magic"),
        ("no_method", ["--methods", ","], "no method in it"),
        ("data_set", ["--dataset", "mnist9"], "no data set 'mnist9'"),
        ("model", ["--model", "resnet99"], "unknown model 'resnet99'"),
        ("fraction", ["--forget-fraction", "1.5"], "1.5"),
        ("class", ["--scenario", "class", "--forget-class", "12"], "12"),
        ("no_file", ["--scenario", "indices"], "needs --forget-indices"),
        ("seeds", ["--seeds", "0"], "from 1 to"),
        ("number", ["--recipe.learning-rate", "fast"], "fast"),
        ("range", ["--recipe.density", "2"], "--recipe.density 2"),
        ("stages", ["--recipe.stages", "0"], "--recipe.stages 0"),
        ("difficulty", ["--recipe.difficulty", "mood"], "mood"),
        ("flag", ["--sead", "3"], "--sead"),
        ("scenario", ["--scenario", "all"], "all"),
    )
    def test_bad_input_is_a_line_or_two_and_exit_code_2(self, flags, words):
        code, out, err = run(*flags, "--out", str(self.out))
        self.assertEqual(code, 2)
        self.assertIn(words, err)
        self.assertLessEqual(err.count("\n"), 2)
        self.assertNotIn("Traceback", err + out)
        self.assertFalse((self.out / "results.json").exists())

    def test_an_interruption_says_how_to_go_on(self):
        with mock.patch.object(study, "execute", side_effect=KeyboardInterrupt):
            code, _, err = run(*SHORT, "--out", str(self.out))
        self.assertEqual(code, 130)
        self.assertIn("the same command goes on", err)

    def test_an_interruption_of_a_callback_is_not_dropped(self):
        def callback(*_):
            gc.callbacks.remove(callback)
            raise KeyboardInterrupt

        def execute(*_):
            gc.callbacks.append(callback)
            gc.collect()
            while True:  # until the interruption comes again
                time.sleep(0.001)

        with mock.patch.object(study, "execute", execute):
            code, _, err = run(*SHORT, "--out", str(self.out))
        self.assertEqual(code, 130)
        self.assertNotIn("Traceback", err)

    def test_help_explains_every_flag(self):
        code, out, _ = run("--help")
        self.assertEqual(code, 0)
        for name in ("forget-fraction", "recipe.learning-rate", "train.epochs", "out"):
            self.assertIn(f"--{name}", out)


class ConfigTest(parameterized.TestCase):
    def test_every_method_has_a_note(self):
        self.assertLessEqual(set(recipes.METHODS), set(recipes.NOTES))

    def test_overrides_reach_every_method(self):
        config = classification.Config(recipe=cli.Overrides(density=0.25))
        for name, recipe in classification.resolve_recipes(config).items():
            self.assertEqual(recipe.density, 0.5 if name == "training" else 0.25)


if __name__ == "__main__":
    absltest.main()
