"""The attack against its golden numbers, the features against formulas."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from mujax import auditing
from tests import reference

FEATURES = tuple(auditing.FEATURES.items())


def random_probs(seed, size=30, num_classes=5):
    """Softmax outputs, some of them saturated, and labels."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(num_classes, 0.2), size).astype(np.float32)
    probs[: size // 5] = np.eye(num_classes)[rng.integers(0, num_classes, size // 5)]
    return probs, rng.integers(0, num_classes, size)


def log(x):
    return math.log(max(x, 1e-30))


def modified_entropy_by_definition(row, label):
    others = sum(p * log(1 - p) for k, p in enumerate(row) if k != label)
    return -(1 - row[label]) * log(row[label]) - others


class FeaturesTest(parameterized.TestCase):
    @parameterized.parameters(0, 1, 2)
    def test_formulas(self, seed):
        probs, labels = random_probs(seed)
        rows = [[float(p) for p in row] for row in probs]
        pairs = list(zip(rows, labels, strict=True))
        wanted = {
            "confidence": [row[y] for row, y in pairs],
            "correctness": [float(row.index(max(row)) == y) for row, y in pairs],
            "entropy": [-sum(p * log(p) for p in row) for row in rows],
            "modified_entropy": [modified_entropy_by_definition(*p) for p in pairs],
            "probabilities": rows,
        }
        for name, feature in FEATURES:
            with self.subTest(name):
                np.testing.assert_allclose(
                    feature(probs, labels), wanted[name], rtol=1e-4, atol=1e-6
                )

    @parameterized.named_parameters(
        # (1 − .7) log .7, then each other class with its own probability.
        (
            "mixed",
            [0.7, 0.2, 0.1],
            0,
            -0.3 * math.log(0.7) - 0.2 * math.log(0.8) - 0.1 * math.log(0.9),
        ),
        ("uniform_two", [0.5, 0.5], 1, math.log(2)),
        ("sure_and_right", [0.0, 1.0, 0.0], 1, 0.0),
        ("sure_and_wrong", [0.0, 1.0, 0.0], 0, 60 * math.log(10)),
    )
    def test_modified_entropy_closed_form(self, row, label, wanted):
        found = auditing.modified_entropy([row], [label])
        np.testing.assert_allclose(found, [wanted], rtol=1e-6)

    @parameterized.named_parameters(
        ("sure", [1.0, 0.0, 0.0, 0.0], 0.0),
        ("uniform", [0.25] * 4, math.log(4)),
        ("half", [0.5, 0.5, 0.0, 0.0], math.log(2)),
    )
    def test_entropy_closed_form(self, row, wanted):
        np.testing.assert_allclose(auditing.entropy([row], [0]), [wanted], atol=1e-6)

    @hypothesis.settings(deadline=None, max_examples=50)
    @hypothesis.given(seed=st.integers(0, 2**31 - 1))
    def test_laws(self, seed):
        probs, labels = random_probs(seed)
        rng = np.random.default_rng(seed)
        order, names = rng.permutation(len(labels)), rng.permutation(probs.shape[1])
        for name, feature in FEATURES:
            found = feature(probs, labels)
            self.assertEqual(found.shape[0], len(labels))
            self.assertTrue(np.isfinite(found).all(), name)
            np.testing.assert_array_equal(
                feature(probs[order], labels[order]), found[order]
            )
            renamed = feature(probs[:, names], np.argsort(names)[labels])
            if name == "probabilities":
                found = found[:, names]
            np.testing.assert_allclose(renamed, found, rtol=1e-4, atol=1e-6)
        unit = [auditing.confidence(probs, labels), auditing.correctness(probs, labels)]
        self.assertTrue(all((x >= 0).all() and (x <= 1).all() for x in unit))
        entropy = auditing.entropy(probs, labels)
        self.assertTrue((entropy > -1e-6).all())
        self.assertTrue((entropy < math.log(5) + 1e-6).all())
        self.assertTrue((auditing.modified_entropy(probs, labels) > -1e-6).all())

    def test_only_modified_entropy_and_its_kin_read_the_label(self):
        probs, labels = random_probs(0)
        other = (labels + 1) % 5
        np.testing.assert_array_equal(
            auditing.entropy(probs, labels), auditing.entropy(probs, other)
        )
        # One row's label moves that row alone.
        one = labels.copy()
        one[7] = other[7]
        changed = auditing.modified_entropy(probs, labels) != (
            auditing.modified_entropy(probs, one)
        )
        np.testing.assert_array_equal(np.nonzero(changed)[0], [7])

    def test_nan_row_is_not_correct(self):
        probs = [[np.nan, 0.5], [0.5, np.nan], [0.9, 0.1]]
        np.testing.assert_array_equal(auditing.correctness(probs, [0, 0, 0]), [0, 0, 1])

    def test_jax_arrays_of_any_float(self):
        probs, labels = random_probs(0)
        for name, feature in FEATURES:
            found = feature(jnp.asarray(probs, jnp.bfloat16), jnp.asarray(labels))
            self.assertEqual(found.dtype, np.float32, name)

    @parameterized.named_parameters(
        ("unequal", np.ones((2, 3)), [0], r"probs \(2, 3\) and labels \(1,\)"),
        ("flat", np.ones(3), [0, 1, 2], r"wanted \(n, K\) and"),
        ("too_large", np.ones((2, 3)), [0, 3], "label 3 for 3 classes"),
        ("negative", np.ones((2, 3)), [-1, 0], "label -1 for 3 classes"),
    )
    def test_bad_input(self, probs, labels, message):
        for _, feature in FEATURES:
            with self.assertRaisesRegex(ValueError, message):
                feature(probs, labels)

    @parameterized.named_parameters(
        ("logits", [[0.5, 0.5], [3.0, -1.0]], "row 1 goes from -1 to 3 and sums to 2"),
        ("logits_by_chance", [[1.5, -0.5]], "goes from -0.5 to 1.5 and sums to 1"),
        ("logarithms", [[-0.7, -0.7]], "take the softmax of logits first"),
        ("percent", [[75, 25]], "sums to 100"),
        ("infinite", [[np.inf, 0.0]], "sums to inf"),
        ("not_one_over_classes", [[0.5, 0.4]], "sums to 0.9"),
    )
    def test_what_is_no_distribution(self, probs, message):
        for _, feature in FEATURES:
            with self.assertRaisesRegex(ValueError, message):
                feature(probs, np.zeros(len(probs), int))

    @parameterized.parameters("float16", "bfloat16")
    def test_rounded_distributions_pass(self, dtype):
        logits = np.random.default_rng(0).normal(0, 4, (500, 1000))
        probs = jax.nn.softmax(jnp.asarray(logits, dtype))
        for _, feature in FEATURES:
            self.assertLen(feature(probs, np.zeros(500, int)), 500)

    @parameterized.parameters("float32", "bool")
    def test_labels_are_integers(self, dtype):
        for _, feature in FEATURES:
            with self.assertRaisesRegex(TypeError, f"{dtype} labels, wanted integers"):
                feature([[0.5, 0.5]], np.zeros(1, dtype))


class SvcMembershipTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("correctness", "correctness", auditing.correctness),
        ("confidence", "confidence", auditing.confidence),
        ("entropy", "entropy", auditing.entropy),
        ("prob", "prob", auditing.probabilities),
    )
    def test_golden(self, name, feature):
        data = reference.load("mia")
        member, nonmember, target = (
            feature(data[f"prob_{split}"], data[f"labels_{split}"])
            for split in ("retain", "test", "forget")
        )
        found = auditing.svc_membership(member, nonmember, target)
        self.assertAlmostEqual(found, float(data[f"accuracy.{name}"]), delta=1e-4)

    @hypothesis.settings(deadline=None, max_examples=30)
    @hypothesis.given(
        seed=st.integers(0, 2**31 - 1), shift=st.floats(0, 3), width=st.integers(1, 3)
    )
    def test_bounds_and_whole_counts(self, seed, shift, width):
        rng = np.random.default_rng(seed)
        member, nonmember = rng.normal(size=(2, 20, width))
        target = rng.normal(size=(7, width))
        share = auditing.svc_membership(member + shift, nonmember, target)
        self.assertBetween(share, 0, 1)
        self.assertAlmostEqual(share * 7, round(share * 7))
        parts = [
            auditing.svc_membership(member + shift, nonmember, [x]) for x in target
        ]
        self.assertAlmostEqual(sum(parts) / 7, share)

    @parameterized.parameters(0, 1, 2)
    def test_order_does_not_matter(self, seed):
        rng = np.random.default_rng(seed)
        member, nonmember = rng.normal(2, 1, 60), rng.normal(-2, 1, 60)
        target = np.concatenate([np.linspace(-4, -1, 13), np.linspace(1, 4, 13)])
        share = auditing.svc_membership(member, nonmember, target)
        self.assertEqual(share, 0.5)
        shuffled = (rng.permutation(x) for x in (member, nonmember, target))
        self.assertEqual(auditing.svc_membership(*shuffled), share)

    def test_exchanging_the_sides_exchanges_the_answer(self):
        rng = np.random.default_rng(0)
        member, nonmember = rng.normal(2, 1, 60), rng.normal(-2, 1, 60)
        target = [-3.0, -2.0, -1.5, 2.0]
        self.assertEqual(auditing.svc_membership(member, nonmember, target), 0.75)
        self.assertEqual(auditing.svc_membership(nonmember, member, target), 0.25)

    def test_a_column_is_the_same_as_a_vector(self):
        rng = np.random.default_rng(0)
        parts = rng.normal(1, 1, 30), rng.normal(-1, 1, 30), rng.normal(0, 1, 30)
        self.assertEqual(
            auditing.svc_membership(*parts),
            auditing.svc_membership(*(x[:, None] for x in parts)),
        )

    def test_radial_kernel_finds_what_no_line_separates(self):
        member, nonmember = np.linspace(-0.5, 0.5, 20), np.array([-3.0, 3.0] * 10)
        share = auditing.svc_membership(member, nonmember, [-3.0, 3.0, 0.0, 0.1])
        self.assertEqual(share, 0.5)

    def test_features_without_any_difference(self):
        same = np.ones(50)
        self.assertIn(auditing.svc_membership(same, same, same), (0.0, 1.0))

    @parameterized.named_parameters(
        ("empty_member", [], [1.0], [1.0], r"member of shape \(0,\)"),
        ("empty_nonmember", [1.0], [], [1.0], r"nonmember of shape \(0,\)"),
        ("empty_target", [1.0], [0.0], [], r"target of shape \(0,\)"),
        ("nan", [1.0], [0.0], [np.nan], "target holds a NaN"),
        ("infinite", [np.inf], [0.0], [1.0], "member holds a NaN or an inf"),
        ("cube", np.ones((1, 1, 1)), [0.0], [1.0], r"member of shape \(1, 1, 1\)"),
        ("widths", np.ones((2, 3)), np.ones((2, 3)), [1.0], "of 3, 3 and 1 features"),
    )
    def test_bad_input(self, member, nonmember, target, message):
        with self.assertRaisesRegex(ValueError, message):
            auditing.svc_membership(member, nonmember, target)


