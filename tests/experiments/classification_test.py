"""The main job from its command line, on a short training."""

import dataclasses
import functools
import gc
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import get_args
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl.testing import absltest, parameterized

from experiments import data
from experiments.classification import __main__ as classification
from experiments.classification import evaluation, recipes
from experiments.classification.methods import METHODS, cufg
from experiments.engine import study
from experiments.models import build
from tests import command_line

SHORT = ("--train.epochs", "3", "--recipe.epochs", "1", "--seeds", "1")


def tiny_npz(path: pathlib.Path, count: int = 96) -> str:
    """An npz of four classes of 8×8 colour images that a mean tells apart."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "test"):
        labels = np.arange(count) % 4
        means = 40 + 50 * labels[:, None, None, None]
        noise = rng.integers(-30, 30, (count, 8, 8, 3))
        arrays |= {f"{split}_images": (means + noise).astype(np.uint8)}
        arrays |= {f"{split}_labels": labels}
    np.savez(path, **arrays)
    return f"npz:{path}"


run = functools.partial(command_line.run, classification.main)


@pytest.mark.slow
class MainJobTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.out = self.folder / "out"

        self.cache = ("--cache", str(self.folder / "cache"))

    def flags(self, *arguments: str) -> list[str]:
        return [*SHORT, *self.cache, "--out", str(self.out), *arguments]

    def rows(self):
        results = json.loads((self.out / "results.json").read_text())
        return {(row["method"], row["seed"]): row for row in results["rows"]}

    def test_leaves_results_that_can_be_used_and_run_again_computes_nothing(self):
        density = ("--recipe.density", "0.5")
        flags = self.flags(*density, "--methods", "salun,cufg")
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

        code, _, err = run(*flags, "--recipe.threshold", "0.3")
        self.assertEqual(code, 2)
        self.assertIn("another configuration", err)
        self.assertEqual(self.rows(), rows)

    def test_a_class_is_left_out_of_the_test_set_and_retrain_forgets_it(self):
        flags = ("--scenario", "class", "--forget-class", "3", "--methods", "finetune")
        code, _, err = run(*self.flags(*flags))
        self.assertEqual(code, 0, err)
        self.assertEqual(self.rows()["retrain", 0]["ua"], 100)
        self.assertGreater(self.rows()["retrain", 0]["ta"], 50)

    def test_a_method_that_diverges_is_a_row_and_the_rest_goes_on(self):
        flags = ("--methods", "gradient_ascent,finetune", "--recipe.cosine", "False")
        code, _, err = run(*self.flags(*flags, "--recipe.learning-rate", "1e30"))
        self.assertEqual(code, 0, err)
        rows = self.rows()
        self.assertEqual(rows["gradient_ascent", 0]["status"], "diverged")
        self.assertIn(("finetune", 0), rows)
        self.assertIn("diverged", (self.out / "table.md").read_text())

    def test_trained_baselines_are_not_trained_again_by_another_study(self):
        forget = ("--scenario", "class", "--forget-class")
        flags = self.flags("--methods", "finetune", *forget, "3")
        code, _, err = run(*flags, "--seeds", "2", "--trainings", "1")
        self.assertEqual(code, 0, err)
        before, self.out = self.rows(), self.folder / "again"
        for key in ("ua", "ta", "seconds"):  # the one training served both seeds
            self.assertEqual(before["retrain", 0][key], before["retrain", 1][key])
        trained = []

        def execute(runs, *arguments):
            trained.extend(run.name for run in runs)
            return real(runs, *arguments)

        real = study.execute
        with mock.patch.object(study, "execute", execute):
            flags = self.flags("--methods", "gradient_ascent", *forget, "3")
            code, _, err = run(*flags)
            self.assertEqual(code, 0, err)
            self.assertEqual(trained, ["gradient_ascent"])
            for name in ("original", "retrain", "retrain_again"):
                self.assertEqual(self.rows()[name, 0], before[name, 0])
            # Another forget set asks for other Retrains, and for the same original.
            self.out = self.folder / "other"
            code, _, err = run(*self.flags("--methods", "finetune", *forget, "4"))
            self.assertEqual(code, 0, err)
        others = ["retrain", "retrain_again", "finetune"]
        self.assertCountEqual(trained[1:], others)

    def test_starts_from_a_trained_original_and_refuses_one_that_does_not_fit(self):
        code, _, err = run(*self.flags("--methods", "gradient_ascent"))
        self.assertEqual(code, 0, err)
        rows = self.rows()
        path = self.out / "checkpoints" / "original" / "seed_0"
        self.out = self.folder / "given"
        given = ("--checkpoint", str(path), "--methods", "gradient_ascent")
        code, _, err = run(*self.flags(*given, "--train.epochs", "1"))
        self.assertEqual(code, 0, err)
        for key in ("ua", "ra", "ta", "mia"):
            for name in ("original", "gradient_ascent"):
                self.assertEqual(self.rows()[name, 0][key], rows[name, 0][key])

        self.out = self.folder / "refused"
        code, _, err = run(*self.flags(*given, "--width", "8"))
        self.assertEqual(code, 2)
        self.assertIn("model_state.norm1.mean is float32 (16,) in it", err)
        self.assertIn("float32 (8,) in the model", err)
        code, _, err = run(*self.flags(*given, "--model", "resnet20"))
        self.assertEqual(code, 2)
        self.assertIn("is missing in it", err)
        for wrong in (self.folder / "nothing", path / "d", self.folder):
            code, _, err = run(*self.flags("--checkpoint", str(wrong)))
            self.assertEqual(code, 2)
            self.assertRegex(err, "Give an Orbax folder|Give what is meant")
            self.assertEqual(err.count("\n"), 1, err)

    def test_streamed_images_train_the_same_model(self):
        dataset = tiny_npz(self.folder / "own.npz")
        flags = ("--dataset", dataset, "--methods", "salun,ufg", "--width", "4")
        flags += ("--train.batch-size", "32", "--train.learning-rate", "0.01")
        kept = {}
        for memory in ("1", "0"):
            self.out = self.folder / memory
            self.cache = ("--cache", str(self.folder / f"cache {memory}"))
            code, _, err = run(*self.flags(*flags, "--memory", memory))
            self.assertEqual(code, 0, err)
            path = (self.out / "checkpoints" / "ufg" / "seed_0").absolute()
            kept[memory] = ocp.StandardCheckpointer().restore(path)
        chex.assert_trees_all_close(kept["1"], kept["0"], rtol=1e-3, atol=1e-5)

    def test_augmentation_is_a_choice(self):
        config = classification.Config(
            dataset=tiny_npz(self.folder / "own.npz"), width=4
        )
        losses = {}
        for augment in (None, False, True):
            chosen = dataclasses.replace(config, augment=augment)
            dataset = classification.load_data(chosen)
            split = classification.make_split(chosen, dataset)
            task = classification.Classification(chosen, dataset, split)
            params, model_state = task.init(jax.random.key(0))
            [batch] = task.forget_batches(16)
            loss = task.losses.train(params, model_state, batch, jax.random.key(1))[0]
            losses[augment] = float(loss)
        self.assertEqual(losses[None], losses[False])  # npz data say nothing
        self.assertNotEqual(losses[None], losses[True])

    def test_a_folder_knows_what_its_rows_were_made_of(self):
        path = self.folder / "forget.txt"
        path.write_text("5\n17\n1400\n")
        flags = ("--methods", "finetune", "--scenario", "indices")
        flags = self.flags(*flags, "--forget-indices", str(path))
        code, _, err = run(*flags)
        self.assertEqual(code, 0, err)
        rows = self.rows()
        path.write_text("5\n17\n1399\n")
        code, _, err = run(*flags)
        self.assertEqual(code, 2)
        self.assertIn("input.forget", err)
        self.assertEqual(self.rows(), rows)

    def test_a_fingerprint_knows_every_pixel_and_label(self):
        digits = data.load("digits")
        images, labels = digits.train_images.copy(), digits.train_labels.copy()
        images[-1, -1, -1] += 1
        labels[-1] = 9 - labels[-1]
        found = {
            dataclasses.replace(digits, **change).fingerprint
            for change in (
                {},
                {"train_images": images},
                {"train_labels": labels},
                {"pixels": "unit"},
                {"pixels": "unit", "train_images": images},
                {"augment": True},
            )
        }
        self.assertLen(found, 6)

    def test_each_seed_forgets_a_random_set_of_its_own(self):
        config = classification.Config(forget_seed=7)
        dataset = data.load("digits")
        split = classification.make_split(config, dataset)
        task = classification.Classification(config, dataset, split)
        for seed in (0, 1):
            own = task.for_seed(seed)
            wanted = data.random_split(dataset, 0.1, 7 + seed)
            np.testing.assert_array_equal(own.split.forget, wanted.forget)
            np.testing.assert_array_equal(own.feed.retain, wanted.retain)

    def test_forgets_the_indices_in_a_file(self):
        path = self.folder / "forget.txt"
        path.write_text("5\n17\n1400\n")
        config = classification.Config(scenario="indices", forget_indices=str(path))
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
        ("trainings", ["--trainings", "9"], "--trainings 9"),
        ("memory", ["--memory", "nan"], "--memory nan"),
        ("width", ["--width", "-3"], "small_cnn"),
        ("recipes", ["--recipes", "nothing.json"], "not a file of recipes"),
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

    def test_too_little_memory_is_a_line(self):
        full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        for error in (full, MemoryError()):
            with mock.patch.object(study, "execute", side_effect=error):
                code, _, err = run(*SHORT, "--out", str(self.out))
            self.assertEqual(code, 1)
            self.assertIn("not enough memory", err)
            self.assertEqual(err.count("\n"), 1)
        other = jax.errors.JaxRuntimeError("INTERNAL: a bug")
        with (
            mock.patch.object(study, "execute", side_effect=other),
            self.assertRaises(jax.errors.JaxRuntimeError),
        ):
            run(*SHORT, "--out", str(self.out))

    def test_a_reader_that_leaves_is_no_traceback(self):
        reader, writer = os.pipe()
        os.close(reader)
        # Short enough to wait in the buffer until the script is over.
        script = (
            "import sys; from experiments.engine import cli; "
            "sys.exit(cli.main(cli.StudyConfig, lambda _: print(1), 'prog', []))"
        )
        command = [sys.executable, "-c", script]
        buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, env=buffered
        )
        os.close(writer)
        self.assertEqual((done.returncode, done.stderr), (1, b""))

    def test_help_explains_every_flag(self):
        code, out, _ = run("--help")
        self.assertEqual(code, 0)
        for name in ("forget-fraction", "recipe.learning-rate", "train.epochs", "out"):
            self.assertIn(f"--{name}", out)


DENSE = ("salun_soft", "random_mask", "smallest_mask")  # and SalUn itself


class ConfigTest(parameterized.TestCase):
    def test_numbers_reach_the_methods_that_read_them(self):
        changes = {
            "train": {"epochs": 3},
            "recipe": {"density": 0.25, "epochs": 2},
            "salun": {"density": 0.125},
        }
        found = classification.resolve_recipes(classification.Config(changes=changes))
        searched = classification.resolve_recipes(classification.Config())
        self.assertEqual(found["training"].epochs, 3)
        self.assertEqual({found[name].epochs for name in METHODS}, {2})
        self.assertEqual(
            {n: r.density for n, r in found.items() if hasattr(r, "density")},
            {"salun": 0.125} | dict.fromkeys(DENSE, 0.25),
        )
        for name, recipe in searched.items():
            self.assertEqual(found[name].batch_size, recipe.batch_size)

    def test_every_score_of_difficulty_can_be_chosen(self):
        scores = get_args(cufg.Difficulty)
        self.assertCountEqual(scores, evaluation.DIFFICULTIES)

    def test_searched_recipes_belong_to_one_model(self):
        found = classification.resolve_recipes(classification.Config())
        default = METHODS["salun"].Recipe()
        self.assertNotEqual(found["salun"], default)
        for config in (
            classification.Config(model="resnet20"),
            classification.Config(width=8),
            classification.Config(forget_fraction=0.2),
        ):
            other = classification.resolve_recipes(config)
            self.assertEqual(other["salun"], default)

    def test_every_file_of_recipes_serves_a_configuration(self):
        c = classification.Config
        served = {
            config.recipe_task: config
            for config in (
                c(),
                c(train_size=500),
                c(scenario="class", forget_class="3"),
                c(dataset="fashion_mnist"),
                c(dataset="fashion_mnist", forget_fraction=0.5),
                c(dataset="fashion_mnist", scenario="class", forget_class="4"),
                c(dataset="cifar10", model="resnet20_strided", width=8),
                c(dataset="cifar10", model="resnet18"),
                c(dataset="cifar10", model="fast_cnn"),
            )
        }
        files = {file.stem: file for file in recipes.CONFIGS.glob("*.json")}
        self.assertCountEqual(files, served)
        for name, config in served.items():
            found = classification.resolve_recipes(config)
            entries = json.loads(files[name].read_text())
            self.assertLessEqual(entries.keys(), found.keys())
            for method, entry in entries.items():
                default = dataclasses.asdict(METHODS[method].Recipe())
                given = {k: v for k, v in entry["recipe"].items() if k in default}
                self.assertEqual(dataclasses.asdict(found[method]), default | given)


if __name__ == "__main__":
    absltest.main()
