"""Forgetting a class in a diffusion model: drawing, judging, and the whole study."""

import dataclasses
import json
import pathlib
import tempfile
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments import data
from experiments.diffusion import __main__ as diffusion
from experiments.diffusion import generation, recipes
from experiments.diffusion.methods import METHODS
from experiments.engine import loop, study
from experiments.engine.cache import Cache
from experiments.engine.checkpoints import load_checkpoint
from experiments.engine.loop import DivergedError
from experiments.engine.task import BASELINES
from mujax.diffusion import linear_schedule
from tests import command_line

KEY = jax.random.key(0)
SCHEDULE = linear_schedule()


class Net(nnx.Module):
    """A noise network that compiles at once."""

    def __init__(self, num_classes, input_shape, *, width=None, rngs):
        size = int(np.prod(input_shape))
        self.embed = nnx.Embed(num_classes + 1, 8, rngs=rngs)
        self.hidden = nnx.Linear(size + 9, width or 16, rngs=rngs)
        self.last = nnx.Linear(width or 16, size, rngs=rngs)

    def __call__(self, x, t, condition):
        inputs = [x.reshape(len(x), -1), t[:, None] / 1000, self.embed(condition)]
        y = self.last(nnx.tanh(self.hidden(jnp.concatenate(inputs, axis=1))))
        return y.reshape(x.shape)


def own_images(path: pathlib.Path) -> str:
    """Three classes of 8×8 grey images, told apart by where they are bright."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 90), ("test", 30)):
        labels = np.arange(count) % 3
        images = rng.integers(0, 60, (count, 8, 8))
        for c in range(3):
            images[labels == c, :, 3 * c : 3 * c + 2] += 180
        arrays |= {f"{split}_images": images.astype(np.uint8)}
        arrays |= {f"{split}_labels": labels}
    np.savez(path, **arrays)
    return f"npz:{path}"


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and standard error of the command line, with the small network."""
    with mock.patch.object(diffusion, "unet_for", Net):
        code, _, err = command_line.run(diffusion.main, *arguments)
    return code, err


