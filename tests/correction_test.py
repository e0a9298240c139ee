"""The corrector: golden vectors, NumPy formulas for its options, safe extremes."""

from typing import Any

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from mujax import correction, gradients
from tests import reference

EPOCHS = (0, 3, 10, 25)


def released(epoch):
    """Threshold and forget weight of the released program."""
    return {"threshold": 0.45 - 0.05 * (epoch // 10), "forget_weight": 0.9**epoch}


def unit(x):
    norm = np.linalg.norm(x.ravel())
    return x / norm if norm > 0 else np.zeros_like(x)


def numpy_correct(
    retain, forget, threshold, forget_weight, per_tensor=False, weighted_norm=False
):
    """The corrector's formula on lists of float64 arrays."""
    cosines = [np.sum(unit(r) * unit(f)) for r, f in zip(retain, forget, strict=True)]
    fires = [c > threshold for c in cosines]
    if not per_tensor:
        fires = [any(fires)] * len(fires)
    corrected = []
    for fire, r, f in zip(fires, retain, forget, strict=True):
        weighted = unit(r) + forget_weight * unit(f)
        sum_ = weighted if weighted_norm else unit(r) + unit(f)
        corrected.append(
            weighted / (np.linalg.norm(sum_.ravel()) + 1e-8) if fire else r
        )
    return corrected


def random_pair(seed, agreement):
    """Two lists of tensors, whose cosines are near the agreement of each."""
    rng = np.random.default_rng(seed)
    shapes = [(3, 4), (5,), (2, 2, 3), ()]
    retain = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    noise = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    forget = [
        np.float32(scale) * r + n
        for scale, r, n in zip(agreement, retain, noise, strict=True)
    ]
    return [np.asarray(r) for r in retain], [np.asarray(f) for f in forget]


def as_tree(leaves):
    """A tree of mixed containers with four leaves in the given order."""
    a, b, c, d = (jnp.asarray(leaf) for leaf in leaves)
    return {"a": (a, b), "b": [c], "c": d}


class GoldenTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.data = reference.load("cufg_correction")

    @parameterized.product(prefix=["", "aligned.", "opposed."], epoch=EPOCHS)
    def test_corrected_gradient(self, prefix, epoch):
        retain = reference.tree(self.data, f"{prefix}grad_retain.")
        forget = reference.tree(self.data, f"{prefix}grad_forget.")
        wanted = reference.tree(self.data, f"{prefix}corrected.epoch{epoch}.")
        options: dict[str, Any] = released(epoch)
        for correct in (correction.correct, jax.jit(correction.correct)):
            corrected = correct(retain, forget, **options)
            chex.assert_trees_all_close(corrected, wanted, rtol=1e-5, atol=1e-5)
        # The plain and the opposed gradients must pass untouched, to the bit.
        fired = not all(
            np.array_equal(x, y)
            for x, y in zip(
                jax.tree.leaves(corrected), jax.tree.leaves(retain), strict=True
            )
        )
        self.assertEqual(fired, prefix == "aligned.")
        if not prefix:
            self.assertEqual(fired, bool(self.data[f"triggered.epoch{epoch}"]))

    def test_cosines(self):
        cosines = correction.conflict(
            reference.tree(self.data, "grad_retain."),
            reference.tree(self.data, "grad_forget."),
        )
        found = [
            cosines[layer][part]
            for layer in reference.LAYERS
            for part in ("kernel", "bias")
        ]
        np.testing.assert_allclose(found, self.data["cosines"], rtol=1e-5)

    def test_forgetting_gradient(self):
        model = reference.load("model")
        params = reference.tree(model, "param.")
        batches = reference.batches(model, "forget")
        # The released mean counts the last, smaller batch as much as the others.
        each = [
            correction.forgetting_gradient(reference.loss, params, [batch])
            for batch in batches
        ]
        mean = jax.tree.map(lambda *g: sum(g) / len(g), *each)
        wanted = reference.tree(self.data, "grad_forget.")
        chex.assert_trees_all_close(mean, wanted, rtol=1e-5, atol=1e-6)
        # Ours counts every example alike.
        chex.assert_trees_all_close(
            correction.forgetting_gradient(reference.loss, params, batches),
            jax.tree.map(
                jnp.negative,
                gradients.mean_gradient(
                    reference.loss, params, reference.batches(model, "forget", 160)
                ),
            ),
            rtol=1e-4,
            atol=1e-6,
        )


class CorrectTest(parameterized.TestCase):
    @parameterized.product(
        per_tensor=[False, True],
        weighted_norm=[False, True],
        # Fires everywhere; in one tensor of four; nowhere.
        agreement=[(9, 9, 9, 9), (9, -9, -9, -9), (-9, -9, -9, -9)],
        weight=[1.0, 0.3, 0.0],
    )
    def test_options_follow_the_formula(
        self, per_tensor, weighted_norm, agreement, weight
    ):
        retain, forget = random_pair(3, agreement)
        corrected = correction.correct(
            as_tree(retain),
            as_tree(forget),
            threshold=0.4,
            forget_weight=weight,
            per_tensor=per_tensor,
            weighted_norm=weighted_norm,
        )
        wanted = numpy_correct(
            retain,
            forget,
            0.4,
            weight,
            per_tensor=per_tensor,
            weighted_norm=weighted_norm,
        )
        # The scalars are exactly opposed in two of the cases: 1e-8 alone divides them.
        chex.assert_trees_all_close(corrected, as_tree(wanted), rtol=2e-5, atol=1e-5)

    def test_one_agreeing_tensor_decides_for_all_unless_per_tensor(self):
        retain = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([5.0, 0.0])}
        forget = {"a": jnp.array([1.0, 0.0]), "b": jnp.array([0.0, 2.0])}
        options: dict[str, Any] = {"threshold": 0.5, "forget_weight": 1.0}
        corrected = correction.correct(retain, forget, **options)
        np.testing.assert_allclose(corrected["a"], [1, 0], atol=1e-6)
        np.testing.assert_allclose(corrected["b"], [0.5**0.5, 0.5**0.5], atol=1e-6)
        alone = correction.correct(retain, forget, **options, per_tensor=True)
        np.testing.assert_allclose(alone["a"], [1, 0], atol=1e-6)
        np.testing.assert_array_equal(alone["b"], retain["b"])

    def test_minus_infinity_always_combines(self):
        retain, forget = random_pair(0, (-9, -9, -9, -9))
        corrected = correction.correct(
            as_tree(retain), as_tree(forget), threshold=-jnp.inf, forget_weight=0.5
        )
        wanted = numpy_correct(retain[:3], forget[:3], -np.inf, 0.5)
        for found, expected in zip(jax.tree.leaves(corrected)[:3], wanted, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    def test_one_never_combines(self):
        # Unit vectors times themselves often round to more than 1.
        for seed in range(30):
            x = jax.random.normal(jax.random.key(seed), (50,))
            self.assertLessEqual(correction.conflict(x, x), 1)
            corrected = correction.correct(x, 2 * x, threshold=1, forget_weight=0.5)
            np.testing.assert_array_equal(corrected, x)
            self.assertGreaterEqual(correction.conflict(x, -x), -1)

    @hypothesis.settings(deadline=None, max_examples=30)
    @hypothesis.given(
        hnp.arrays(np.float32, (2, 6), elements=st.integers(-4, 4)),
        st.integers(-60, 60),
        st.integers(-60, 60),
    )
    def test_scales_do_not_matter(self, pair, retain_power, forget_power):
        # Powers of two scale without rounding, so that the bits agree.
        retain, forget = jnp.asarray(pair)
        scaled = retain * 2.0**retain_power, forget * 2.0**forget_power
        np.testing.assert_array_equal(
            correction.conflict(*scaled), correction.conflict(retain, forget)
        )
        options: dict[str, Any] = {"threshold": -np.inf, "forget_weight": 0.7}
        np.testing.assert_array_equal(
            correction.correct(*scaled, **options),
            correction.correct(retain, forget, **options),
        )

    @parameterized.parameters(1e-30, 1e-37, 1e30, 1e37)
    def test_tiny_and_huge_norms(self, scale):
        retain, forget = jnp.array([1.0, 0.0, 0.0]), jnp.array([0.6, 0.8, 0.0])
        for r, f in (
            (retain * scale, forget),
            (retain, forget * scale),
            (retain * scale, forget * scale),
            (retain * scale, forget / scale),
        ):
            np.testing.assert_allclose(correction.conflict(r, f), 0.6, rtol=1e-6)
            corrected = correction.correct(r, f, threshold=0.5, forget_weight=1.0)
            np.testing.assert_allclose(
                corrected, [2 / 5**0.5, 1 / 5**0.5, 0], rtol=1e-6, atol=1e-7
            )

    @parameterized.parameters(jnp.bfloat16, jnp.float16)
    def test_low_precision_is_kept_and_computed_in_float32(self, dtype):
        retain, forget = (
            [x.astype(dtype) for x in side] for side in random_pair(1, (9, 9, 9, 9))
        )
        corrected = correction.correct(
            as_tree(retain), as_tree(forget), threshold=0.2, forget_weight=0.5
        )
        chex.assert_trees_all_equal_dtypes(corrected, as_tree(retain))
        exact = [[x.astype(np.float64) for x in side] for side in (retain, forget)]
        wanted = numpy_correct(exact[0], exact[1], 0.2, 0.5)
        wanted = [np.asarray(x).astype(dtype) for x in wanted]
        # Right up to the rounding of the result, which may fall to either side.
        chex.assert_trees_all_close(
            jax.tree.map(lambda x: x.astype(jnp.float32), corrected),
            jax.tree.map(lambda x: x.astype(jnp.float32), as_tree(wanted)),
            rtol=float(jnp.finfo(dtype).eps),
        )
        untouched = correction.correct(
            as_tree(retain), as_tree(forget), threshold=1, forget_weight=0.5
        )
        chex.assert_trees_all_equal(untouched, as_tree(retain))
        for cosine in jax.tree.leaves(
            correction.conflict(as_tree(retain), as_tree(forget))
        ):
            self.assertEqual(cosine.dtype, jnp.float32)

    def test_vmap_equals_a_loop(self):
        pairs = [random_pair(seed, (9, -9, 9, -9)) for seed in range(3)]
        sides = [
            jax.tree.map(lambda *x: jnp.stack(x), *(as_tree(p[i]) for p in pairs))
            for i in (0, 1)
        ]

        def correct(retain, forget):
            return correction.correct(retain, forget, threshold=0.5, forget_weight=0.5)

        batched = jax.vmap(correct)(*sides)
        for i, pair in enumerate(pairs):
            chex.assert_trees_all_close(
                jax.tree.map(lambda x, i=i: x[i], batched),
                correct(*map(as_tree, pair)),
                rtol=1e-5,
                atol=1e-6,
            )


class ZeroTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("retain", 0.0, 1.0), ("forget", 1.0, 0.0), ("both", 0.0, 0.0)
    )
    def test_zero_norm_gives_cosine_zero(self, retain_scale, forget_scale):
        retain = {"w": retain_scale * jnp.ones((2, 2)), "b": jnp.array([1.0, 2.0])}
        forget = {"w": forget_scale * jnp.ones((2, 2)), "b": jnp.array([1.0, 2.0])}
        cosines = correction.conflict(retain, forget)
        self.assertEqual(cosines["w"], 0)
        self.assertAlmostEqual(float(cosines["b"]), 1, places=6)
        corrected = correction.correct(retain, forget, threshold=0.5, forget_weight=1.0)
        present = max(retain_scale, forget_scale)
        np.testing.assert_allclose(corrected["w"], np.full((2, 2), present / 2))
        projected = correction.project_conflicts(retain, forget)
        np.testing.assert_allclose(projected["w"], np.full((2, 2), present))

    def test_derivatives_at_zero_are_finite(self):
        zero, ones = jnp.zeros(3), jnp.ones(3)

        def total(function):
            return lambda *args: jnp.sum(function(*args))

        def correct(retain, forget):
            return correction.correct(
                retain, forget, threshold=-jnp.inf, forget_weight=0.5
            )

        for function in (correction.conflict, correct, correction.project_conflicts):
            derivative = jax.grad(total(function), argnums=(0, 1))
            for pair in ((zero, ones), (ones, zero), (zero, zero), (ones, -ones)):
                chex.assert_tree_all_finite(derivative(*pair))

    def test_derivative_of_the_cosine(self):
        # d cos(r, f)/dr = (f̂ − cos · r̂)/‖r‖.
        r, f = jnp.array([3.0, 4.0]), jnp.array([1.0, 0.0])
        derivative = jax.grad(correction.conflict)(r, f)
        wanted = (np.array([1, 0]) - 0.6 * np.array([0.6, 0.8])) / 5
        np.testing.assert_allclose(derivative, wanted, atol=1e-6)

    def test_empty_leaves_and_trees(self):
        retain = {"w": jnp.array([2.0]), "none": jnp.zeros((0, 3))}
        options: dict[str, Any] = {"threshold": 0.5, "forget_weight": 1.0}
        self.assertEqual(correction.conflict(retain, retain)["none"], 0)
        corrected = correction.correct(retain, retain, **options)
        self.assertEqual(corrected["none"].shape, (0, 3))
        np.testing.assert_allclose(corrected["w"], [1.0])
        self.assertEqual(correction.correct({}, {}, **options), {})


class ProjectConflictsTest(parameterized.TestCase):
    @parameterized.parameters(1.0, 0.25, 0.0)
    def test_follows_the_formula(self, weight):
        retain, forget = random_pair(7, (-9, 9, -0.5, -9))
        wanted = []
        for r, f in zip(retain, forget, strict=True):
            dot, r2, f2 = np.sum(r * f), np.sum(r * r), np.sum(f * f)
            if dot < 0:
                wanted.append(r - dot / f2 * f + weight * (f - dot / r2 * r))
            else:
                wanted.append(r + weight * f)
        found = correction.project_conflicts(
            as_tree(retain), as_tree(forget), forget_weight=weight
        )
        chex.assert_trees_all_close(found, as_tree(wanted), rtol=1e-5, atol=1e-5)

    def test_result_opposes_neither(self):
        retain, forget = random_pair(8, (-1, -2, -3, 1))
        found = correction.project_conflicts(as_tree(retain), as_tree(forget))
        for u, r, f in zip(jax.tree.leaves(found), retain, forget, strict=True):
            self.assertGreaterEqual(float(np.sum(u * r)), -1e-4)
            self.assertGreaterEqual(float(np.sum(u * f)), -1e-4)

    @parameterized.parameters(1e-30, 1e30)
    def test_scales_survive(self, scale):
        found = correction.project_conflicts(
            scale * jnp.array([1.0, 0.0]), scale * jnp.array([-1.0, 1.0])
        )
        np.testing.assert_allclose(found / scale, [0.5, 1.5], rtol=1e-6)

    def test_dtype_is_kept(self):
        x = jnp.array([1.0, -2.0], jnp.bfloat16)
        self.assertEqual(correction.project_conflicts(x, -x).dtype, jnp.bfloat16)
        mixed = correction.project_conflicts(x, -x.astype(jnp.float32))
        self.assertEqual(mixed.dtype, jnp.bfloat16)


class BadTreeTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("missing", {"a": (jnp.ones(2),)}, r"no leaf at \['a'\]\[1\].*\(3, 2\)"),
        (
            "extra",
            {"a": (jnp.ones(2), jnp.ones((3, 2))), "z": jnp.ones(4)},
            r"a leaf at \['z'\], where",
        ),
        (
            "shape",
            {"a": (jnp.ones(2), jnp.ones((2, 3)))},
            r"\['a'\]\[1\] has shape \(2, 3\), .*\(3, 2\)",
        ),
        ("nothing", None, r"no leaf at \['a'\]\[0\]"),
    )
    def test_names_the_leaf(self, forget, message):
        retain = {"a": (jnp.ones(2), jnp.ones((3, 2)))}
        for function in (
            correction.conflict,
            correction.project_conflicts,
            lambda r, f: correction.correct(r, f, threshold=0, forget_weight=1),
        ):
            with self.assertRaisesRegex(ValueError, f"forget_grads.*{message}"):
                function(retain, forget)
            with self.assertRaisesRegex(ValueError, f"forget_grads.*{message}"):
                jax.eval_shape(function, retain, forget)


if __name__ == "__main__":
    absltest.main()
