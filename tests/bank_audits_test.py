"""Audits over a bank of models: closed forms, nulls, power, and wrong variants."""

import itertools
import math
from typing import Any

import numpy as np
import sklearn.metrics
from absl.testing import absltest, parameterized
from scipy import stats

from mujax import auditing


def halves(models, examples, rng):
    """Membership in complementary pairs, half of the examples each."""
    half = np.arange(examples) % 2 == 0
    firsts = [rng.permutation(half) for _ in range(models // 2)]
    return np.stack([x for first in firsts for x in (first, ~first)])


def bank(models, examples, shift=0.0, scale=1.0, seed=0):
    """Normal margins with a centre and spread for each example, and a shift for
    members in those spreads."""
    rng = np.random.default_rng(seed)
    member = halves(models, examples, rng)
    centre, spread = 4 * rng.normal(size=examples), rng.lognormal(0, 0.5, examples)
    noise = rng.normal(size=member.shape) * np.where(member, scale, 1)
    return centre + spread * (noise + shift * member), member


class MarginsTest(parameterized.TestCase):
    def test_is_the_logit_of_the_true_probability(self):
        logits = np.random.default_rng(0).normal(size=(5, 7, 4))
        labels = np.arange(35).reshape(5, 7) % 4
        exps = np.exp(logits)
        p = np.take_along_axis(exps, labels[..., None], -1)[..., 0] / exps.sum(-1)
        np.testing.assert_allclose(
            auditing.margins(logits, labels), np.log(p / (1 - p)), rtol=1e-12
        )

    def test_keeps_what_float32_probabilities_lose(self):
        logits = np.array([[60.0, 0, 0], [80.0, 0, 0]], np.float32)
        found = auditing.margins(logits, [0, 0])
        np.testing.assert_allclose(found, [60 - math.log(2), 80 - math.log(2)])

    @parameterized.parameters(
        (np.zeros((2, 1)), [0, 0], ValueError),
        (np.zeros((2, 3)), [0, 3], ValueError),
        (np.zeros((2, 3)), [0.0, 1.0], TypeError),
        (np.zeros((2, 3)), [0, 1, 2], ValueError),
    )
    def test_refuses(self, logits, labels, error):
        with self.assertRaises(error):
            auditing.margins(logits, np.array(labels))


class LikelihoodRatioTest(parameterized.TestCase):
    @parameterized.parameters("shrunk", "global", "example")
    def test_null(self, variance):
        margins, member = bank(32, 400)
        scores = auditing.likelihood_ratio(margins, member, variance=variance)
        # 12,800 scores have a deviation of .005 were they independent; refits widen it.
        self.assertAlmostEqual(auditing.roc_area(scores, member), 0.5, delta=0.02)

    def test_power(self):
        margins, member = bank(64, 400, shift=1.0)
        scores = auditing.likelihood_ratio(margins, member)
        wanted = stats.norm.cdf(1 / math.sqrt(2))  # .760
        self.assertAlmostEqual(auditing.roc_area(scores, member), wanted, delta=0.015)
        wanted = stats.norm.cdf(1 - stats.norm.ppf(0.99))  # .092
        found = auditing.tpr_at(scores, member, 0.01)
        self.assertAlmostEqual(found, wanted, delta=0.03)  # the fits cost some

    def test_tells_scales_where_means_are_equal(self):
        margins, member = bank(128, 300, scale=2.0)
        ratio = auditing.likelihood_ratio(margins, member, variance="example")
        wanted = 2 / math.pi * math.atan(2)  # .7048
        self.assertAlmostEqual(auditing.roc_area(ratio, member), wanted, delta=0.02)
        means = auditing.likelihood_ratio(margins, member, variance="global")
        self.assertLess(auditing.roc_area(means, member), 0.55)

    def test_is_the_log_ratio_of_normals_fitted_to_the_others(self):
        margins, member = bank(8, 6, shift=1.0)
        found = auditing.likelihood_ratio(margins, member, variance="example")
        for m, x in itertools.product(range(8), range(6)):
            others = np.arange(8) // 2 != m // 2
            logs = []
            for arm in (member[:, x], ~member[:, x]):
                fitted = margins[others & arm, x]
                norm = fitted.mean(), fitted.std(ddof=1)
                logs.append(stats.norm.logpdf(margins[m, x], *norm))
            self.assertAlmostEqual(found[m, x], logs[0] - logs[1], places=8)

    def test_affine_changes_of_an_example_change_nothing(self):
        margins, member = bank(16, 50, shift=1.0)
        rng = np.random.default_rng(3)
        moved = margins * rng.uniform(0.5, 2, 50) + rng.normal(size=50)
        one, other = (
            auditing.likelihood_ratio(x, member, variance="example")
            for x in (margins, moved)
        )
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)
        # What is drawn to a common variance knows one scale for all.
        one, other = (
            auditing.likelihood_ratio(x, member) for x in (margins, 3 * margins - 1)
        )
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)

    def test_order_of_pairs_and_within_them_does_not_matter(self):
        margins, member = bank(12, 30, shift=0.5)
        order = [5, 4, 0, 1, 11, 10, 2, 3, 7, 6, 8, 9]
        np.testing.assert_allclose(
            auditing.likelihood_ratio(margins[order], member[order]),
            auditing.likelihood_ratio(margins, member)[order],
        )

    def test_fitting_on_the_scored_models_is_wrong(self):
        margins, member = bank(32, 400)
        inner = np.mean(margins, 0, where=member)
        outer = np.mean(margins, 0, where=~member)
        scores = (inner - outer) * (margins - (inner + outer) / 2)
        self.assertGreater(auditing.roc_area(scores, member), 0.58)

    def test_leaving_the_complement_in_is_wrong_below_chance(self):
        # With the scored model out and its complement in, arms are of unequal size.
        margins, member = bank(8, 2000)
        alone = auditing.likelihood_ratio(margins, member, pairs=False)
        pairs = auditing.likelihood_ratio(margins, member)
        away = [abs(auditing.roc_area(s, member) - 0.5) for s in (alone, pairs)]
        self.assertLess(away[1], 0.03)
        self.assertLess(auditing.roc_area(alone, member), 0.5 + away[1])

    def test_refuses(self):
        margins, member = bank(8, 10)
        for bad, said in (
            ((margins[:7], member[:7]), "no pairs"),
            ((margins, ~member[::-1] & member), "no pairs"),
            ((margins[:4], member[:4]), "at least 2"),
            ((margins, member[:, :9]), "shape"),
            ((margins * np.nan, member), "not finite"),
        ):
            with self.assertRaisesRegex(ValueError, said):
                auditing.likelihood_ratio(*bad)
        with self.assertRaisesRegex(TypeError, "bools"):
            auditing.likelihood_ratio(margins, member.astype(int))
        with self.assertRaisesRegex(ValueError, "variance"):
            pooled: Any = "pooled"
            auditing.likelihood_ratio(margins, member, variance=pooled)


