"""Scores and masks: golden vectors, exact selection against a stable sort."""

import math
import re
from typing import Any
from unittest import mock

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.tree_util import Partial

from mujax import saliency
from tests import reference

TREES = {
    "flat": [(12,)],
    "mixed": {"a": (3, 4), "b": (), "c": (0, 2), "d": ((5,), (2, 1, 2))},
}
# Zeros of both signs, infinities, NaNs of both signs, subnormals of each dtype.
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1.5, np.inf, -np.inf, np.nan, -np.nan]
SPECIAL += [1e-40, -1e-40, 2e-40, 6e-8, -6e-8, 3e38, -3e38]
SCORES = (
    saliency.gradient_saliency,
    saliency.absolute_saliency,
    saliency.fisher_saliency,
)


def is_shape(x):
    return isinstance(x, tuple) and all(isinstance(n, int) for n in x)


def make_tree(shapes, values, dtype=jnp.float32):
    """Fills a tree of shapes from a flat array, leaf by leaf."""
    leaves, structure = jax.tree.flatten(shapes, is_leaf=is_shape)
    ends = np.cumsum([math.prod(shape) for shape in leaves])
    pieces = np.split(values, ends[:-1])
    with np.errstate(over="ignore"):
        filled = [
            jnp.asarray(np.asarray(piece.reshape(shape)).astype(dtype))
            for piece, shape in zip(pieces, leaves, strict=True)
        ]
    return structure.unflatten(filled)


def count_entries(shapes):
    return sum(math.prod(shape) for shape in jax.tree.leaves(shapes, is_leaf=is_shape))


def flat(tree) -> np.ndarray:
    """All entries in tree order; floats as float32."""
    entries = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    return entries if entries.dtype == bool else entries.astype(np.float32)


def stable_order(scores):
    """Indices by falling score; ties by position, NaN last."""
    scores = scores.astype(np.float64)
    nan = np.isnan(scores)
    return np.lexsort((np.where(nan, 0, -scores), nan))


def expected_mask(scores, fraction):
    kept = np.zeros(scores.size, bool)
    kept[stable_order(scores)[: math.floor(fraction * scores.size)]] = True
    return kept


def scores_of(shapes, finite=False):
    special = [x for x in SPECIAL if np.isfinite(x)] if finite else SPECIAL
    kinds = {"allow_nan": not finite, "allow_infinity": not finite}
    return hnp.arrays(
        np.float32,
        count_entries(shapes),
        elements=st.one_of(st.sampled_from(special), st.floats(width=32, **kinds)),
    )


class ScoresTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.model = reference.load("model")
        self.params = reference.tree(self.model, "param.")
        self.batches = reference.batches(self.model, "forget")

    def test_gradient_saliency_is_the_released_gradient(self):
        golden = reference.tree(reference.load("salun_mask"), "grad.")
        scores = saliency.gradient_saliency(
            reference.loss, self.params, iter(self.batches)
        )
        wanted = jax.tree.map(jnp.abs, golden)
        chex.assert_trees_all_close(scores, wanted, rtol=1e-5, atol=1e-5)

    @parameterized.parameters(*range(1, 11))
    def test_mask_is_the_released_one(self, tenths):
        data = reference.load("salun_mask")
        scores = saliency.gradient_saliency(reference.loss, self.params, self.batches)
        mask = saliency.top_fraction_mask(scores, tenths / 10)
        golden = reference.tree(data, f"mask.{tenths / 10}.")
        chex.assert_trees_all_equal(mask, jax.tree.map(lambda m: m == 1, golden))

    def test_sign_of_the_loss_does_not_matter(self):
        def loss(w, x):
            return jnp.mean(jnp.sin(x @ w))

        x, w = jax.random.normal(jax.random.key(0), (6, 3)), jnp.ones(3)
        for score in SCORES:
            chex.assert_trees_all_equal(
                score(loss, w, [x]), score(lambda w, x: -loss(w, x), w, [x])
            )

    def test_closed_forms_on_a_linear_loss(self):
        # The gradient of mean(x·w) is the mean x of the batch.
        first = np.array([[1.0, -2.0], [3.0, 0.0]], np.float32)
        second = np.array([[-5.0, 4.0]], np.float32)

        def loss(w, x):
            return jnp.mean(x @ w)

        def score(function):
            return function(loss, jnp.zeros(2), [first, second])

        mean_1, mean_2 = first.mean(0), second.mean(0)
        every = np.concatenate([first, second])
        np.testing.assert_allclose(
            score(saliency.gradient_saliency), np.abs(mean_1 + mean_2)
        )
        np.testing.assert_allclose(
            score(saliency.absolute_saliency), np.abs(mean_1) + np.abs(mean_2)
        )
        np.testing.assert_allclose(
            score(saliency.fisher_saliency), (every**2).mean(0), rtol=1e-6
        )

    def test_no_batch_raises(self):
        for score in SCORES:
            with self.assertRaisesRegex(ValueError, "no batch"):
                score(reference.loss, self.params, [])

    def test_bound_arrays_are_not_differentiated(self):
        def loss(scale, w, x):
            return jnp.mean(scale * w * x)

        scores = saliency.gradient_saliency(
            Partial(loss, jnp.float32(3)), jnp.float32(1), [jnp.ones(2)]
        )
        self.assertEqual(scores, 3)


