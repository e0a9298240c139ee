"""Difficulty scores against closed forms, and the laws of the stages."""

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from mujax import curriculum
from tests import reference

PROBS = np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.25, 0.25, 0.5]], np.float32)
LABELS = np.array([0, 1, 0])
SCORES = (
    curriculum.confidence_difficulty,
    curriculum.el2n,
    curriculum.loss_difficulty,
)


def linear_loss(params, batch):
    """Cross-entropy of a linear classifier, which has a closed-form gradient."""
    x, y = batch
    logits = x @ params["kernel"] + params["bias"]
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(y)), y])


def linear_problem(num_examples=13):
    rng = np.random.default_rng(0)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=3), jnp.float32),
    }
    x = rng.normal(size=(num_examples, 4)).astype(np.float32)
    return params, (x, rng.integers(0, 3, num_examples))


def linear_gradients(params, examples):
    """The same in NumPy: p − onehot for the bias, times x for the kernel."""
    x, y = examples
    logits = x @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = probs - np.eye(3)[y]
    kernels = (x[:, :, None] * error[:, None, :]).reshape(len(x), -1)
    return np.concatenate([kernels, error], axis=1)


class OutputScoresTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("confidence", curriculum.confidence_difficulty, [0.3, 0.0, 0.75]),
        ("el2n", curriculum.el2n, [0.14**0.5, 0.0, 0.875**0.5]),
        ("loss", curriculum.loss_difficulty, [0.3566749, 0.0, 1.3862944]),
    )
    def test_closed_form(self, score, wanted):
        for fn in (score, jax.jit(score)):
            found = fn(PROBS, LABELS)
            chex.assert_type(found, jnp.float32)
            np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)

    @parameterized.named_parameters(
        ("confidence", curriculum.confidence_difficulty, 1.0),
        ("el2n", curriculum.el2n, 2**0.5),
        ("loss", curriculum.loss_difficulty, 87.33655),
    )
    def test_worst_row_is_finite(self, score, wanted):
        np.testing.assert_allclose(
            score(np.array([[0.0, 1.0]]), np.array([0])), [wanted], rtol=1e-6
        )

    @parameterized.named_parameters(
        ("confidence", curriculum.confidence_difficulty),
        ("el2n", curriculum.el2n),
        ("loss", curriculum.loss_difficulty),
    )
    def test_laws(self, score):
        rng = np.random.default_rng(0)
        probs = rng.dirichlet(np.full(5, 0.3), size=40).astype(np.float32)
        true = rng.integers(0, 5, 40)
        found = np.asarray(score(probs, true))
        with self.subTest("an example's score ignores the others' order"):
            order = rng.permutation(40)
            np.testing.assert_array_equal(
                score(probs[order], true[order]), found[order]
            )
        with self.subTest("classes can be renamed"):
            names = rng.permutation(5)
            renamed = score(probs[:, names], np.argsort(names)[true])
            np.testing.assert_allclose(renamed, found, rtol=1e-5)
        with self.subTest("float32 also from bfloat16"):
            chex.assert_type(score(jnp.asarray(probs, jnp.bfloat16), true), jnp.float32)
        with self.subTest("vmap over models"):
            both = jax.vmap(score, (0, None))(jnp.stack([probs, probs[::-1]]), true)
            np.testing.assert_allclose(both[0], found, rtol=1e-6)
        with (
            self.subTest("shapes"),
            self.assertRaisesRegex(ValueError, r"\(N, K\) and"),
        ):
            score(probs, true[:-1])


class LabelsTest(parameterized.TestCase):
    @parameterized.product(score=SCORES, wrong=[255, -1, 3], dtype=["int32", "uint8"])
    def test_a_label_that_is_no_class_has_no_score(self, score, wrong, dtype):
        probs = np.full((3, 3), 1 / 3, np.float32)
        labels = np.array([0, wrong % 256 if dtype == "uint8" else wrong, 2], dtype)
        with self.assertRaisesRegex(ValueError, f"label {labels[1]} for 3 classes"):
            score(probs, labels)
        found = jax.jit(score)(probs, labels)
        np.testing.assert_array_equal(np.isnan(found), [False, True, False])

    @parameterized.product(score=SCORES, dtype=["float32", "bool"])
    def test_labels_are_integers(self, score, dtype):
        with self.assertRaisesRegex(TypeError, f"{dtype} labels, wanted integers"):
            score(np.full((1, 2), 0.5), np.zeros(1, dtype))

    @parameterized.parameters(1.5, 2.0, "2")
    def test_numbers_of_things_are_whole(self, number):
        with self.assertRaisesRegex(TypeError, "num_stages=.*wanted a whole number"):
            curriculum.assign_stages(jnp.arange(4.0), number)
        with self.assertRaisesRegex(TypeError, "num_examples=.*wanted a whole number"):
            curriculum.random_difficulty(jax.random.key(0), number)
        with self.assertRaisesRegex(TypeError, "batch_size=.*wanted a whole number"):
            curriculum.gradient_norm(
                lambda w, x: jnp.mean(x @ w),
                jnp.zeros(2),
                jnp.ones((2, 2)),
                batch_size=number,
            )

    @parameterized.parameters(np.int8, jnp.int32)
    def test_a_number_may_be_of_any_library(self, kind):
        found = curriculum.assign_stages(jnp.arange(4.0), kind(2))
        np.testing.assert_array_equal(found, [0, 0, 1, 1])