class DrawingTest(parameterized.TestCase):
    def test_signal_and_images_are_inverse(self):
        images = jnp.arange(256, dtype=jnp.uint8)
        signal = generation.to_signal(images)
        np.testing.assert_allclose(signal[jnp.array([0, 255])], [-1, 1])
        np.testing.assert_array_equal(generation.to_images(signal), images)
        np.testing.assert_array_equal(
            generation.to_images(jnp.array([-9.0, 9.0])), [0, 255]
        )

    def sampler(self, predict, **options):
        return generation.Sampler(
            predict, SCHEDULE, (2, 2, 1), 2, num_steps=5, batch_size=4, **options
        )

    def test_draws_the_images_of_each_class(self):
        """Exact where all images of a class are one grey, told by a table."""

        def predict(params, x, t, c):
            grey = params[c][:, None, None, None]
            signal, sigma = (
                v[t][:, None, None, None] for v in (SCHEDULE.signal, SCHEDULE.sigma)
            )
            return (x - signal * grey) / sigma

        wanted = np.array([0, 1, 1, 0, 1, 0, 0])
        table = jnp.array([-1.0, 0.6, 0.0])
        images = self.sampler(predict, guidance=0.0).draw(table, KEY, wanted)
        self.assertEqual((images.shape, images.dtype), ((7, 2, 2, 1), np.uint8))
        greys = np.array([0, 204])
        np.testing.assert_array_equal(
            images, np.broadcast_to(greys[wanted][:, None, None, None], images.shape)
        )
        # Guidance goes beyond the class, away from the null class: 1.5·0.4 + 0.4·0.5.
        stronger = self.sampler(predict, guidance=0.5)
        images = stronger.draw(jnp.array([0.0, 0.4, 0.2]), KEY, np.array([1]))
        np.testing.assert_allclose(images, 127.5 * (1 + 0.5), atol=1)

    def test_equal_keys_draw_equal_images_and_no_number_is_an_error(self):
        sampler = self.sampler(lambda p, x, t, c: p * x, guidance=1.0)
        first, again, other = (
            sampler.draw(jnp.float32(0.3), jax.random.key(seed), np.arange(2))
            for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(first, again)
        self.assertFalse(np.array_equal(first, other))
        with self.assertRaises(DivergedError):
            sampler.draw(jnp.float32(np.nan), KEY, np.arange(2))


class ClassifierTest(absltest.TestCase):
    def test_sees_classes_and_the_features_behind_them(self):
        digits = data.load("digits")
        few = dataclasses.replace(
            digits,
            train_images=digits.train_images[:400],
            train_labels=digits.train_labels[:400],
        )
        with tempfile.TemporaryDirectory() as folder:
            cache = Cache(pathlib.Path(folder))
            examples = {"image": few.train_images, "label": few.train_labels}
            examples = jax.tree.map(jnp.asarray, examples)
            classifier = generation.Classifier(few, examples, cache, batch_size=64)
            with mock.patch.object(generation.loop, "run", side_effect=AssertionError):
                again = generation.Classifier(few, examples, cache, batch_size=99)
            [kept] = pathlib.Path(folder).iterdir()
            params = load_checkpoint(kept / "model")["params"]
        classes, features = classifier.see(digits.test_images)
        accuracy = 100 * np.mean(classes == digits.test_labels)
        self.assertGreater(accuracy, 90)
        self.assertAlmostEqual(classifier.test_accuracy, accuracy, places=4)
        logits = features @ params["dense"]["kernel"] + params["dense"]["bias"]
        np.testing.assert_array_equal(np.argmax(logits, 1), classes)
        np.testing.assert_allclose(
            again.see(digits.test_images)[1], features, atol=1e-4
        )


class TaskTest(parameterized.TestCase):
    """The losses and steps of the task, by the laws of the library."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        path = pathlib.Path(folder.name)
        cls.config = diffusion.Config(dataset=own_images(path / "own.npz"))
        dataset = data.load(cls.config.dataset)
        split = data.class_split(dataset, 1)
        with mock.patch.object(diffusion, "unet_for", Net):
            cls.task = diffusion.Generation(cls.config, dataset, split)
        cls.params, _ = cls.task.init(KEY)
        [batch, *_] = cls.task.forget_batches(30)
        half = jnp.arange(30) % 2 == 0
        cls.batch = batch | {
            "label": jnp.where(half, batch["label"], 0),
            "weight": jnp.linspace(0.5, 1.5, 30),
        }

    def test_relabelled_examples_alone_have_another_target(self):
        losses = self.task.losses(forget_weight=3.0)
        own = self.batch | {"label": self.batch["true_label"]}
        noise, _ = losses.noise(self.params, (), own, KEY)
        unchanged, _ = losses.relabelled(self.params, (), own, KEY)
        np.testing.assert_allclose(unchanged, noise, rtol=1e-6)
        changed, _ = losses.relabelled(self.params, (), self.batch, KEY)
        self.assertNotAlmostEqual(float(changed), float(noise), places=3)

    def test_anchored_keeps_what_it_does_not_change(self):
        losses = self.task.losses(anchor=2.0)
        rng = np.random.default_rng(0)
        moved = jax.tree.map(
            lambda p: p + 0.1 * rng.normal(size=p.shape).astype(p.dtype), self.params
        )
        own = self.batch | {"label": self.batch["true_label"]}
        unmoved, _ = losses.anchored(self.params, self.params, (), own, KEY)
        self.assertEqual(unmoved, 0)
        parts = {
            (anchor, name): float(
                self.task.losses(anchor=anchor).anchored(*models, (), batch, KEY)[0]
            )
            for anchor in (0.0, 2.0)
            for name, models, batch in (
                ("moved", (moved, self.params), self.batch),
                ("there", (self.params, self.params), self.batch),
            )
        }
        # Where nothing moved nothing is kept; elsewhere the anchor adds to the change.
        self.assertEqual(parts[2.0, "there"], parts[0.0, "there"])
        self.assertGreater(parts[2.0, "there"], 0)
        self.assertGreater(parts[2.0, "moved"], parts[0.0, "moved"])

    def test_anchored_keeps_the_other_classes_and_the_null_one(self):
        asked = []

        def network(model, *, train, key):
            del model, train, key

            def predict(params, x, t, condition):
                asked.append(np.asarray(condition))
                return params["last"]["bias"].reshape(x.shape[1:]) + 0 * x

            return predict

        with mock.patch.object(generation, "network", network):
            losses = self.task.losses()
            for i in range(20):
                key = jax.random.fold_in(KEY, i)
                losses.anchored(self.params, self.params, (), self.batch, key)
        true, null = np.asarray(self.batch["true_label"]), self.task.dataset.num_classes
        self.assertLen(asked, 80)  # a teacher and a student, twice
        for student in asked[1::4]:
            np.testing.assert_array_equal(student, true)
        kept = np.concatenate(asked[2::4])
        np.testing.assert_array_equal(kept, np.concatenate(asked[3::4]))
        counts = np.bincount(kept, minlength=null + 1)
        self.assertEqual(counts[self.task.forgotten], 0)
        self.assertTrue(counts[:null].sum() > 8 * counts[null] > 0, counts)

    def test_noise_without_a_key_comes_from_the_indices(self):
        guided = self.task.losses().guided
        loss, again, other = (
            float(guided(self.params, (), self.batch | {"index": index}, None)[0])
            for index in (self.batch["index"], self.batch["index"], np.arange(7, 37))
        )
        self.assertEqual(loss, again)
        self.assertNotEqual(loss, other)
        batches = self.task.forget_batches(20)
        self.assertLen({int(b["index"][0]) for b in batches}, len(batches))

    def test_random_masks_have_the_density_of_saluns(self):
        recipe = METHODS["salun"].Recipe(density=0.3)
        masks = {}
        for name in ("salun", "random_mask"):
            method = self.task.build(name, recipe, 1)
            batches = self.task.forget_batches(30)
            masks[name] = method.init(self.params, {}, batches).mask
        flat = {
            n: jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(m)])
            for n, m in masks.items()
        }
        self.assertEqual(flat["salun"].sum(), flat["random_mask"].sum())
        self.assertEqual(flat["salun"].sum(), int(0.3 * flat["salun"].size))
        agree = jnp.mean(flat["salun"] & flat["random_mask"])
        self.assertLess(agree, 0.15)  # 0.09 by chance, 0.3 if they were the same

    def test_a_fixed_rank_is_that_of_every_kernel(self):
        method = self.task.build("semu", METHODS["semu"].Recipe(rank=3), 1)
        state = method.init(self.params, {}, self.task.forget_batches(30))
        kernels = [leaf for leaf in jax.tree.leaves(self.params) if leaf.ndim == 2]
        self.assertEqual(
            [core.shape for core in state.trained],
            [(min(3, *kernel.shape),) * 2 for kernel in kernels],
        )

    def test_an_energy_takes_the_place_of_the_rank(self):
        for given, rank in (({"energy": 0.5}, 0), ({"energy": 0.5, "rank": 2}, 2)):
            for group in ("recipe", "semu"):
                config = diffusion.Config(changes={group: given})
                found = diffusion.resolve_recipes(config)
                recipe = found["semu"]
                self.assertEqual((recipe.energy, recipe.rank), (0.5, rank))
                other = (0.5, rank) if group == "recipe" else (0.95, 9)
                recipe = found["semu_retain"]
                self.assertEqual((recipe.energy, recipe.rank), other)

    def test_every_row_has_a_note(self):
        self.assertEqual({*METHODS, *BASELINES}, recipes.NOTES.keys())

    @parameterized.parameters("salun", "semu", "semu_anchored", "esd", "ufg")
    def test_steps_are_those_of_one_device_and_lower_elsewhere(self, name):
        method = self.task.build(name, METHODS[name].Recipe(), 10)
        batch = jax.tree.map(lambda x: x[:24], self.batch)

        def step(state, batch):
            state, _ = method.step(state, batch, forget_batch=batch, key=KEY)
            return method.finish(state)[0]

        state = method.init(self.params, {}, self.task.forget_batches(30))
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        split = NamedSharding(mesh, PartitionSpec("data"))
        whole = NamedSharding(mesh, PartitionSpec())
        sharded = jax.jit(step)(
            jax.device_put(state, whole), jax.device_put(batch, split)
        )
        chex.assert_trees_all_close(sharded, jax.jit(step)(state, batch), atol=1e-5)
        for platform in ("tpu", "cuda"):
            exported = jax.export.export(jax.jit(step), platforms=[platform])
            self.assertEqual(exported(state, batch).platforms, (platform,))


@pytest.mark.slow
class StudyTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.out = self.folder / "out"
        self.flags = [
            *("--dataset", own_images(self.folder / "own.npz")),
            *("--forget-class", "1", "--seeds", "2"),
            *("--train.epochs", "3", "--recipe.epochs", "1"),
            *("--samples", "8", "--forgotten-samples", "8", "--sampling-steps", "4"),
            *("--cache", str(self.folder / "cache")),
        ]

    def rows(self):
        results = json.loads((self.out / "results.json").read_text())
        return {(row["method"], row["seed"]): row for row in results["rows"]}

    def test_leaves_rows_images_and_checkpoints(self):
        chosen = ("salun", "semu_retain", "esd")
        flags = [*self.flags, "--methods", ",".join(chosen), "--out", str(self.out)]
        code, err = run(*flags)
        self.assertEqual(code, 0, err)
        rows = self.rows()
        names = {*chosen, "original", "retrain", "retrain_again"}
        self.assertEqual(set(rows), {(name, seed) for name in names for seed in (0, 1)})
        for row in rows.values():
            self.assertEqual(row["status"], "ok")
            self.assertBetween(row["ua"], 0, 100)
            self.assertGreaterEqual(row["frechet_retained"], 0)
        self.assertAlmostEqual(rows["retrain", 0]["frechet_forgotten"], 0, places=6)
        self.assertGreater(rows["retrain_again", 0]["frechet_retrain"], 0)
        # One training served both seeds, whose images differ.
        self.assertEqual(*(rows["original", s]["seconds"] for s in (0, 1)))
        records = [np.load(self.out / "records" / f"original-{s}.npz") for s in (0, 1)]
        self.assertEqual(records[0]["images"].shape, (3, 6, 8, 8, 1))
        self.assertFalse(np.array_equal(records[0]["images"], records[1]["images"]))
        for name in ("samples", "metrics", "distance", "loss"):
            self.assertTrue((self.out / "plots" / f"{name}.png").stat().st_size)
        self.assertIn(
            "right on real test images", (self.out / "report.html").read_text()
        )

        original, salun = (
            load_checkpoint(self.out / "checkpoints" / name / "seed_0")["params"]
            for name in ("original", "salun")
        )
        same = jax.tree.map(lambda a, b: int(jnp.sum(a == b)), original, salun)
        total = sum(leaf.size for leaf in jax.tree.leaves(original))
        self.assertGreaterEqual(sum(jax.tree.leaves(same)), total // 2)

        with mock.patch.object(study, "execute", side_effect=AssertionError):
            self.assertEqual(run(*flags)[0], 0)
        self.assertEqual(self.rows(), rows)

        # Another recipe is another study, whose trained models are there already.
        self.out, trained, real = self.folder / "other", [], study.execute

        def execute(runs, *arguments):
            trained.extend(run.name for run in runs)
            return real(runs, *arguments)

        flags = [
            "--recipe.density",
            "0.2",
            "--methods",
            "salun",
            "--out",
            str(self.out),
        ]
        with mock.patch.object(study, "execute", execute):
            code, err = run(*self.flags, *flags)
        self.assertEqual(code, 0, err)
        self.assertEqual(trained, ["salun", "salun"])

    def test_goes_on_where_it_was_interrupted(self):
        flags = [*self.flags, "--methods", "salun", "--seeds", "1"]
        flags += ["--recipe.epochs", "3", "--keep-every", "0"]
        code, err = run(*flags, "--out", str(self.folder / "whole"))
        self.assertEqual(code, 0, err)
        self.out = self.folder / "whole"
        whole, real, epochs = self.rows()["salun", 0], loop.run, []

        def interrupted(*arguments, on_epoch, **options):
            def stop(done, *rest):
                on_epoch(done, *rest)
                epochs.append(done)
                if epochs == [1, 2]:
                    raise KeyboardInterrupt

            return real(*arguments, on_epoch=stop, **options)

        self.out = self.folder / "out"
        with mock.patch.object(loop, "run", interrupted):
            self.assertEqual(run(*flags, "--out", str(self.out))[0], 130)
            self.assertEqual(run(*flags, "--out", str(self.out))[0], 0)
        self.assertEqual(epochs, [1, 2, 3])
        row = self.rows()["salun", 0]
        self.assertEqual(row | {"seconds": 0}, whole | {"seconds": 0})

    def test_a_method_that_diverges_is_a_row(self):
        flags = ["--methods", "gradient_ascent", "--seeds", "1"]
        flags += ["--recipe.learning-rate", "1e38", "--out", str(self.out)]
        code, err = run(*self.flags, *flags)
        self.assertEqual(code, 0, err)
        self.assertEqual(self.rows()["gradient_ascent", 0]["status"], "diverged")
        self.assertEqual(self.rows()["original", 0]["status"], "ok")

    @parameterized.named_parameters(
        ("class", ["--forget-class", "9"], "no class '9'"),
        ("method", ["--methods", "cufg"], "no method cufg"),
        ("samples", ["--samples", "1"], "--samples 1"),
        ("steps", ["--sampling-steps", "2000"], "give 1 to 1000"),
        ("rate", ["--recipe.learning-rate", "-1"], "--recipe.learning-rate -1"),
        ("checkpoint", ["--checkpoint", "nowhere"], "Give an Orbax folder"),
    )
    def test_bad_input_is_a_line_and_exit_code_2(self, flags, words):
        code, err = run(*self.flags, *flags, "--out", str(self.out))
        self.assertEqual(code, 2)
        self.assertIn(words, err)
        self.assertLessEqual(err.count("\n"), 2)
        self.assertFalse((self.out / "results.json").exists())


if __name__ == "__main__":
    absltest.main()
