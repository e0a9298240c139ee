"""The small text-to-image pipeline, and what forgetting a concept in it means."""

import contextlib
import copy
import dataclasses
import json
import pathlib
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments.data import emoji
from experiments.data.captions import Caption, Captioned
from experiments.data.dataset import DataError
from experiments.engine import cli
from experiments.engine.checkpoints import load_checkpoint
from experiments.engine.task import BASELINES
from experiments.text_to_image import __main__ as story
from experiments.text_to_image import concept, recipes, small
from experiments.text_to_image.config import Config
from experiments.text_to_image.methods import METHODS
from experiments.text_to_image.task import TextToImage
from mujax import methods, roles
from tests import command_line

KEY = jax.random.key(0)
SUBJECTS = ("cat face", "rocket", "star")


def pictures() -> Captioned:
    return emoji.load(SUBJECTS, size=16)


class PatchesTest(absltest.TestCase):
    def test_latents_are_half_white_and_come_back(self):
        images = pictures().images
        patches = small.fit_patches(images, channels=48)
        latents = np.asarray(patches.encode(images), np.float64)
        self.assertEqual(latents.shape[:3], (9, 4, 4))
        flat = latents.reshape(-1, latents.shape[-1])
        np.testing.assert_allclose(flat.mean(axis=0), 0, atol=1e-3)
        x = images.reshape(9, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(-1, 48) / 127.5 - 1
        deviation = np.linalg.svd(x - x.mean(0), compute_uv=False) / len(x) ** 0.5
        deviation = deviation[: flat.shape[1]]
        variances = deviation / deviation.mean()
        covariance = flat.T @ flat / len(flat)
        np.testing.assert_allclose(covariance, np.diag(variances), atol=0.02)
        np.testing.assert_array_equal(patches.decode(latents), images)

    def test_fewer_channels_lose_what_varies_least(self):
        images = pictures().images
        x = images.reshape(9, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(-1, 48) / 127.5 - 1
        values = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
        patches = small.fit_patches(images, channels=6)
        seen = patches.decode(patches.encode(images)).astype(float) / 127.5 - 1
        error = np.sum((seen - (images / 127.5 - 1)) ** 2)
        # Clipping to what a picture may hold can only help.
        self.assertLess(error, 1.01 * values[6:].sum())
        self.assertGreater(error, 0.5 * values[6:].sum())


class PromptsTest(parameterized.TestCase):
    captions = (
        Caption(("flat cat", "cat, flat"), ("cat in flat", "a cat")),
        Caption(("flat dog",), ("a dog",)),
    )

    def setUp(self):
        super().setUp()
        self.prompts = small.Prompts(self.captions)

    def test_equal_words_are_equal_tokens_and_order_counts(self):
        cat, turned, unknown, none = self.prompts.tokens(
            ["flat cat", "Cat FLAT", "flat bird", ""]
        )
        self.assertEqual(cat[1], turned[2])
        self.assertEqual(cat[2], turned[1])
        self.assertEqual(unknown[2], small.UNKNOWN)
        self.assertEqual(set(none.tolist()), {small.START, small.END})

    def test_a_key_draws_the_wordings_of_training_and_no_paraphrase(self):
        numbers = jnp.full(64, 0)
        drawn = self.prompts.states(numbers, KEY)
        texts = {
            text: np.asarray(self.prompts.encode(self.prompts.tokens([text]))[0])
            for text in ("flat cat", "cat, flat", "cat in flat", "a cat")
        }
        seen = [
            text
            for row in np.asarray(drawn)
            for text, states in texts.items()
            if np.allclose(row, states, atol=1e-5)
        ]
        self.assertLen(seen, 64)
        self.assertEqual(set(seen), {"flat cat", "cat, flat"})
        first = self.prompts.states(jnp.array([0, 1, 2]))
        wanted = self.prompts.encode(self.prompts.tokens(["flat cat", "flat dog", ""]))
        np.testing.assert_allclose(first, wanted, atol=1e-6)

    def test_paraphrases_have_numbers_of_their_own(self):
        pairs = self.prompts.paraphrased()
        self.assertEqual(
            [(self.prompts.text(int(n)), int(c)) for n, c in pairs],
            [("cat in flat", 0), ("a cat", 0), ("a dog", 1)],
        )
        # A key leaves them alone.
        numbers = jnp.asarray(pairs[:, 0])
        np.testing.assert_array_equal(
            self.prompts.states(numbers), self.prompts.states(numbers, KEY)
        )

    def test_speaks_in_all_wordings(self):
        found = self.prompts.spoken(np.arange(3))
        texts = ["flat cat", "flat dog", "", "cat, flat", "flat dog", ""]
        wanted = self.prompts.encode(self.prompts.tokens(texts))
        np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=1e-6)


class ConceptTest(parameterized.TestCase):
    def test_a_thing_gives_way_to_things_in_its_style(self):
        found = concept.concept(pictures(), "cat")
        self.assertEqual(found.forgotten.tolist(), [0, 3, 6])
        self.assertEqual(found.retained.tolist(), [1, 2, 4, 5, 7, 8])
        self.assertEqual(found.instead, {0: [1, 2], 3: [4, 5], 6: [7, 8]})
        np.testing.assert_array_equal(found.own, np.tile(found.own[:3], 3))
        np.testing.assert_array_equal(found.other, np.repeat(found.other[::3], 3))

    def test_a_style_gives_way_to_the_thing_in_other_styles(self):
        found = concept.concept(pictures(), "line")
        self.assertEqual(found.forgotten.tolist(), [6, 7, 8])
        self.assertEqual(found.instead, {6: [0, 3], 7: [1, 4], 8: [2, 5]})
        self.assertLen(np.unique(found.own[6:]), 1)  # its domain is that of styles

    def test_a_target_takes_the_place(self):
        found = concept.concept(pictures(), "cat", "rocket")
        self.assertEqual(found.instead, {0: [1], 3: [4], 6: [7]})

    @parameterized.parameters(("cat", "dog"), ("cat", "cat"), ("picture", None))
    def test_raises_for_words_that_will_not_do(self, words, target):
        with self.assertRaises(DataError):
            concept.concept(pictures(), words, target)

    def test_relabels_to_the_first_or_to_any(self):
        instead = {0: [4, 1, 3], 2: [4, 0]}
        labels = jnp.tile(jnp.array([0, 2]), 300)
        first = concept.relabelling(instead, first=True)(KEY, labels, 5)
        self.assertEqual(set(np.asarray(first).tolist()), {4})
        drawn = np.asarray(concept.relabelling(instead, first=False)(KEY, labels, 5))
        counts = [np.bincount(part, minlength=5) for part in (drawn[::2], drawn[1::2])]
        np.testing.assert_allclose(counts[0], [0, 100, 0, 100, 100], atol=30)
        np.testing.assert_allclose(counts[1], [150, 0, 0, 0, 150], atol=40)

    def test_others_are_retained_and_not_its_own(self):
        labels = jnp.tile(jnp.array([0, 1, 4]), 60)
        drawn = np.asarray(concept.others(np.array([1, 2, 4]))(KEY, labels, 5))
        self.assertEqual(set(drawn[::3].tolist()), {1, 2, 4})
        self.assertEqual(set(drawn[1::3].tolist()), {2, 4})
        self.assertEqual(set(drawn[2::3].tolist()), {1, 2})

    def test_shifts_move_a_picture_over_white(self):
        image = np.zeros((1, 3, 3, 1), np.uint8)
        found = concept.shifted(image, ((0, 0), (1, 0), (0, -1)))[..., 0]
        down = [[255, 255, 255], [0, 0, 0], [0, 0, 0]]
        left = [[0, 0, 255]] * 3
        np.testing.assert_array_equal(found, [np.zeros((3, 3)), down, left])


class TaskTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        config = Config(
            widths="16", channels=4, size=16, samples=2, forgotten_samples=4,
            devices=1, cache=None,
        )  # fmt: skip
        cls.task = TextToImage(config, pictures(), concept.concept(pictures(), "cat"))

    def test_feeds_every_picture_of_the_concept_and_no_other(self):
        feed = self.task.feed
        labels = np.asarray(feed.examples["label"])
        self.assertLen(labels, 45)
        self.assertEqual(set(labels[feed.forget[0]].tolist()), {0, 3, 6})
        self.assertLen(feed.forget[0], 15)
        self.assertEqual(
            sorted([*feed.forget[0], *feed.retain]), list(range(len(labels)))
        )

    def test_draws_prompts_and_paraphrases_of_the_concept(self):
        prompts, wanted = self.task.drawn.T
        np.testing.assert_array_equal(prompts[:24], wanted[:24])
        self.assertEqual(np.bincount(wanted[:24]).tolist(), [4, 2, 2, 4, 2, 2, 4, 2, 2])
        self.assertEqual(set(wanted[24:].tolist()), {0, 3, 6})
        known = {t for c in pictures().captions for t in c.wordings}
        for number in set(prompts[24:].tolist()):
            self.assertNotIn(self.task.prompts.text(number), known)

    def test_measures_by_who_is_recognised(self):
        """A judge that reads the grey level; a sampler that paints wanted captions."""
        task, prompts, wanted = self.task, *self.task.drawn.T
        seen = wanted.copy()
        asked = np.flatnonzero((wanted == 3) & (prompts == 3))
        seen[asked] = 4  # another thing in the style: forgotten
        kept = np.flatnonzero(wanted == 1)
        seen[kept[0]] = 2  # another thing, its style right
        seen[kept[1]] = 4  # the thing, another style
        images = np.zeros((len(seen), 16, 16, 3), np.uint8) + seen[:, None, None, None]
        features = np.random.default_rng(0).normal(size=(len(seen), 3))

        class Judge:
            def see(self, images):
                return images[:, 0, 0, 0].astype(int), features[: len(images)]

            def nearest(self, images):
                return np.zeros(len(images), int)

        with contextlib.ExitStack() as stack:
            for name, value in (
                ("judge", Judge()),
                ("real_features", features),
                ("sampler", type("S", (), {"draw": lambda *_: images})()),
            ):
                stack.callback(self.task.__dict__.pop, name, None)
                if name == "sampler":
                    stack.callback(setattr, task, name, task.sampler)
                self.task.__dict__[name] = value
            row = task.measure(None, None, 0).row
        self.assertAlmostEqual(row["ua"], 100 * 4 / 12)
        self.assertEqual(row["ua_paraphrased"], 0)
        self.assertEqual(row["ua_nearest"], 0)
        self.assertAlmostEqual(row["ira"], 100 * 11 / 12)
        self.assertAlmostEqual(row["cra"], 100 * 11 / 12)

    def test_every_row_has_a_note_and_numbers_that_its_recipe_has(self):
        self.assertEqual({*METHODS, *BASELINES}, recipes.NOTES.keys())
        self.assertEqual(METHODS.keys(), recipes.own().keys())
        self.assertContainsSubset(recipes.NUMBERS.keys(), METHODS.keys())

    def test_uce_reads_a_cat_as_what_takes_its_place(self):
        """With hardly any ridge and nothing preserved all keys and values agree."""
        task = self.task
        recipe = METHODS["uce"].Recipe(ridge=1e-5, preserve_weight=0.0)
        method = task.build("uce", recipe, 1)
        shapes, _ = jax.eval_shape(task.init, KEY)
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), shapes)
        state = jax.jit(method.init)(params)
        edited, _ = method.finish(state)
        cat, rocket = (task.prompts.states(jnp.array([c]))[0] for c in (0, 1))
        names, share = roles.leaf_names(params), 0
        leaves = map(jax.tree.leaves, (params, edited))
        for name, old, new in zip(names, *leaves, strict=True):
            if name.endswith(("attn2/to_k/kernel", "attn2/to_v/kernel")):
                np.testing.assert_allclose(cat @ new, rocket @ old, atol=0.1)
                self.assertGreater(jnp.abs(cat @ old - rocket @ old).max(), 1)
                share += old.size
            else:
                np.testing.assert_array_equal(old, new)
        total = sum(x.size for x in jax.tree.leaves(params))
        self.assertAlmostEqual(methods.trainable_fraction(state, params), share / total)

    def test_uce_needs_the_weights_that_it_edits(self):
        task = copy.copy(self.task)
        task.config = dataclasses.replace(task.config, trainable="not-attn2")
        with self.assertRaisesRegex(cli.ConfigError, "fits no weight that could move"):
            task.build("uce", METHODS["uce"].Recipe(), 1)

    def test_uce_knows_all_tokens(self):
        """Of three things in three styles, in three wordings, the cats are erased."""
        erased, targets, preserved = self.task.states
        tokens, size = self.task.prompts.length, small.STATES
        self.assertEqual(erased.shape, (3 * 3 * tokens, size))
        self.assertEqual(targets.shape, erased.shape)
        self.assertEqual(preserved.shape, (3 * 7 * tokens, size))

    @parameterized.parameters(
        ("attn2", "/attn2/to_k/", "/attn1/to_k/"),
        ("not-attn2", "/attn1/to_k/", "/attn2/to_k/"),
        ("attn2.to_[kv]", "/attn2/to_k/", "/attn2/to_q/"),
    )
    def test_trains_the_weights_that_are_named(self, trainable, inside, outside):
        config = dataclasses.replace(self.task.config, trainable=trainable)
        task = copy.copy(self.task)
        task.config = config
        method = task.build("gradient_ascent", METHODS["gradient_ascent"].Recipe(), 1)
        params, _ = jax.eval_shape(task.init, KEY)
        state = jax.eval_shape(method.init, params)
        every, part = set(roles.leaf_names(params)), roles.leaf_names(state.trained)
        self.assertContainsSubset(part, every)
        self.assertEqual({x for x in every if inside in x} - {*part}, set())
        self.assertEqual([x for x in part if outside in x], [])
        sizes = [sum(x.size for x in jax.tree.leaves(t)) for t in (state[0], params)]
        share = methods.trainable_fraction(state, params)
        self.assertAlmostEqual(share, sizes[0] / sizes[1])
        # The original and Retrain are trained whole.
        whole = task.build("original", recipes.TRAINING, 1)
        whole = jax.eval_shape(whole.init, params)
        chex.assert_trees_all_equal_shapes(whole.trained, params)

    @pytest.mark.slow  # a U-Net's mask and step compile for minutes on a busy machine
    def test_saluns_mask_stays_frozen_and_its_target_is_in_the_style(self):
        task = self.task
        method = task.build("salun", METHODS["salun"].Recipe(density=0.3), 1)
        params, _ = task.init(KEY)
        [batch, *_] = task.forget_batches(16)
        state = method.init(params, {}, [batch])
        step = jax.jit(method.step)
        moved, _ = step(state, batch | {"label": (batch["label"] + 1) % 9}, key=KEY)
        for mask, old, new in zip(
            *map(jax.tree.leaves, (state.mask, params, moved.trained)), strict=True
        ):
            chex.assert_trees_all_equal(
                jnp.where(mask, 0, old), jnp.where(mask, 0, new)
            )
        relabel = method.data_use.relabel
        assert relabel is not None
        labels = jnp.array([0, 3, 6])
        np.testing.assert_array_equal(relabel(KEY, labels, 9), [1, 4, 7])


class CommandTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("data", ["--dataset", "digits"], "give emoji, or folder:PATH"),
        ("folder", ["--dataset", "folder:nowhere"], "has no table of captions"),
        ("both", ["--dataset", "folder:x", "--subjects", "key,rose"], "has its own"),
        ("concept", ["--forget", "unicorn"], "No caption speaks of 'unicorn'"),
        ("target", ["--target", "unicorn"], "No caption speaks of 'unicorn'"),
        ("subjects", ["--subjects", "cat face,unikorn"], "no emoji 'unikorn'"),
        ("widths", ["--widths", "32,x"], "multiples of 16"),
        ("size", ["--size", "20"], "a multiple of 8"),
        ("channels", ["--channels", "0"], "at least 1"),
        ("samples", ["--samples", "1"], "at least 2"),
        ("steps", ["--sampling-steps", "0"], "give 1 to 1000"),
        ("pattern", ["--trainable", "to_(k"], "a regular expression"),
        (
            "nothing",
            ["--trainable", "attn3", "--widths", "16", "--subjects", "cat face,star"],
            "fits no weight",
        ),
    )
    def test_bad_input_is_a_line(self, flags, words):
        code, _, err = command_line.run(story.main, *flags)
        self.assertEqual(code, 2)
        self.assertIn(words, err)
        self.assertLen(err.strip().splitlines(), 1)