class GradientScoresTest(parameterized.TestCase):
    @parameterized.parameters(1, 4, 100)
    def test_norm_closed_form(self, batch_size):
        params, examples = linear_problem()
        wanted = np.linalg.norm(linear_gradients(params, examples), axis=1)
        found = curriculum.gradient_norm(
            linear_loss, params, examples, batch_size=batch_size
        )
        chex.assert_type(found, jnp.float32)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)

    @parameterized.parameters(1, 4, 100)
    def test_alignment_closed_form(self, batch_size):
        params, examples = linear_problem()
        gradients = linear_gradients(params, examples)
        retain_params, retain = linear_problem(50)
        mean = linear_gradients(params, retain).mean(0)
        wanted = gradients @ mean
        wanted /= np.linalg.norm(gradients, axis=1) * np.linalg.norm(mean)
        found = curriculum.gradient_alignment(
            linear_loss,
            params,
            examples,
            jax.grad(linear_loss)(retain_params, retain),
            batch_size=batch_size,
        )
        chex.assert_type(found, jnp.float32)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)

    def test_golden_network_agrees_with_single_gradients(self):
        data = reference.load("model")
        params = reference.tree(data, "param.")
        x, y = reference.images(data, "forget")[:8], data["forget_labels"][:8]
        gradient = jax.jit(jax.grad(reference.loss))
        retain = gradient(params, reference.batches(data, "retain")[0])

        def flat(tree):
            leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(tree)]
            return np.concatenate(leaves).astype(np.float64)

        single = np.array(
            [flat(gradient(params, (x[i : i + 1], y[i : i + 1]))) for i in range(8)]
        )
        norms = np.linalg.norm(single, axis=1)
        mean = flat(retain)
        np.testing.assert_allclose(
            curriculum.gradient_norm(reference.loss, params, (x, y), batch_size=4),
            norms,
            rtol=1e-4,
        )
        np.testing.assert_allclose(
            curriculum.gradient_alignment(
                reference.loss, params, (x, y), retain, batch_size=4
            ),
            single @ mean / norms / np.linalg.norm(mean),
            atol=1e-4,
        )

    def test_each_example_comes_as_a_batch_of_one(self):
        seen = []

        def loss_fn(params, batch):
            seen.append(jax.tree.map(jnp.shape, batch))
            return jnp.sum(params * batch["x"])

        examples = {"x": jnp.ones((5, 2)), "y": jnp.zeros(5, jnp.int32)}
        curriculum.gradient_norm(loss_fn, jnp.ones(2), examples)
        self.assertEqual(seen[0], {"x": (1, 2), "y": (1,)})

    def test_zero_tiny_huge_and_broken_gradients(self):
        def loss_fn(params, batch):
            return jnp.sum(params["a"] * batch[0, :2]) + params["b"] * batch[0, 2]

        params = {"a": jnp.ones(2), "b": jnp.float32(1)}
        retain = {"a": jnp.array([0.0, 1e-30]), "b": jnp.float32(1e-30)}
        examples = jnp.array(
            [
                [0, 0, 0],
                [0, 3e-30, 4e-30],
                [0, -3e30, -4e30],
                [1, 0, 0],
                [0, jnp.inf, 1],
            ]
        )
        norm = curriculum.gradient_norm(loss_fn, params, examples)
        np.testing.assert_allclose(norm, [0, 5e-30, 5e30, 1, np.nan], rtol=1e-6)
        cosine = curriculum.gradient_alignment(loss_fn, params, examples, retain)
        level = 7 / 5 / 2**0.5
        np.testing.assert_allclose(cosine, [0, level, -level, 0, np.nan], rtol=1e-6)
        none = jax.tree.map(jnp.zeros_like, retain)
        cosine = curriculum.gradient_alignment(loss_fn, params, examples[:4], none)
        np.testing.assert_array_equal(cosine, np.zeros(4))

    def test_own_mean_gradient_is_aligned(self):
        params, examples = linear_problem(1)
        gradient = jax.grad(linear_loss)(params, examples)
        for sign in (1, -1):
            retain = jax.tree.map(lambda g: sign * g, gradient)
            np.testing.assert_allclose(
                curriculum.gradient_alignment(linear_loss, params, examples, retain),
                [sign],
                rtol=1e-6,
            )

    def test_bfloat16_parameters_give_float32(self):
        params, examples = linear_problem()
        low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
        found = curriculum.gradient_norm(linear_loss, low, examples)
        chex.assert_type(found, jnp.float32)
        wanted = np.linalg.norm(linear_gradients(params, examples), axis=1)
        np.testing.assert_allclose(found, wanted, rtol=0.1)

    def test_jit_and_vmap_over_models(self):
        params, examples = linear_problem()
        several = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)

        @jax.jit
        @jax.vmap
        def norms(params):
            return curriculum.gradient_norm(linear_loss, params, examples, batch_size=5)

        wanted = [
            np.linalg.norm(
                linear_gradients(jax.tree.map(lambda p: p[i], several), examples),
                axis=1,
            )
            for i in range(2)
        ]
        np.testing.assert_allclose(norms(several), wanted, rtol=1e-5)

    def test_memory_follows_the_batch_size_not_the_examples(self):
        width, count = 1000, 64

        def loss_fn(params, batch):
            return jnp.sum(jnp.tanh(batch[..., None] * params))

        def temporary_bytes(batch_size):
            lowered = jax.jit(
                lambda params, x: curriculum.gradient_norm(
                    loss_fn, params, x, batch_size=batch_size
                )
            ).lower(jnp.ones((width, 4)), jnp.ones((count, width)))
            analysis = lowered.compile().memory_analysis()
            assert analysis is not None
            return analysis.temp_size_in_bytes

        gradient = width * 4 * 4
        self.assertLess(temporary_bytes(2), 0.25 * count * gradient)

    @parameterized.named_parameters(
        ("no_leaf", (), {}, "at least one example"),
        ("no_example", jnp.ones((0, 2)), {}, "at least one example"),
        ("scalar", jnp.float32(1), {}, "at least one example"),
        (
            "unequal",
            {"x": jnp.ones((3, 2)), "y": jnp.ones(2)},
            {},
            r"examples\['y'\] has shape \(2,\), examples\['x'\] has \(3, 2\)",
        ),
        ("batch_size", jnp.ones((3, 2)), {"batch_size": 0}, "batch_size=0"),
    )
    def test_bad_input(self, examples, options, message):
        def loss_fn(params, batch):
            return jnp.sum(params * batch)

        with self.assertRaisesRegex(ValueError, message):
            curriculum.gradient_norm(loss_fn, jnp.ones(2), examples, **options)
        with self.assertRaisesRegex(ValueError, message):
            curriculum.gradient_alignment(
                loss_fn, jnp.ones(2), examples, jnp.ones(2), **options
            )

    def test_wrong_retain_gradient_is_named(self):
        params, examples = linear_problem()
        with self.assertRaisesRegex(ValueError, r"retain_grads\['bias'\] has shape"):
            curriculum.gradient_alignment(
                linear_loss, params, examples, {**params, "bias": jnp.ones(2)}
            )