class BalancedSubsetsTest(parameterized.TestCase):
    @hypothesis.given(
        seed=st.integers(0, 2**31 - 1),
        num_member=st.integers(1, 60),
        num_nonmember=st.integers(1, 60),
    )
    def test_laws(self, seed, num_member, num_nonmember):
        drawn = auditing.balanced_subsets(seed, num_member, num_nonmember)
        for indices, total in zip(drawn, (num_member, num_nonmember), strict=True):
            self.assertLen(indices, min(num_member, num_nonmember))
            self.assertTrue((np.diff(indices) > 0).all())
            self.assertTrue(((indices >= 0) & (indices < total)).all())
        again = auditing.balanced_subsets(seed, num_member, num_nonmember)
        np.testing.assert_array_equal(drawn, again)

    def test_seeds_draw_others_and_every_index_alike(self):
        counts = np.zeros(20)
        for seed in range(2000):
            counts[auditing.balanced_subsets(seed, 20, 5)[0]] += 1
        np.testing.assert_allclose(counts, 500, atol=100)

    @parameterized.parameters((1, 1), (7, 7), (500, 20))
    def test_size_has_a_limit(self, max_size, wanted):
        drawn = auditing.balanced_subsets(3, 30, 20, max_size=max_size)
        self.assertEqual([len(x) for x in drawn], [wanted, wanted])

    @parameterized.parameters((0, 5), (5, 0))
    def test_bad_input(self, num_member, num_nonmember):
        with self.assertRaisesRegex(ValueError, "at least one of each"):
            auditing.balanced_subsets(0, num_member, num_nonmember)