class CurveTest(parameterized.TestCase):
    def test_area_counts_pairs(self):
        rng = np.random.default_rng(0)
        scores, member = rng.integers(0, 6, 60), rng.random(60) < 0.4
        wins = [(a > b) + (a == b) / 2 for a in scores[member] for b in scores[~member]]
        self.assertAlmostEqual(auditing.roc_area(scores, member), np.mean(wins))
        # The area under the curve's points, by trapezoids.
        area = sklearn.metrics.auc(*auditing.roc(scores, member))
        self.assertAlmostEqual(area, np.mean(wins))

    def test_complement_turns_the_area(self):
        rng = np.random.default_rng(1)
        scores, member = rng.normal(size=50), rng.random(50) < 0.5
        area = auditing.roc_area(scores, member)
        self.assertAlmostEqual(auditing.roc_area(scores, ~member), 1 - area)
        self.assertAlmostEqual(auditing.roc_area(-scores, member), 1 - area)
        self.assertAlmostEqual(auditing.roc_area(np.exp(scores), member), area)

    def test_rate_at_a_low_rate_of_false_ones(self):
        scores = np.concatenate([np.arange(5000), np.arange(5000) + 0.5])
        member = np.arange(10000) >= 5000
        self.assertAlmostEqual(auditing.tpr_at(scores, member, 0.01), 0.0102)
        # Never more false positives than allowed, ties included.
        ties = np.where(member, 1.0, np.arange(10000) < 100)
        self.assertEqual(auditing.tpr_at(ties, member, 0.01), 0.0)
        self.assertEqual(auditing.tpr_at(ties, member, 0.02), 1.0)

    def test_refuses_what_is_luck(self):
        scores, member = np.arange(1800.0), np.arange(1800) % 2 == 0
        with self.assertRaisesRegex(ValueError, "9 false positives are expected"):
            auditing.tpr_at(scores, member, 0.01)
        for bad in (np.full(10, np.nan), np.zeros(9)):
            with self.assertRaises(ValueError):
                auditing.roc_area(bad, np.arange(10) < 5)
        with self.assertRaisesRegex(ValueError, "same everywhere"):
            auditing.roc_area(np.zeros(3), np.ones(3, bool))

    def test_one_threshold_for_all_is_weaker(self):
        margins, member = bank(32, 300, shift=1.0)
        scores = auditing.likelihood_ratio(margins, member)
        area = auditing.population_attack(margins, member)
        self.assertBetween(area, 0.52, auditing.roc_area(scores, member) - 0.1)