class TopFractionTest(parameterized.TestCase):
    @parameterized.product(
        shapes=list(TREES), dtype=[np.float32, jnp.bfloat16, np.float16]
    )
    def test_equals_a_stable_sort(self, shapes, dtype):
        shapes = TREES[shapes]
        compiled = jax.jit(saliency.top_fraction_mask, static_argnums=1)

        @hypothesis.settings(deadline=None, max_examples=40)
        @hypothesis.given(
            scores_of(shapes, finite=True),
            st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 0.95, 1.0]),
        )
        def check(values, fraction):
            top = np.float32(jnp.finfo(dtype).max)
            tree = make_tree(shapes, np.clip(values, -top, top), dtype)
            mask = saliency.top_fraction_mask(tree, fraction)
            chex.assert_trees_all_equal_structs(mask, tree)
            chex.assert_trees_all_equal_shapes(mask, tree)
            wanted = expected_mask(flat(tree), fraction)
            np.testing.assert_array_equal(flat(mask), wanted)
            chex.assert_trees_all_equal(compiled(tree, fraction), mask)

        check()

    @parameterized.product(
        bad=[np.nan, -np.nan, np.inf, -np.inf], fraction=[0.0, 0.5, 1.0]
    )
    def test_what_is_not_finite_raises_and_in_jit_moves_nothing(self, bad, fraction):
        tree = {"a": jnp.ones(3), "b": [jnp.array([[1.0, bad]])]}
        for select in (
            saliency.top_fraction_mask,
            saliency.top_fraction_mask_by_leaf,
            saliency.threshold_mask,
        ):
            with self.assertRaisesRegex(ValueError, r"saliency\['b'\]\[0\].*finite"):
                select(tree, fraction)
            mask = jax.jit(select, static_argnums=1)(tree, fraction)
            self.assertFalse(mask["b"][0].any())
            if select is not saliency.top_fraction_mask_by_leaf:
                self.assertFalse(mask["a"].any())

    def test_complex_scores_and_keys_are_refused_by_name(self):
        for leaf in (jnp.ones(2, jnp.complex64), jax.random.key(0)):
            with self.assertRaisesRegex(ValueError, r"saliency\['b'\] is .*magnitude"):
                saliency.top_fraction_mask({"a": jnp.ones(2), "b": leaf}, 0.5)

    @parameterized.parameters(0.0, 0.3, 1.0)
    def test_a_traced_fraction_gives_the_same_mask(self, fraction):
        tree = {"a": jnp.arange(6.0), "b": jnp.ones((2, 2))}
        traced = jax.jit(saliency.top_fraction_mask)(tree, fraction)
        chex.assert_trees_all_equal(traced, saliency.top_fraction_mask(tree, fraction))

    @parameterized.parameters(1, 7, 77, 100)
    def test_count_is_the_floor_in_float_arithmetic(self, n):
        scores = jnp.arange(n) % 5
        for hundredths in range(101):
            fraction = hundredths / 100
            for given in (fraction, float(np.float32(fraction))):
                mask = saliency.top_fraction_mask(scores, given)
                self.assertEqual(mask.sum(), math.floor(given * n))

    def test_a_float32_fraction_counts_as_its_value(self):
        # In float32, 0.57 · 100 rounds up to 57.
        mask = saliency.top_fraction_mask(jnp.arange(100), np.float32(0.57).item())
        self.assertEqual(mask.sum(), 56)
        fraction: Any = np.float32(0.57)
        again = saliency.top_fraction_mask(jnp.arange(100), fraction)
        chex.assert_trees_all_equal(again, mask)

    @parameterized.product(
        value=[-0.1, 1.0001, float("nan"), float("inf")],
        kind=[float, np.float32, jnp.float32],
    )
    def test_fraction_outside_raises(self, value, kind):
        fraction = kind(value)
        for select in (
            saliency.top_fraction_mask,
            saliency.top_fraction_mask_by_leaf,
            lambda s, f: saliency.random_mask(jax.random.key(0), s, f),
        ):
            with self.assertRaisesRegex(ValueError, "fraction=.*wanted"):
                select(jnp.ones(3), fraction)

    def test_all_ties_keep_the_lowest_indices(self):
        tree = {"b": jnp.ones((2, 3)), "a": jnp.ones(4), "c": jnp.ones(5)}
        mask = saliency.top_fraction_mask(tree, 0.5)  # 7 of 15, "a" before "b"
        np.testing.assert_array_equal(mask["a"], [True] * 4)
        np.testing.assert_array_equal(mask["b"], [[True] * 3, [False] * 3])
        np.testing.assert_array_equal(mask["c"], [False] * 5)

    @parameterized.named_parameters(("normal", False), ("ties", True))
    def test_a_large_leaf_is_exact(self, ties):
        rng = np.random.default_rng(0)
        values = rng.normal(size=1_000_000).astype(np.float32)
        values = np.round(values) if ties else values
        mask = saliency.top_fraction_mask(jnp.asarray(values.reshape(1000, -1)), 0.3)
        np.testing.assert_array_equal(flat(mask), expected_mask(values, 0.3))

    @parameterized.parameters(1, 5, 1000)
    def test_small_leaves_that_are_joined_keep_their_places(self, small):
        rng = np.random.default_rng(3)
        sizes = [4, 30, 1, 7, 50, 2, 0]
        values = rng.integers(-3, 3, sum(sizes)).astype(np.float32)  # most are ties
        tree = [jnp.asarray(x) for x in np.split(values, np.cumsum(sizes)[:-1])]
        tree[4] = tree[4].reshape(5, 10)
        with mock.patch.object(saliency, "_SMALL", small):
            jax.clear_caches()  # or the first small of all is seen
            mask = saliency.top_fraction_mask(tree, 0.4)
        np.testing.assert_array_equal(flat(mask), expected_mask(values, 0.4))
        inside = jax.jit(lambda s: saliency.top_fraction_mask(s, 0.4))(tree)
        chex.assert_trees_all_equal(mask, inside)

    def test_vmap_equals_a_loop(self):
        rng = np.random.default_rng(1)
        trees = [make_tree(TREES["mixed"], rng.integers(-3, 3, 22)) for _ in range(5)]
        batched = jax.tree.map(lambda *x: jnp.stack(x), *trees)
        masks = jax.vmap(lambda s: saliency.top_fraction_mask(s, 0.4))(batched)
        for i, tree in enumerate(trees):
            chex.assert_trees_all_equal(
                jax.tree.map(lambda m, i=i: m[i], masks),
                saliency.top_fraction_mask(tree, 0.4),
            )

    @hypothesis.settings(deadline=None, max_examples=30)
    @hypothesis.given(
        hnp.arrays(np.float32, 22, elements=st.integers(-20, 20)),
        st.floats(0, 1),
        st.floats(0, 1),
    )
    def test_laws(self, values, fraction, other):
        tree = make_tree(TREES["mixed"], values)

        def top(tree, fraction):
            return saliency.top_fraction_mask(tree, fraction)

        mask = top(tree, fraction)
        # Monotone transforms change nothing.
        for transform in (lambda s: s**3, lambda s: 0.5 * s - 7):
            moved = jax.tree.map(transform, tree)
            chex.assert_trees_all_equal(top(moved, fraction), mask)
        # A mask is its own mask.
        chex.assert_trees_all_equal(top(mask, fraction), mask)
        # Masks are nested.
        small, large = sorted([fraction, other])
        self.assertFalse((flat(top(tree, small)) & ~flat(top(tree, large))).any())
        # What is kept is at least what is not.
        kept, scores = flat(mask), flat(tree)
        if kept.any() and not kept.all():
            self.assertGreaterEqual(scores[kept].min(), scores[~kept].max())

    def test_neither_sorts_nor_gathers_nor_flattens(self):
        tree = {"a": jnp.ones((8, 4)), "b": jnp.ones((2, 3, 4))}
        for function in (
            lambda s: saliency.top_fraction_mask(s, 0.5),
            lambda s: saliency.kth_smallest(s, 5),
        ):
            text = str(jax.make_jaxpr(function)(tree))
            steps = set(re.findall(r" = ([\w-]+)[\[ ]", text))
            self.assertContainsSubset({"reduce_sum", "scatter-add"}, steps)
            for word in ("sort", "gather", "reshape", "concatenate"):
                self.assertNotIn(word, steps)
            for line in text.splitlines():  # of counts alone
                self.assertTrue(" = cumsum" not in line or "u32[65536]" in line, line)

    @parameterized.parameters(1, 2, 7, 30, 59, 60)
    def test_counts_and_bisection_find_the_same_key(self, wanted):
        rng = np.random.default_rng(wanted)
        keys = rng.integers(0, 1 << 32, (3, 2, 10), dtype=np.uint32)
        keys[1] = keys[0] ^ 1  # the same upper bits
        keys[2, 0] = keys[0, 0]  # ties
        keys[2, 1, :2] = 0, (1 << 32) - 1
        found = np.sort(keys, axis=None)[-wanted]
        for bar in (saliency._bar_by_counts, saliency._bar_by_bisection):
            self.assertEqual(jax.jit(bar)(list(keys), jnp.uint32(wanted)), found)

    def test_counts_beyond_int32(self):
        def shape(*sizes):
            return jax.ShapeDtypeStruct(sizes, np.float32)

        def both(s):
            return saliency.top_fraction_mask(s, 0.9), saliency.kth_smallest(s, 3)

        mask, _ = jax.eval_shape(both, {"w": shape(3, 1 << 30)})
        self.assertEqual(mask["w"].shape, (3, 1 << 30))
        with self.assertRaisesRegex(ValueError, "fewer than 2\\*\\*32"):
            jax.eval_shape(both, {"w": shape(4, 1 << 30)})