class RandomDifficultyTest(parameterized.TestCase):
    def test_is_a_permutation_that_follows_the_key(self):
        first = curriculum.random_difficulty(jax.random.key(0), 50)
        chex.assert_type(first, jnp.float32)
        np.testing.assert_array_equal(np.sort(first), np.arange(50))
        again = curriculum.random_difficulty(jax.random.key(0), 50)
        np.testing.assert_array_equal(first, again)
        other = curriculum.random_difficulty(jax.random.key(1), 50)
        self.assertFalse(np.array_equal(first, other))

    def test_each_example_is_hard_as_often(self):
        keys = jax.random.split(jax.random.key(0), 2000)
        drawn = jax.vmap(lambda key: curriculum.random_difficulty(key, 4))(keys)
        np.testing.assert_allclose(drawn.mean(0), np.full(4, 1.5), atol=0.12)

    @parameterized.parameters(0, 2**24)
    def test_bad_count(self, count):
        with self.assertRaisesRegex(ValueError, f"num_examples={count}"):
            curriculum.random_difficulty(jax.random.key(0), count)


def stages_by_definition(difficulty, num_stages):
    """Sorts (score, index) pairs and deals them out, with NaN after every number."""
    count = len(difficulty)
    ranked = sorted(
        range(count), key=lambda i: (np.isnan(difficulty[i]), difficulty[i])
    )
    stages = np.empty(count, int)
    for rank, index in enumerate(ranked):
        stages[index] = rank * num_stages // count
    return stages