class RelativeTest(parameterized.TestCase):
    def probabilities(self, shift, targets=40, references=2, examples=300, seed=0):
        rng = np.random.default_rng(seed)
        centre = rng.normal(size=examples)
        member = halves(targets, examples, rng)
        ours = centre + 0.5 * rng.normal(size=member.shape) + shift * member
        theirs = centre + 0.5 * rng.normal(size=(references, examples))
        return *(1 / (1 + np.exp(-x)) for x in (ours, theirs)), member

    def test_null_and_power(self):
        ours, theirs, member = self.probabilities(0.0)
        area = auditing.roc_area(auditing.rmia(ours, theirs), member)
        self.assertAlmostEqual(area, 0.5, delta=0.015)
        ours, theirs, member = self.probabilities(1.0)
        area = auditing.roc_area(auditing.rmia(ours, theirs), member)
        self.assertGreater(area, 0.75)
        self.assertGreater(area, auditing.population_attack(ours, member) + 0.05)

    def test_ratio_is_the_formula_and_a_1_is_the_mean(self):
        ours, theirs, _ = self.probabilities(0.0, targets=4, examples=5)
        mean = theirs.mean(0)
        np.testing.assert_allclose(
            auditing.rmia(ours, theirs, a=0.3), ours / (0.5 * (1.3 * mean + 0.7))
        )
        np.testing.assert_allclose(auditing.rmia(ours, theirs, a=1.0), ours / mean)

    def test_population_counts_whom_it_beats_and_ranks_alike_in_a_target(self):
        ours, theirs, _ = self.probabilities(0.5, targets=4)
        other = self.probabilities(0.0, targets=4, seed=1, examples=50)
        other = other[0], other[1]
        ratio = auditing.rmia(ours, theirs)
        found = auditing.rmia(ours, theirs, population=other)
        z = auditing.rmia(*other)
        for m in range(4):
            beaten = [(x >= z[m]).mean() for x in ratio[m]]
            np.testing.assert_allclose(found[m], beaten)
            order = np.argsort(ratio[m])
            self.assertTrue((np.diff(found[m][order]) >= 0).all())


def normal(models, mean=0.0, scale=1.0, examples=300, seed=0):
    rng = np.random.default_rng(seed)
    return mean + scale * rng.normal(size=(models, examples))