class OtherMasksTest(parameterized.TestCase):
    @hypothesis.settings(deadline=None, max_examples=20)
    @hypothesis.given(
        scores_of(TREES["mixed"], finite=True), st.sampled_from([0.1, 0.5, 0.8])
    )
    def test_by_leaf_ranks_each_leaf_alone(self, values, fraction):
        tree = make_tree(TREES["mixed"], values)
        mask = saliency.top_fraction_mask_by_leaf(tree, fraction)
        for kept, scores in zip(
            jax.tree.leaves(mask), jax.tree.leaves(tree), strict=True
        ):
            self.assertEqual(kept.shape, scores.shape)
            np.testing.assert_array_equal(
                kept.ravel(), expected_mask(np.asarray(scores).ravel(), fraction)
            )

    def test_threshold_is_inclusive(self):
        tree = {"a": jnp.array([0.1, 0.5, 0.4]), "b": (jnp.array(3e38),)}
        for mask in (
            saliency.threshold_mask(tree, 0.5),
            jax.jit(saliency.threshold_mask)(tree, 0.5),
        ):
            np.testing.assert_array_equal(mask["a"], [False, True, False])
            self.assertTrue(mask["b"][0])

    @parameterized.parameters(0.0, 0.1, 0.57, 1.0)
    def test_random_mask_has_the_exact_density(self, fraction):
        like = {"a": jnp.ones((40, 2)), "b": jnp.ones(20, jnp.bfloat16)}
        mask = saliency.random_mask(jax.random.key(3), like, fraction)
        chex.assert_trees_all_equal_shapes(mask, like)
        self.assertEqual(flat(mask).sum(), math.floor(fraction * 100))
        self.assertAlmostEqual(
            float(saliency.density(mask)), math.floor(fraction * 100) / 100
        )

    def test_random_mask_is_uniform_over_all_leaves(self):
        like = {"a": jnp.ones((3, 2)), "b": jnp.ones(6)}
        keys = jax.random.split(jax.random.key(0), 2000)
        masks = jax.vmap(lambda key: saliency.random_mask(key, like, 0.25))(keys)
        kept = np.concatenate([masks["a"].reshape(2000, 6), masks["b"]], 1)
        np.testing.assert_array_equal(kept.sum(1), 3)
        # Four standard deviations of a share over 2,000 draws.
        np.testing.assert_allclose(kept.mean(0), 0.25, atol=4 * 0.0097)
        # Distinct entries are all but independent: −1/11 is the exact correlation.
        correlations = np.corrcoef(kept.T)[~np.eye(12, dtype=bool)]
        np.testing.assert_allclose(correlations, -1 / 11, atol=0.1)

    def test_random_mask_follows_the_key_alone(self):
        x = jnp.ones((5, 8))
        one = saliency.random_mask(jax.random.key(0), {"a": x, "b": x}, 0.5)
        two = saliency.random_mask(jax.random.key(0), {"b": x, "a": x}, 0.5)
        chex.assert_trees_all_equal(one, two)
        other = saliency.random_mask(jax.random.key(1), {"a": x, "b": x}, 0.5)
        self.assertFalse(np.array_equal(flat(one), flat(other)))
        self.assertFalse(np.array_equal(one["a"], one["b"]))

    def test_density_counts_beyond_float32(self):
        # 2**24 + 1 is no float32, so that a running float32 count would stop there.
        mask = jnp.ones(1 << 25, bool)
        self.assertEqual(saliency.density({"a": mask, "b": ~mask}), 0.5)