class StagesTest(parameterized.TestCase):
    @hypothesis.settings(deadline=None, max_examples=60)
    @hypothesis.given(data=st.data())
    def test_laws(self, data):
        # A fixed length compiles once; few distinct values make many ties.
        values = st.one_of(
            st.sampled_from([0.0, -0.0, 1.0, -2.5, np.inf, -np.inf]),
            st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
        )
        difficulty = data.draw(hnp.arrays(np.float32, 17, elements=values))
        num_stages = data.draw(st.integers(1, 17))
        stages = np.asarray(curriculum.assign_stages(difficulty, num_stages))
        self.assertEqual(stages.dtype, np.int32)
        np.testing.assert_array_equal(
            stages, stages_by_definition(difficulty, num_stages)
        )
        sizes = np.bincount(stages, minlength=num_stages)
        self.assertLen(sizes, num_stages)
        self.assertLessEqual(sizes.max() - sizes.min(), 1)
        for easier, harder in zip(
            range(num_stages), range(1, num_stages), strict=False
        ):
            self.assertLessEqual(
                difficulty[stages == easier].max(), difficulty[stages == harder].min()
            )

    def test_ties_go_to_the_lower_index(self):
        stages = curriculum.assign_stages(jnp.array([1.0, 0.0, 1.0, 1.0, -0.0]), 5)
        np.testing.assert_array_equal(stages, [2, 0, 3, 4, 1])

    def test_nan_is_the_hardest(self):
        stages = curriculum.assign_stages(jnp.array([jnp.nan, jnp.inf, 0.0]), 3)
        np.testing.assert_array_equal(stages, [2, 1, 0])

    def test_monotone_change_of_score_keeps_the_stages(self):
        difficulty = jax.random.normal(jax.random.key(0), (30,))
        np.testing.assert_array_equal(
            curriculum.assign_stages(difficulty, 4),
            curriculum.assign_stages(jnp.exp(difficulty) * 3, 4),
        )

    def test_permuting_distinct_scores_permutes_the_stages(self):
        difficulty = curriculum.random_difficulty(jax.random.key(0), 31)
        order = np.random.default_rng(0).permutation(31)
        np.testing.assert_array_equal(
            curriculum.assign_stages(difficulty[order], 4),
            curriculum.assign_stages(difficulty, 4)[order],
        )

    def test_many_examples_and_stages_do_not_overflow(self):
        count = 100_000
        stages = curriculum.assign_stages(jnp.arange(count)[::-1], count)
        np.testing.assert_array_equal(stages, np.arange(count)[::-1])

    def test_jit_and_vmap_are_exact(self):
        difficulty = jax.random.randint(jax.random.key(0), (6, 20), 0, 5)
        assign = jax.jit(curriculum.assign_stages, static_argnums=1)
        several = jax.vmap(lambda d: assign(d, 3))(difficulty)
        for row, stages in zip(np.asarray(difficulty), several, strict=True):
            np.testing.assert_array_equal(stages, stages_by_definition(row, 3))

    @parameterized.named_parameters(
        ("default", None, (0, 1, 2)),
        ("easy_first", (0, 1, 2), (0, 1, 2)),
        ("hard_first", (2, 1, 0), (2, 1, 0)),
        ("mixed", np.array([1, 2, 0]), (1, 2, 0)),
    )
    def test_indices_follow_the_order(self, order, wanted):
        difficulty = jax.random.normal(jax.random.key(0), (11,))
        stages = np.asarray(curriculum.assign_stages(difficulty, 3))
        indices = curriculum.stage_indices(difficulty, 3, order=order)
        self.assertLen(indices, 3)
        for found, stage in zip(indices, wanted, strict=True):
            self.assertIsInstance(found, np.ndarray)
            np.testing.assert_array_equal(found, np.nonzero(stages == stage)[0])
        np.testing.assert_array_equal(np.sort(np.concatenate(indices)), np.arange(11))

    @parameterized.named_parameters(
        ("no_stage", np.ones(4), 0, "num_stages=0, wanted from 1 to the 4"),
        ("more_than_examples", np.ones(4), 5, "num_stages=5"),
        ("no_example", np.ones(0), 1, "from 1 to the 0"),
        ("matrix", np.ones((2, 3)), 2, r"shape \(2, 3\), wanted \(N,\)"),
    )
    def test_bad_stages(self, difficulty, num_stages, message):
        for fn in (curriculum.assign_stages, curriculum.stage_indices):
            with self.assertRaisesRegex(ValueError, message):
                fn(difficulty, num_stages)

    @parameterized.parameters(((0, 1),), ((0, 1, 1),), ((1, 2, 3),), ((0, 1, 2, 3),))
    def test_bad_order(self, order):
        with self.assertRaisesRegex(ValueError, "each of 0 to 2 exactly once"):
            curriculum.stage_indices(np.ones(5), 3, order=order)


if __name__ == "__main__":
    absltest.main()