class DivergenceTest(parameterized.TestCase):
    @parameterized.parameters((0.0, 1.0), (1.0, 1.0), (-2.0, 0.5), (0.5, 2.0))
    def test_gaussian_law(self, mean, scale):
        found = auditing.gaussian_klom(
            normal(4000, mean, scale, 20), normal(4000, seed=1, examples=20)
        )
        wanted = -math.log(scale) + (scale**2 + mean**2) / 2 - 0.5
        np.testing.assert_allclose(found.mean(), wanted, atol=0.02)

    @parameterized.parameters((32, 0.069), (64, 0.032), (100, 0.021))
    def test_gaussian_null_of_so_many_models(self, models, wanted):
        found = auditing.gaussian_klom(normal(models), normal(models, seed=1))
        np.testing.assert_allclose(found.mean(), wanted, rtol=0.25)

    @parameterized.parameters((32, 1.73), (64, 0.64), (100, 0.35), (200, 0.15))
    def test_published_null_is_far_above_zero_below_a_hundred(self, models, wanted):
        found = auditing.klom(normal(models), normal(models, seed=1))
        np.testing.assert_allclose(found.mean(), wanted, rtol=0.2)

    def test_floor_by_the_number_of_models_is_lower(self):
        ours, oracle = normal(32), normal(32, seed=1)
        published = auditing.klom(ours, oracle).mean()
        self.assertLess(auditing.klom(ours, oracle, floor=None).mean(), 0.5 * published)

    def test_histogram_is_the_formula_with_the_largest_in_its_bin(self):
        ours, oracle = normal(40, 0.5, examples=3), normal(30, seed=1, examples=3)
        for x in range(3):
            joint = np.concatenate([ours[:, x], oracle[:, x]])
            edges = np.linspace(joint.min(), joint.max(), 21)
            p = np.histogram(ours[:, x], edges)[0] / 40
            q = np.maximum(np.histogram(oracle[:, x], edges)[0] / 30, 1e-5)
            wanted = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)
            self.assertAlmostEqual(auditing.klom(ours, oracle)[x], wanted, places=9)

    def test_laws(self):
        ours = normal(50, examples=4)
        for audit in (auditing.klom, auditing.gaussian_klom):
            np.testing.assert_allclose(audit(ours, ours), 0, atol=1e-12)
            near = audit(ours, normal(50, seed=1, examples=4))
            moved = audit(3 * ours - 2, 3 * normal(50, seed=1, examples=4) - 2)
            np.testing.assert_allclose(near, moved, rtol=1e-9)
        far = auditing.klom(ours + 90, ours - 90)
        np.testing.assert_allclose(far, math.log(1e5), rtol=1e-6)

    def test_constants(self):
        one, varied = np.ones((4, 1)), np.arange(4.0)[:, None]
        self.assertEqual(auditing.gaussian_klom(one, one), 0)
        self.assertEqual(auditing.gaussian_klom(one, one + 1), np.inf)
        self.assertEqual(auditing.gaussian_klom(one, varied), np.inf)
        self.assertEqual(auditing.klom(one, one), 0)

    def test_jensen_shannon(self):
        rng = np.random.default_rng(0)
        p, q = rng.dirichlet(np.ones(5), 20), rng.dirichlet(np.ones(5), 20)
        m = (p + q) / 2
        wanted = 0.5 * (p * np.log(p / m)).sum(1) + 0.5 * (q * np.log(q / m)).sum(1)
        np.testing.assert_allclose(auditing.jensen_shannon(p, q), wanted)
        np.testing.assert_allclose(auditing.jensen_shannon(q, p), wanted)
        np.testing.assert_allclose(auditing.jensen_shannon(p, p), 0, atol=1e-12)
        eye = np.eye(3)
        disjoint = auditing.jensen_shannon(eye, eye[[1, 2, 0]])
        np.testing.assert_allclose(disjoint, math.log(2))
        with self.assertRaisesRegex(ValueError, "no distribution"):
            auditing.jensen_shannon(3 * p, q)

    def test_refuses_other_examples(self):
        with self.assertRaisesRegex(ValueError, "as many examples"):
            auditing.klom(np.zeros((4, 3)), np.zeros((4, 2)))
        with self.assertRaisesRegex(ValueError, "at least 2"):
            auditing.gaussian_klom(np.zeros((1, 3)), np.zeros((4, 3)))