class KthSmallestTest(parameterized.TestCase):
    @parameterized.product(shapes=list(TREES), dtype=[np.float32, jnp.bfloat16])
    def test_equals_a_sort(self, shapes, dtype):
        shapes = TREES[shapes]
        n = count_entries(shapes)
        compiled = jax.jit(saliency.kth_smallest)

        @hypothesis.settings(deadline=None, max_examples=40)
        @hypothesis.given(scores_of(shapes), st.integers(1, n))
        def check(values, k):
            tree = make_tree(shapes, values, dtype)
            scores = flat(tree)
            wanted = scores[stable_order(scores)[::-1]][k - 1]
            for found in (saliency.kth_smallest(tree, k), compiled(tree, k)):
                self.assertEqual(found.dtype, jnp.float32)
                self.assertEqual(found.shape, ())
                np.testing.assert_array_equal(np.asarray(found), wanted)

        check()

    @parameterized.parameters(int, np.uint32, jnp.int32, jnp.float32)
    def test_ranks_out_of_range(self, kind):
        tree = [jnp.array([-4.0, 7.0]), jnp.array(2.0)]
        self.assertEqual(saliency.kth_smallest(tree, kind(0)), 0)
        self.assertEqual(saliency.kth_smallest(tree, kind(3)), 7)
        self.assertEqual(saliency.kth_smallest(tree, kind(4)), 7)
        self.assertEqual(saliency.kth_smallest(tree, kind(10**9)), 7)
        if kind is not np.uint32:
            self.assertEqual(saliency.kth_smallest(tree, kind(-2)), 0)

    def test_vmap_over_the_rank(self):
        x = jnp.array([5.0, 1.0, 3.0])
        found = jax.vmap(lambda k: saliency.kth_smallest(x, k))(jnp.arange(5))
        np.testing.assert_array_equal(found, [0, 1, 3, 5, 5])

    def test_empty_tree(self):
        self.assertEqual(saliency.kth_smallest({}, 1), 0)
        self.assertEqual(saliency.top_fraction_mask({}, 0.5), {})

    def test_a_million_entries(self):
        values = np.random.default_rng(2).normal(size=1_000_000).astype(np.float32)
        tree = [jnp.asarray(values[:300_000].reshape(300, -1)), values[300_000:]]
        ordered = np.sort(values)
        for k in (1, 2, 499_999, 1_000_000):
            self.assertEqual(saliency.kth_smallest(tree, k), ordered[k - 1])


if __name__ == "__main__":
    absltest.main()