@pytest.mark.slow
class StudyTest(absltest.TestCase):
    def flags(self, folder: pathlib.Path) -> list[str]:
        return [
            *("--subjects", ",".join(SUBJECTS), "--size", "16"),
            *("--widths", "16", "--channels", "4", "--seeds", "1"),
            *("--train.epochs", "2", "--recipe.epochs", "1"),
            *("--samples", "2", "--forgotten-samples", "4"),
            *("--sampling-steps", "2", "--cache", str(folder / "cache")),
            *("--out", str(folder / "out"), "--methods"),
        ]

    def test_what_is_not_trainable_has_its_old_bits(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            names = ("salun", "semu", "esd", "uce")
            flags = [*self.flags(folder), ",".join(names), "--trainable", "attn2"]
            code, _, err = command_line.run(story.main, *flags)
            self.assertEqual(code, 0, err)
            rows = json.loads((folder / "out" / "results.json").read_text())["rows"]
            shares = {row["method"]: row["trainable_fraction"] for row in rows}
            checkpoints = folder / "out" / "checkpoints"
            loaded = {
                name: load_checkpoint(checkpoints / name / "seed_0")["params"]
                for name in ("original", *names)
            }
            old = loaded["original"]
            pairs = zip(roles.leaf_names(old), jax.tree.leaves(old), strict=True)
            part = [x.size for leaf, x in pairs if "attn2" in leaf.split("/")]
            share = sum(part) / sum(x.size for x in jax.tree.leaves(old))
            self.assertAlmostEqual(shares["esd"], share)
            self.assertAlmostEqual(shares["salun"], share / 2, places=4)
            self.assertLess(shares["semu"], share)
            for name in names:
                same = jax.tree.map(np.array_equal, loaded[name], old)
                pairs = zip(roles.leaf_names(same), jax.tree.leaves(same), strict=True)
                moved = [leaf for leaf, equal in pairs if not equal]
                self.assertNotEmpty(moved)
                self.assertEqual([x for x in moved if "attn2" not in x], [])

    def test_leaves_rows_grids_and_goes_on(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            flags = self.flags(folder)
            code, _, err = command_line.run(story.main, *flags, "salun")
            self.assertEqual(code, 0, err)
            code, _, err = command_line.run(story.main, *flags, "salun,esd")
            self.assertEqual(code, 0, err)
            rows = json.loads((folder / "out" / "results.json").read_text())["rows"]
            self.assertEqual(
                {row["method"] for row in rows}, {*BASELINES, "salun", "esd"}
            )
            self.assertEqual({row["status"] for row in rows}, {"ok"})
            for place in ("report.html", "table.md", "plots/samples.png"):
                self.assertTrue((folder / "out" / place).exists(), place)


if __name__ == "__main__":
    absltest.main()
