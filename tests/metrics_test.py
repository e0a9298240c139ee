"""Accuracies, gap and tug-of-war against closed forms and their laws."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from mujax import metrics
from tests import reference

NAN = float("nan")
PERCENT = st.floats(0, 100)


def random_outputs(seed, size=20, num_classes=4):
    rng = np.random.default_rng(seed)
    outputs = rng.normal(size=(size, num_classes)).astype(np.float32)
    return outputs, rng.integers(0, num_classes, size)


class AccuracyTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("right", [[0.0, 1.0]], [1], 100),
        ("wrong", [[0.0, 1.0]], [0], 0),
        ("three_of_four", [[1, 0], [1, 0], [0, 1], [0, 1]], [0, 0, 1, 0], 75),
        ("tie_takes_the_first_class", [[1, 1], [1, 1]], [0, 1], 50),
        ("nan_at_the_label", [[NAN, 0.0], [1.0, 0.0]], [0, 0], 50),
        ("nan_elsewhere", [[1.0, NAN], [1.0, 0.0]], [0, 0], 50),
        ("all_nan", [[NAN, NAN]], [0], 0),
        ("infinity_is_a_number", [[np.inf, 0.0], [0.0, -np.inf]], [0, 0], 100),
    )
    def test_closed_form(self, outputs, labels, wanted):
        outputs, labels = jnp.asarray(outputs, jnp.float32), jnp.asarray(labels)
        for transform in (lambda fn: fn, jax.jit):
            self.assertEqual(transform(metrics.accuracy)(outputs, labels), wanted)
            self.assertEqual(
                transform(metrics.retain_accuracy)(outputs, labels), wanted
            )
            self.assertEqual(transform(metrics.test_accuracy)(outputs, labels), wanted)
            self.assertEqual(
                transform(metrics.unlearning_accuracy)(outputs, labels), 100 - wanted
            )

    @parameterized.parameters(1, 3, 7, 41, 360)
    def test_all_right_and_all_wrong_are_exact(self, size):
        labels = np.arange(size) % 10
        outputs = np.eye(10)[labels]
        without = jax.jit(lambda x, y: metrics.test_accuracy(x, y, exclude_class=10))
        for fn in (metrics.accuracy, jax.jit(metrics.accuracy), without):
            self.assertEqual(fn(outputs, labels), 100)
            self.assertEqual(fn(outputs, (labels + 1) % 10), 0)

    def test_golden_network(self):
        data = reference.load("model")
        predicted = data["logits_forget"].argmax(1)
        wanted = 100 * np.mean(predicted == data["forget_labels"])
        found = metrics.accuracy(data["logits_forget"], data["forget_labels"])
        np.testing.assert_allclose(found, wanted, rtol=1e-6)

    @hypothesis.settings(deadline=None, max_examples=40)
    @hypothesis.given(seed=st.integers(0, 2**31 - 1))
    def test_laws(self, seed):
        outputs, labels = random_outputs(seed)
        found = metrics.accuracy(outputs, labels)
        self.assertBetween(float(found), 0, 100)
        order = np.random.default_rng(seed).permutation(len(labels))
        self.assertEqual(metrics.accuracy(outputs[order], labels[order]), found)
        probs = jax.nn.softmax(outputs)
        self.assertEqual(metrics.accuracy(probs, labels), found)
        self.assertEqual(metrics.accuracy(3 * outputs - 7, labels), found)

    def test_vmap_over_models(self):
        first, labels = random_outputs(0)
        second, _ = random_outputs(1)
        for metric in (metrics.accuracy, metrics.unlearning_accuracy):
            both = jax.vmap(metric, (0, None))(jnp.stack([first, second]), labels)
            wanted = jnp.stack([metric(first, labels), metric(second, labels)])
            chex.assert_trees_all_equal(both, wanted)

    def test_excluded_class_is_left_out(self):
        outputs, labels = random_outputs(0)
        for excluded in range(4):
            kept = labels != excluded
            wanted = metrics.accuracy(outputs[kept], labels[kept])
            found = metrics.test_accuracy(outputs, labels, exclude_class=excluded)
            np.testing.assert_allclose(found, wanted, rtol=1e-6)
            found = jax.jit(metrics.test_accuracy, static_argnames="exclude_class")(
                outputs, labels, exclude_class=excluded
            )
            np.testing.assert_allclose(found, wanted, rtol=1e-6)

    def test_excluding_an_absent_class_changes_nothing(self):
        outputs, labels = random_outputs(0)
        self.assertEqual(
            metrics.test_accuracy(outputs, labels, exclude_class=9),
            metrics.test_accuracy(outputs, labels),
        )

    @parameterized.product(wrong=[255, -1, 4], dtype=["int32", "uint8", "int64"])
    def test_a_label_that_is_no_class_earns_no_number(self, wrong, dtype):
        if wrong < 0 and dtype == "uint8":
            wrong = 200
        outputs, labels = random_outputs(0)
        labels = labels.astype(dtype)
        labels[3] = wrong
        for metric in (
            metrics.accuracy,
            metrics.unlearning_accuracy,
            functools.partial(metrics.test_accuracy, exclude_class=1),
        ):
            with self.assertRaisesRegex(ValueError, f"label {wrong} for 4 classes"):
                metric(outputs, labels)
            with self.assertRaisesRegex(ValueError, f"label {wrong} for 4 classes"):
                metric(jnp.asarray(outputs), jnp.asarray(labels))
            self.assertTrue(np.isnan(jax.jit(metric)(outputs, labels)))
            both = np.stack([np.zeros_like(labels), labels])
            found = jax.vmap(metric, (None, 0))(outputs, both)
            np.testing.assert_array_equal(np.isnan(found), [False, True])

    @parameterized.parameters("float32", "bool")
    def test_labels_are_integers(self, dtype):
        outputs, labels = random_outputs(0)
        for transform in (lambda fn: fn, jax.jit):
            with self.assertRaisesRegex(TypeError, f"{dtype} labels, wanted integers"):
                transform(metrics.accuracy)(outputs, labels.astype(dtype))

    def test_nothing_left_without_the_class(self):
        outputs, labels = np.ones((2, 3)), np.array([1, 1])
        with self.assertRaisesRegex(ValueError, "class 1 alone, which is excluded"):
            metrics.test_accuracy(outputs, labels, exclude_class=1)
        inside = jax.jit(lambda y: metrics.test_accuracy(outputs, y, exclude_class=1))
        self.assertTrue(np.isnan(inside(labels)))

    @parameterized.named_parameters(
        ("empty", (0, 3), (0,), "wanted at least one example"),
        ("no_class", (2, 0), (2,), "wanted at least one example"),
        ("unequal", (2, 3), (3,), r"outputs \(2, 3\) and labels \(3,\)"),
        ("one_hot_labels", (2, 3), (2, 3), r"wanted \(N, K\) and \(N,\)"),
        ("predicted_classes", (2,), (2,), r"wanted \(N, K\) and \(N,\)"),
    )
    def test_bad_input(self, outputs, labels, message):
        for metric in (
            metrics.accuracy,
            metrics.unlearning_accuracy,
            metrics.retain_accuracy,
            metrics.test_accuracy,
        ):
            with self.assertRaisesRegex(ValueError, message):
                metric(np.ones(outputs), np.zeros(labels, int))


def named(values, keys=("ua", "ra", "ta", "mia")) -> dict[str, float]:
    return dict(zip(keys, values, strict=True))


class AverageGapTest(parameterized.TestCase):
    # Rows of SalUn's table for CIFAR-10, 10 %: the gap as printed there.
    @parameterized.named_parameters(
        ("fine_tuning", (0.63, 99.88, 94.06, 2.70), 3.78),
        ("random_label", (7.61, 99.67, 92.83, 37.36), 7.15),
        ("gradient_ascent", (0.69, 99.50, 94.01, 1.70), 4.12),
        ("boundary_expanding", (0.59, 99.42, 93.85, 7.47), 2.76),
        ("salun", (2.85, 99.62, 93.93, 14.39), 1.15),
        ("salun_soft", (4.19, 99.74, 93.44, 19.49), 2.19),
    )
    def test_published_rows(self, row, wanted):
        retrain = named((5.24, 100.0, 94.26, 12.88))
        gap = metrics.average_gap(named(row), retrain)
        self.assertAlmostEqual(gap, wanted, delta=0.0101)

    @hypothesis.given(
        ours=st.tuples(PERCENT, PERCENT, PERCENT),
        theirs=st.tuples(PERCENT, PERCENT, PERCENT),
    )
    def test_is_a_distance(self, ours, theirs):
        keys = ("a", "b", "c")
        row, reference_row = named(ours, keys), named(theirs, keys)
        gap = metrics.average_gap(row, reference_row, keys)
        self.assertBetween(gap, 0, 100)
        self.assertEqual(metrics.average_gap(reference_row, row, keys), gap)
        self.assertEqual(metrics.average_gap(row, row, keys), 0)
        backwards = metrics.average_gap(row, reference_row, keys[::-1])
        self.assertAlmostEqual(backwards, gap)

    def test_arrays_pair_the_seeds_and_other_keys_do_not_count(self):
        row = {"ua": np.array([1.0, 2.0]), "ra": np.array([9.0, 9.0]), "seconds": 3}
        reference_row = {"ua": np.array([3.0, 2.0]), "ra": np.array([9.0, 5.0])}
        gap = metrics.average_gap(row, reference_row, ("ua", "ra"))
        np.testing.assert_array_equal(gap, [1.0, 2.0])
        as_jax = jax.tree.map(jnp.asarray, (row, reference_row))
        inside = jax.jit(lambda r, s: metrics.average_gap(r, s, ("ua", "ra")))(*as_jax)
        np.testing.assert_array_equal(inside, gap)

    def test_nan_is_not_hidden(self):
        row = {"ua": NAN, "ra": 1.0}
        gap = metrics.average_gap(row, {"ua": 1.0, "ra": 1.0}, ("ua", "ra"))
        self.assertTrue(np.isnan(gap))

    def test_bad_input(self):
        full = {"ua": 1.0, "ra": 1.0, "ta": 1.0, "mia": 1.0}
        with self.assertRaisesRegex(ValueError, r"row lacks \['ta', 'mia'\]; it has"):
            metrics.average_gap({"ua": 1.0, "ra": 1.0}, full)
        with self.assertRaisesRegex(ValueError, r"reference lacks \['ua'\]"):
            metrics.average_gap(full, {"ra": 1.0}, ("ua",))
        with self.assertRaisesRegex(ValueError, "Got no key"):
            metrics.average_gap(full, full, ())


class TowTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("retrain", (90.0, 100.0, 94.0), (90.0, 100.0, 94.0), 1.0),
        ("half", (100.0, 100.0, 94.0), (50.0, 100.0, 94.0), 0.5),
        ("product", (80.0, 90.0, 100.0), (90.0, 100.0, 50.0), 0.9 * 0.9 * 0.5),
        ("opposite", (0.0, 100.0, 100.0), (100.0, 100.0, 100.0), 0.0),
    )
    def test_closed_form(self, accuracies, reference_accuracies, wanted):
        found = metrics.tow(*accuracies, reference=reference_accuracies)
        self.assertAlmostEqual(found, wanted)

    @hypothesis.given(
        ours=st.tuples(PERCENT, PERCENT, PERCENT),
        theirs=st.tuples(PERCENT, PERCENT, PERCENT),
    )
    def test_laws(self, ours, theirs):
        found = metrics.tow(*ours, reference=theirs)
        self.assertBetween(found, 0, 1)
        self.assertEqual(metrics.tow(*theirs, reference=ours), found)
        self.assertEqual(metrics.tow(*ours, reference=ours), 1)
        worst = 1 - max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / 100
        self.assertLessEqual(found, worst + 1e-12)

    def test_arrays(self):
        found = metrics.tow(
            np.array([90.0, 80.0]), 100.0, 100.0, reference=(90.0, 100.0, 50.0)
        )
        np.testing.assert_allclose(found, [0.5, 0.45])

    def test_bad_reference(self):
        with self.assertRaisesRegex(ValueError, "reference of 2 accuracies"):
            metrics.tow(1.0, 1.0, 1.0, reference=(1.0, 1.0))  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    absltest.main()