class ForgetEfficacyTest(parameterized.TestCase):
    def sets(self, forget=None):
        data = reference.load("mia")
        sets = [
            data[f"{kind}_{split}"]
            for split in ("retain", "test", "forget")
            for kind in ("prob", "labels")
        ]
        return sets if forget is None else sets[:4] + list(forget)

    @parameterized.named_parameters(
        ("confidence", {}, 3.125),
        ("prob", {"feature": auditing.probabilities}, 63.75),
    )
    def test_equal_sides_give_the_golden_numbers(self, options, wanted):
        found = auditing.forget_efficacy(*self.sets(), **options)
        self.assertAlmostEqual(found, wanted, delta=1e-2)

    def test_unequal_sides_are_balanced_by_the_seed(self):
        probs_r, labels_r, probs_t, labels_t, probs_f, labels_f = self.sets()
        few = slice(0, 200)
        found = auditing.forget_efficacy(
            probs_r, labels_r, probs_t[few], labels_t[few], probs_f, labels_f, seed=3
        )
        members, _ = auditing.balanced_subsets(3, 597, 200)
        by_hand = auditing.svc_membership(
            probs_r[members, labels_r[members]],
            probs_t[np.arange(200), labels_t[few]],
            probs_f[np.arange(160), labels_f],
        )
        self.assertAlmostEqual(found, 100 * by_hand)

    def test_what_looks_like_test_data_counts_as_unseen(self):
        rng = np.random.default_rng(0)

        def outputs(size, low, high):
            true = rng.uniform(low, high, size)
            return np.stack([true, 1 - true], 1), np.zeros(size, int)

        seen, unseen = outputs(60, 0.9, 1), outputs(40, 0.3, 0.6)
        for forget, wanted in (((0.35, 0.55), 100), ((0.92, 0.98), 0)):
            found = auditing.forget_efficacy(*seen, *unseen, *outputs(10, *forget))
            self.assertEqual(found, wanted)

    def test_diverged_model_is_named(self):
        broken = np.full((160, 10), np.nan), np.zeros(160, int)
        with self.assertRaisesRegex(ValueError, "target holds a NaN"):
            auditing.forget_efficacy(*self.sets(broken))

    def test_empty_forget_set(self):
        with self.assertRaisesRegex(ValueError, r"target of shape \(0,\)"):
            auditing.forget_efficacy(*self.sets((np.ones((0, 10)), np.zeros(0, int))))


