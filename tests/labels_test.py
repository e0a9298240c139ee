"""Random and next labels: range, law, dtype, reproducibility."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from absl.testing import absltest, parameterized

from mujax import labels


class RandomLabelsTest(parameterized.TestCase):
    @hypothesis.settings(deadline=None, max_examples=50)
    @hypothesis.given(
        seed=st.integers(0, 2**31 - 1),
        num_classes=st.integers(2, 200),
        size=st.sampled_from([0, 1, 20]),
        exclude_true=st.booleans(),
    )
    def test_range_and_exclusion(self, seed, num_classes, size, exclude_true):
        true = np.random.default_rng(seed).integers(0, num_classes, size)
        drawn = labels.random_labels(
            jax.random.key(seed), true, num_classes, exclude_true=exclude_true
        )
        self.assertEqual(drawn.shape, true.shape)
        self.assertTrue(np.all((drawn >= 0) & (drawn < num_classes)))
        if exclude_true:
            self.assertTrue(np.all(np.asarray(drawn) != true))

    @parameterized.named_parameters(
        ("others", True, [0, 1, 3, 4]), ("all", False, [0, 1, 2, 3, 4])
    )
    def test_uniform_over_its_classes(self, exclude_true, support):
        true = jnp.full(20_000, 2)
        drawn = labels.random_labels(
            jax.random.key(3), true, 5, exclude_true=exclude_true
        )
        counts = np.bincount(drawn, minlength=5)
        self.assertEqual(counts.sum(), counts[support].sum())
        self.assertGreater(scipy.stats.chisquare(counts[support]).pvalue, 1e-3)

    def test_two_classes_flip(self):
        true = jnp.array([0, 1, 1, 0])
        drawn = labels.random_labels(jax.random.key(0), true, 2)
        np.testing.assert_array_equal(drawn, 1 - true)

    def test_draws_are_independent_between_examples_and_keys(self):
        true = jnp.zeros(1000, jnp.int32)
        first = labels.random_labels(jax.random.key(0), true, 10)
        again = labels.random_labels(jax.random.key(0), true, 10)
        other = labels.random_labels(jax.random.key(1), true, 10)
        np.testing.assert_array_equal(first, again)
        self.assertBetween(float(jnp.mean(first == other)), 0.05, 0.18)
        self.assertBetween(float(jnp.mean(first[1:] == first[:-1])), 0.05, 0.18)

    def test_jit_and_vmap_give_the_eager_labels(self):
        keys = jax.random.split(jax.random.key(0), 3)
        true = jnp.arange(8) % 4

        def draw(key):
            return labels.random_labels(key, true, 4)

        eager = jnp.stack([draw(key) for key in keys])
        chex.assert_trees_all_equal(jax.jit(jax.vmap(draw))(keys), eager)


class NextLabelTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("two", 2, [0, 1, 0], [1, 0, 1]), ("ten", 10, [0, 8, 9], [1, 9, 0])
    )
    def test_closed_form(self, num_classes, true, wanted):
        np.testing.assert_array_equal(
            labels.next_label(jnp.array(true), num_classes), wanted
        )

    def test_as_many_steps_as_classes_come_home(self):
        true = moved = jnp.arange(7)
        for _ in range(7):
            moved = jax.jit(labels.next_label, static_argnums=1)(moved, 7)
        np.testing.assert_array_equal(moved, true)


class BothTest(parameterized.TestCase):
    @parameterized.product(
        dtype=["int8", "uint8", "int16", "int32"], shape=[(), (4,), (2, 3)]
    )
    def test_shape_and_dtype_are_kept(self, dtype, shape):
        # 128 classes just fit an int8, though the number 128 does not.
        true = jnp.full(shape, 127, dtype)
        drawn = labels.random_labels(jax.random.key(0), true, 128)
        chex.assert_shape(drawn, shape)
        chex.assert_type(drawn, true.dtype)
        self.assertTrue(bool(jnp.all((drawn >= 0) & (drawn < 127))))
        moved = labels.next_label(true, 128)
        chex.assert_trees_all_equal(moved, jnp.zeros(shape, dtype))
        chex.assert_type(moved, true.dtype)
        moved = labels.next_label(moved, 128)
        chex.assert_trees_all_equal(moved, jnp.ones(shape, dtype))

    @parameterized.product(
        dtype=["int8", "uint8", "int32", "uint32"],
        num_classes=[2, 10, 100],
        exclude_true=[True, False],
    )
    def test_what_is_no_class_is_kept(self, dtype, num_classes, exclude_true):
        top = np.iinfo(dtype).max
        ignored = np.array([top, top - 1, num_classes, -1 % (top + 1)], dtype)
        if np.iinfo(dtype).min < 0:
            ignored[3] = -1
        true = np.concatenate([np.zeros(40, dtype), ignored])

        def draw(labels_):
            return labels.random_labels(
                jax.random.key(0), labels_, num_classes, exclude_true=exclude_true
            )

        def move(labels_):
            return labels.next_label(labels_, num_classes)

        for fn in (draw, move, jax.jit(draw), jax.jit(move)):
            found = np.asarray(fn(true))
            self.assertEqual(found.dtype, dtype)
            np.testing.assert_array_equal(found[40:], ignored)
            self.assertTrue((found[:40] < num_classes).all())
            self.assertTrue((found[:40] > 0).any())

    @parameterized.named_parameters(
        ("one_class", np.array([0]), 1, ValueError, "num_classes=1, wanted at least 2"),
        ("no_class", np.array([0]), 0, ValueError, "num_classes=0"),
        ("floats", np.array([0.0]), 3, TypeError, "float.* labels, wanted integers"),
        ("too_many", np.array([0], np.int8), 129, ValueError, "int8 labels for 129"),
    )
    def test_bad_input(self, true, num_classes, error, message):
        with self.assertRaisesRegex(error, message):
            labels.random_labels(jax.random.key(0), true, num_classes)
        with self.assertRaisesRegex(error, message):
            labels.next_label(true, num_classes)


if __name__ == "__main__":
    absltest.main()