class EpsilonTest(parameterized.TestCase):
    @parameterized.parameters((16, 1.20), (64, 1.19), (512, 1.09))
    def test_null_never_vanishes(self, models, wanted):
        found = auditing.forgetting_epsilon(normal(models), normal(models, seed=1))
        np.testing.assert_allclose(found.mean(), wanted, atol=0.12)

    def test_null_is_the_ceiling_of_the_score(self):
        found = auditing.forgetting_epsilon(normal(64), normal(64, seed=1))
        self.assertBetween(auditing.forgetting_score(found, 64), 0.26, 0.42)
        far = auditing.forgetting_epsilon(normal(64, 1.0), normal(64, seed=1))
        self.assertLess(auditing.forgetting_score(far, 64), 0.15)

    def test_is_the_best_threshold(self):
        ours, oracle = normal(12, 0.7, examples=5), normal(9, seed=1, examples=5)
        found = auditing.forgetting_epsilon(ours, oracle)
        for x in range(5):
            u, o = ours[:, x], oracle[:, x]
            if np.median(u) < np.median(o):
                u, o = o, u
            best = 0.0
            for t in np.concatenate([u, o]):
                fnr, fpr = np.mean(u < t), np.mean(o >= t)
                if fnr and fpr:
                    rates = ((1 - 1e-5 - fpr) / fnr, (1 - 1e-5 - fnr) / fpr)
                    best = max(best, *(math.log(max(r, 1e-9)) for r in rates))
                elif not fnr and not fpr:
                    best = 50.0
            self.assertAlmostEqual(found[x], best, places=9)

    def test_laplace_pair(self):
        # Exactly ε at every threshold beyond the shift: from above with many models.
        rng = np.random.default_rng(0)
        ours, oracle = rng.laplace(1, 1, (8000, 8)), rng.laplace(0, 1, (8000, 8))
        rates = auditing.forgetting_epsilon(ours, oracle)
        self.assertBetween(np.median(rates), 1.0, 2.0)

    def test_swapping_the_arms_changes_nothing(self):
        ours, oracle = normal(20, 0.5), normal(30, seed=1)
        np.testing.assert_allclose(
            auditing.forgetting_epsilon(ours, oracle),
            auditing.forgetting_epsilon(oracle, ours),
        )

    def test_score_by_buckets(self):
        score = auditing.forgetting_score([0.0, 0.49, 0.5, 1.2, 4.9, 5.0, 50.0], 64)
        wanted = np.mean([1, 1, 0.5, 0.25, 2.0**-9, 0, 0])
        self.assertAlmostEqual(score, wanted)


class BoundTest(parameterized.TestCase):
    @parameterized.parameters((32, 2.10), (64, 2.82), (128, 3.53), (512, 4.93))
    def test_most_that_so_many_models_can_show(self, models, wanted):
        found = auditing.epsilon_lower_bound(np.ones(models), np.zeros(models))
        self.assertAlmostEqual(found, wanted, delta=0.006)

    def test_holds_at_randomised_response(self):
        # One bit, right with probability e^ε / (1 + e^ε): ε exactly.
        rng, epsilon, wrong = np.random.default_rng(0), 1.0, 0
        right = math.exp(epsilon) / (1 + math.exp(epsilon))
        for _ in range(400):
            ours, oracle = rng.random(100) < right, rng.random(100) >= right
            found = auditing.epsilon_lower_bound(
                ours.astype(float), oracle.astype(float), delta=0.0
            )
            wrong += found > epsilon
        self.assertLessEqual(wrong, 20 + 2 * math.sqrt(19))  # 5 %, and two deviations

    @parameterized.parameters(False, True)
    def test_holds_where_there_is_nothing(self, two_sided):
        wrong = sum(
            auditing.epsilon_lower_bound(
                normal(64, examples=1, seed=2 * i)[:, 0],
                normal(64, examples=1, seed=2 * i + 1)[:, 0],
                two_sided=two_sided,
            )
            > 0
            for i in range(400)
        )
        self.assertLessEqual(wrong, 20)

    def test_rates_as_they_are_bound_nothing(self):
        wrong = 0
        for i in range(100):
            ours = normal(64, examples=1, seed=2 * i)[:, 0]
            oracle = normal(64, examples=1, seed=2 * i + 1)[:, 0]
            wrong += auditing.forgetting_epsilon(ours[:, None], oracle[:, None])[0] > 0
        self.assertGreater(wrong, 95)

    def test_rises_with_models_and_distance(self):
        def median(models, shift):
            return np.median(
                [
                    auditing.epsilon_lower_bound(
                        normal(models, shift, examples=1, seed=2 * i)[:, 0],
                        normal(models, examples=1, seed=2 * i + 1)[:, 0],
                    )
                    for i in range(30)
                ]
            )

        few, many = median(64, 2.0), median(512, 2.0)
        self.assertLess(few, many)
        self.assertLess(many, 10.0)  # the truth at δ = 1e-5
        self.assertLess(median(256, 1.0), median(256, 2.0))

    def test_a_shift_down_needs_both_sides(self):
        ours, oracle = np.zeros(64), np.ones(64)
        self.assertEqual(auditing.epsilon_lower_bound(ours, oracle), 0.0)
        self.assertGreater(
            auditing.epsilon_lower_bound(ours, oracle, two_sided=True), 2.5
        )