class MeanForgetEfficacyTest(parameterized.TestCase):
    def by_hand(self, sets, seed, count, max_size=None):
        """Single draws of the published attack, in percent."""
        member, nonmember, target = (
            probs[np.arange(len(labels)), labels]
            for probs, labels in zip(sets[::2], sets[1::2], strict=True)
        )
        found = []
        for draw in range(count):
            members, nonmembers = auditing.balanced_subsets(
                (seed, draw), len(member), len(nonmember), max_size=max_size
            )
            share = auditing.svc_membership(
                member[members], nonmember[nonmembers], target
            )
            found.append(100 * share)
        return np.array(found)

    def sure(self, tests=80, seed=0):
        """Outputs of a model as sure of test images as of training images."""
        rng = np.random.default_rng(seed)

        def outputs(count, scale):
            p = 1 - scale * rng.exponential(size=count)
            return np.stack([p, 1 - p], 1), np.zeros(count, int)

        scales = (5 * tests, 1e-3), (tests, 1.1e-3), (24, 1e-3)
        return [array for pair in scales for array in outputs(*pair)]

    def golden(self, tests=None):
        data = reference.load("mia")
        return [
            data[f"{kind}_{split}"][: tests if split == "test" else None]
            for split in ("retain", "test", "forget")
            for kind in ("prob", "labels")
        ]

    @parameterized.parameters(0, 5)
    def test_is_the_mean_of_draws_with_its_standard_error(self, seed):
        found = auditing.mean_forget_efficacy(*self.golden(200), seed=seed)
        draws = self.by_hand(self.golden(200), seed, found.draws)
        self.assertAlmostEqual(found.mean, draws.mean())
        deviation = math.sqrt(((draws - draws.mean()) ** 2).sum() / (len(draws) - 1))
        self.assertAlmostEqual(found.error, deviation / math.sqrt(len(draws)))
        self.assertGreater(found.error, 0)

    def test_draws_until_the_error_is_small_and_no_longer(self):
        sets = self.golden(200)
        found = auditing.mean_forget_efficacy(*sets, max_error=0.25)
        self.assertBetween(found.draws, 11, 99)
        self.assertLessEqual(found.error, 0.25)
        before = self.by_hand(sets, 0, found.draws - 1)
        errors = [before[:n].std(ddof=1) / n**0.5 for n in range(10, found.draws)]
        self.assertGreater(min(errors), 0.25)

    def test_says_so_where_the_draws_do_not_agree(self):
        draws = self.by_hand(self.sure(), 0, 12)
        self.assertEqual((draws.min(), draws.max()), (0, 100))
        found = [
            auditing.mean_forget_efficacy(*self.sure(), seed=seed) for seed in range(8)
        ]
        for one in found:
            self.assertEqual(one.draws, 100)
            self.assertGreater(one.error, 1)
        # Seeds differ by as much as the errors say: a χ² of seven degrees.
        means = np.array([one.mean for one in found])
        errors = np.array([one.error for one in found])
        spread = (((means - means.mean()) / errors) ** 2).sum()
        self.assertBetween(spread, 0.99, 24.3)  # 0.5 % on either side

    def test_few_draws_that_agree_are_not_believed_where_the_next_may_not(self):
        # Twelve draws in a hundred call all unseen, the others next to nothing.
        sets = self.golden(100)
        draws = self.by_hand(sets, 2, 100)
        self.assertLess(draws[:10].max(), 20)
        self.assertGreater(draws.max(), 90)
        found = auditing.mean_forget_efficacy(*sets, seed=2)
        self.assertAlmostEqual(found.mean, draws.mean())
        self.assertGreater(found.error, 1)

    def test_one_draw_where_there_is_but_one(self):
        sets = self.golden()
        sets[0], sets[1] = (array[: len(sets[2])] for array in sets[:2])
        found = auditing.mean_forget_efficacy(*sets)
        self.assertEqual(found, (auditing.forget_efficacy(*sets), 0, 1))

    def test_few_members_draw_other_non_members(self):
        sets = self.golden()
        sets[0], sets[1] = sets[0][:60], sets[1][:60]
        found = auditing.mean_forget_efficacy(*sets)
        self.assertGreater(found.draws, 1)
        self.assertGreater(found.error, 0)

    def test_large_sets_are_drawn_from(self):
        found = auditing.mean_forget_efficacy(*self.golden(), max_size=50, max_draws=12)
        draws = self.by_hand(self.golden(), 0, 12, max_size=50)
        self.assertAlmostEqual(found.mean, draws.mean())

    @parameterized.named_parameters(*FEATURES)
    def test_any_feature(self, feature):
        found = auditing.mean_forget_efficacy(*self.golden(50), feature=feature)
        self.assertBetween(found.mean, 0, 100)

    def test_one_image_of_each(self):
        one = np.array([[0.9, 0.1]]), np.array([0])
        found = auditing.mean_forget_efficacy(*one, *one, *one)
        self.assertIn(found.mean, (0, 100))
        self.assertEqual(found[1:], (0, 1))

    @parameterized.named_parameters(
        ("error", {"max_error": -1}, ValueError, "max_error=-1"),
        ("error_nan", {"max_error": math.nan}, ValueError, "max_error=nan"),
        ("one_draw", {"min_draws": 1}, ValueError, "min_draws=1, wanted at least 2"),
        ("fewer", {"max_draws": 9}, ValueError, "max_draws=9, wanted at least 10"),
        ("half", {"max_draws": 20.5}, TypeError, "max_draws=20.5, wanted a whole"),
        ("size", {"max_size": 0}, ValueError, "max_size=0, wanted at least 1"),
    )
    def test_bad_options(self, options, error, message):
        with self.assertRaisesRegex(error, message):
            auditing.mean_forget_efficacy(*self.golden(), **options)