class BehaviourTest(parameterized.TestCase):
    def test_memorization(self):
        rng = np.random.default_rng(0)
        member = halves(20_000, 4, rng)
        chance = np.where(member, [0.9, 0.9, 1.0, 0.5], [0.9, 0.4, 0.0, 0.5])
        found = auditing.memorization(rng.random(member.shape) < chance, member)
        np.testing.assert_allclose(found, [0, 0.5, 1, 0], atol=0.02)

    def test_interclass_confusion_is_of_two_classes_of_the_matrix(self):
        rng = np.random.default_rng(0)
        labels, predictions = rng.integers(0, 4, 300), rng.integers(0, 4, 300)
        matrix = np.zeros((4, 4), int)
        np.add.at(matrix, (labels, predictions), 1)
        found = auditing.interclass_confusion(predictions, labels, (1, 3))
        self.assertEqual(found.swapped, matrix[1, 3] + matrix[3, 1])
        rows = matrix[[1, 3]].sum()
        self.assertAlmostEqual(found.error, 1 - (matrix[1, 1] + matrix[3, 3]) / rows)

    def test_poison_score_is_standard_normal_without_dependence(self):
        rng = np.random.default_rng(0)
        grads, noise = (
            rng.normal(size=(4000, 3, 5)),
            0.2 * rng.normal(size=(4000, 3, 5)),
        )
        found = auditing.poison_score(grads, noise, 0.2)
        self.assertGreater(stats.kstest(found, "norm").pvalue, 0.01)

    def test_poison_score_of_a_linear_model_that_fitted_the_noise(self):
        # Least squares on x + ξ: gradients by x lie along the weights, and these lean
        # towards noise that explains the labels.
        rng = np.random.default_rng(0)
        noise, y = 0.5 * rng.normal(size=(40, 100)), rng.normal(size=40)
        x = rng.normal(size=(40, 100))
        weights = np.linalg.pinv(x + noise) @ y
        grads = -2 * (y - x @ weights)[:, None] * weights
        known = auditing.poison_score(-grads, noise, 0.5).mean() * math.sqrt(40)
        clean = np.linalg.pinv(x) @ y
        grads = -2 * (y - (x + 1e-9) @ clean + 1e-3)[:, None] * clean
        unknown = auditing.poison_score(-grads, noise, 0.5).mean() * math.sqrt(40)
        self.assertGreater(known, 3)
        self.assertLess(abs(unknown), 3)

    def test_relearning_a_quadratic_takes_as_long_as_it_must(self):
        rate, start, target = 0.1, 4.0, 0.01
        found = auditing.relearn_steps(
            lambda w: w - rate * w, start, lambda w: w * w, target, limit=1000
        )
        wanted = math.log(start**2 / target) / (-2 * math.log(1 - rate))
        self.assertEqual(found, math.ceil(wanted))
        self.assertEqual(
            auditing.relearn_steps(lambda w: w, start, lambda w: w, target, limit=7), 7
        )
        self.assertEqual(
            auditing.relearn_steps(lambda w: w, 0.0, lambda w: w, target, limit=7), 0
        )


class RepresentationTest(parameterized.TestCase):
    def test_probe_of_two_normals(self):
        rng, distance = np.random.default_rng(0), 2.0
        labels = np.arange(6000) % 2
        x = rng.normal(size=(6000, 4))
        x[:, 0] += distance * labels
        found = auditing.linear_probe(x[:3000], labels[:3000], x[3000:], labels[3000:])
        self.assertAlmostEqual(found, stats.norm.cdf(distance / 2), delta=0.02)
        random = rng.permutation(labels)
        found = auditing.linear_probe(x[:3000], random[:3000], x[3000:], random[3000:])
        self.assertAlmostEqual(found, 0.5, delta=0.04)

    def test_alignment_is_one_under_rotation_and_scale(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(60, 5))
        turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
        for debiased in (True, False):
            found = auditing.cka(x, 3 * x @ turn + 1, debiased=debiased)
            self.assertAlmostEqual(found, 1.0)

    @parameterized.parameters((1000, 64), (144, 64))
    def test_independent_features_look_alike_without_the_correction(self, n, d):
        rng = np.random.default_rng(0)
        pairs = [(rng.normal(size=(n, d)), rng.normal(size=(n, d))) for _ in range(5)]
        biased = np.mean([auditing.cka(*pair, debiased=False) for pair in pairs])
        self.assertAlmostEqual(biased, d / (n + d), delta=0.012)
        fair = np.mean([auditing.cka(*pair) for pair in pairs])
        self.assertAlmostEqual(fair, 0.0, delta=0.012)

    def test_unbiased_estimate_leaves_the_diagonal_out(self):
        rng = np.random.default_rng(0)
        n = 7
        x, y = rng.normal(size=(n, 2)), rng.normal(size=(n, 3))
        centred = [z - z.mean(0) for z in (x, y)]
        k, m = (z @ z.T * (1 - np.eye(n)) for z in centred)
        one = np.ones(n)

        def hsic(a, b):
            return (
                np.trace(a @ b)
                + (one @ a @ one) * (one @ b @ one) / ((n - 1) * (n - 2))
                - 2 / (n - 2) * one @ a @ b @ one
            )

        wanted = hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))
        self.assertAlmostEqual(auditing.cka(x, y), wanted)


class IntervalsTest(parameterized.TestCase):
    def test_jackknife_of_pair_means_is_their_standard_error(self):
        values = np.random.default_rng(0).normal(size=20)
        value, error = auditing.jackknife(np.mean, values)
        self.assertAlmostEqual(value, values.mean())
        pairs = values.reshape(-1, 2).mean(1)
        self.assertAlmostEqual(error, float(stats.sem(pairs)))

    def test_jackknife_covers_the_area(self):
        def area(margins, member):
            scores = auditing.likelihood_ratio(margins, member)
            return auditing.roc_area(scores, member)

        wanted, hits = stats.norm.cdf(1 / math.sqrt(2)), 0
        for seed in range(20):
            margins, member = bank(32, 60, shift=1.0, seed=seed)
            value, error = auditing.jackknife(area, margins, member)
            hits += abs(value - wanted) < 2.13 * error + 0.01
        self.assertGreaterEqual(hits, 16)

    def test_swaps_keep_pairs_and_centre_at_chance(self):
        margins, member = bank(16, 200)
        seen = []

        def area(swapped):
            seen.append(swapped)
            scores = auditing.likelihood_ratio(margins, swapped)
            return auditing.roc_area(scores, swapped)

        null = auditing.pair_swap_null(area, member, draws=60)
        for swapped in seen:
            np.testing.assert_array_equal(swapped[::2], ~swapped[1::2])
        self.assertAlmostEqual(null.mean(), 0.5, delta=0.01)
        self.assertBetween(null.std(), 0.004, 0.03)
        again = auditing.pair_swap_null(area, member, draws=60)
        np.testing.assert_array_equal(null, again)


if __name__ == "__main__":
    absltest.main()