class MeanIntervalTest(parameterized.TestCase):
    # Quantiles of Student's t as every printed table has them.
    @parameterized.named_parameters(
        ("two", 2, 0.95, 12.706),
        ("three", 3, 0.95, 4.303),
        ("five", 5, 0.95, 2.776),
        ("ten", 10, 0.95, 2.262),
        ("five_at_90", 5, 0.90, 2.132),
        ("five_at_99", 5, 0.99, 4.604),
    )
    def test_table_of_quantiles(self, count, level, quantile):
        values = np.random.default_rng(0).normal(90, 2, count)
        center = sum(values) / count
        variance = sum((values - center) ** 2) / (count - 1)
        mean, half_width = auditing.mean_interval(values, level)
        self.assertAlmostEqual(mean, center)
        self.assertAlmostEqual(
            half_width / math.sqrt(variance / count), quantile, delta=6e-4
        )

    def test_covers_the_mean_as_often_as_it_says(self):
        draws = np.random.default_rng(0).normal(3, 2, (4000, 5))
        found = [auditing.mean_interval(row) for row in draws]
        covered = np.mean([abs(mean - 3) <= half for mean, half in found])
        self.assertAlmostEqual(covered, 0.95, delta=0.012)

    @hypothesis.given(
        values=st.lists(st.floats(-100, 100), min_size=2, max_size=10),
        shift=st.floats(-100, 100),
    )
    def test_shift_and_scale(self, values, shift):
        mean, half = auditing.mean_interval(values)
        self.assertGreaterEqual(half, 0)
        moved_mean, moved_half = auditing.mean_interval(-2 * np.array(values) + shift)
        self.assertAlmostEqual(moved_mean, -2 * mean + shift, places=6)
        self.assertAlmostEqual(moved_half, 2 * half, places=6)

    def test_equal_values_have_no_width(self):
        self.assertEqual(auditing.mean_interval([4.0, 4.0, 4.0]), (4.0, 0.0))

    def test_one_value_has_no_known_width(self):
        mean, half_width = auditing.mean_interval([4.0])
        self.assertEqual(mean, 4.0)
        self.assertTrue(math.isnan(half_width))

    def test_nan_is_not_hidden(self):
        self.assertTrue(np.isnan(auditing.mean_interval([1.0, np.nan, 2.0])).all())

    @parameterized.named_parameters(
        ("empty", [], 0.95, r"shape \(0,\), wanted"),
        ("matrix", [[1.0, 2.0]], 0.95, r"shape \(1, 2\), wanted"),
        ("level_one", [1.0, 2.0], 1.0, "level=1.0"),
        ("level_percent", [1.0, 2.0], 95, "level=95"),
        ("level_nan", [1.0, 2.0], math.nan, "level=nan"),
    )
    def test_bad_input(self, values, level, message):
        with self.assertRaisesRegex(ValueError, message):
            auditing.mean_interval(values, level)


if __name__ == "__main__":
    absltest.main()
