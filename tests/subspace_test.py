import contextlib
import dataclasses
import functools
import math
from typing import Any, ClassVar, NamedTuple

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized
from flax import linen as nn
from flax import nnx
from flax.core import freeze
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from threadpoolctl import threadpool_limits

from experiments.models.vit import ViT
from mujax import methods, roles, subspace
from tests import reference

# Two BLAS threads on a busy machine make a small SVD a hundred times slower.
threadpool_limits(1, user_api="blas")

COLUMNS_FIRST = subspace.MatrixAxes(rows=(1,), columns=(0,))


def orthonormal(rng, m, k):
    return np.linalg.qr(rng.standard_normal((m, k)))[0]


def with_spectrum(rng, m, n, sigma):
    u, v = orthonormal(rng, m, len(sigma)), orthonormal(rng, n, len(sigma))
    return np.float32((u * np.asarray(sigma)) @ v.T)


def normal_tree(seed, shapes):
    rng = np.random.default_rng(seed)
    return {k: rng.standard_normal(s, dtype=np.float32) for k, s in shapes.items()}


def projectors(basis, r=None):
    """U Uᵀ and V Vᵀ of every matrix of a basis, in float64."""
    sides = (np.asarray(x, np.float64)[..., :r] for x in (basis.left, basis.right))
    return [x @ x.swapaxes(-1, -2) for x in sides]


def is_basis(node):
    return isinstance(node, subspace.Basis)


def widen(basis, r):
    """A basis with zero columns up to r."""
    pad = [(0, 0), (0, 0), (0, r - basis.left.shape[-1])]
    left, right = jnp.pad(basis.left, pad), jnp.pad(basis.right, pad)
    return subspace.Basis(left, right, basis.rank, basis.axes)


def assert_same_bases(first, second, atol=1e-5):
    first = jax.tree.leaves(first, is_leaf=is_basis)
    second = jax.tree.leaves(second, is_leaf=is_basis)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.rank, b.rank)
        assert a.axes == b.axes
        for p, q in zip(projectors(a), projectors(b), strict=True):
            np.testing.assert_allclose(p, q, atol=atol)


OPTIMIZER = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.05, momentum=0.9))


@jax.jit
def golden_step(params, bases, cores, state, batch):
    loss, grads = jax.value_and_grad(
        lambda c: reference.loss(subspace.apply_cores(params, bases, c), batch)
    )(cores)
    updates, state = OPTIMIZER.update(grads, state, cores)
    return optax.apply_updates(cores, updates), state, loss


class GoldenTest(parameterized.TestCase):
    @parameterized.product(projection=("plain", "orthogonal"), energy=(0.8, 0.95, 0.99))
    def test_matches_mended_program(self, projection, energy):
        model, data = reference.load("model"), reference.load("semu")
        params = reference.tree(model, "param.")
        grads = {
            layer: {
                "kernel": reference.kernel(data[f"grad.{layer}.weight"]),
                "bias": jnp.zeros_like(params[layer]["bias"]),
            }
            for layer in reference.LAYERS
        }
        weights = params if projection == "orthogonal" else None
        bases = subspace.svd_bases(grads, energy, weights)
        key = f"mended.{projection}.{energy}."
        for layer in reference.LAYERS:
            u, vh = data[f"{key}{layer}.u"], data[f"{key}{layer}.vh"]
            wanted = [u @ u.swapaxes(-1, -2), vh.swapaxes(-1, -2) @ vh]
            if layer == "fc":  # out × in there, in × out here
                wanted = [x[None] for x in reversed(wanted)]
            self.assertIsNone(bases[layer]["bias"])
            came = projectors(bases[layer]["kernel"])
            for p, q in zip(came, wanted, strict=True):
                np.testing.assert_allclose(p, q, atol=1e-4)
        trainable = sum(core.size for core in subspace.init_cores(bases))
        self.assertEqual(trainable, data[f"{key}n_trainable"])

        # Zero columns change nothing, and let all cases share one compiled step.
        masked = jax.tree.map(lambda x: widen(x, 9), bases, is_leaf=is_basis)
        cores = subspace.init_cores(masked)
        state, losses = OPTIMIZER.init(cores), []
        x = reference.images(model, "forget")
        batch = x, (jnp.asarray(model["forget_labels"]) + 1) % 10
        for _ in range(3):
            cores, state, loss = golden_step(params, masked, cores, state, batch)
            losses.append(loss)
        kept = tuple(
            core[..., : start.shape[-1], : start.shape[-1]]
            for core, start in zip(cores, subspace.init_cores(bases), strict=True)
        )
        merged = subspace.apply_cores(params, bases, kept)
        close = functools.partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-4)
        close(losses, data[f"{key}losses"])
        close(reference.apply(merged, x), data[f"{key}logits_after"])
        for layer in reference.LAYERS:
            wanted = reference.kernel(data[f"{key}merged.{layer}"])
            close(merged[layer]["kernel"], wanted)
            self.assertIs(merged[layer]["bias"], params[layer]["bias"])


class FactorTest(parameterized.TestCase):
    def test_matches_float64_svd(self):
        rng = np.random.default_rng(0)
        matrices = {
            "tall": with_spectrum(rng, 64, 9, np.linspace(9, 1, 9)),
            "wide": with_spectrum(rng, 9, 64, np.linspace(9, 1, 9)),
            "square": with_spectrum(rng, 16, 16, np.linspace(2, 1, 16)),
            "limit": with_spectrum(rng, 80, 64, np.linspace(2, 1, 64)),
            "lapack": with_spectrum(rng, 100, 70, np.linspace(2, 1, 70)),
            "column": with_spectrum(rng, 50, 1, [3.0]),
            "graded": with_spectrum(rng, 40, 9, [1, 1e-2, 1e-4]),
            "deficient": with_spectrum(rng, 40, 9, [3, 2, 2]),
            "equal": np.eye(5, 9, dtype=np.float32),
            "tiny": np.float32(1e-25) * with_spectrum(rng, 20, 5, [5, 4, 3, 2, 1]),
            "huge": np.float32(1e25) * with_spectrum(rng, 20, 5, [5, 4, 3, 2, 1]),
        }
        bases = subspace.svd_bases(matrices, rank=100)
        for name, matrix in matrices.items():
            basis, exact = bases[name], matrix.astype(np.float64)
            u, sigma, vh = np.linalg.svd(exact, full_matrices=False)
            left, right = (
                np.asarray(x[0], np.float64) for x in (basis.left, basis.right)
            )
            came = np.einsum("mr,mn,nr->r", left, exact, right)
            with self.subTest(name, part="singular values"):
                np.testing.assert_allclose(came, sigma, atol=5e-6 * sigma[0])
            with self.subTest(name, part="orthonormal or zero"):
                for x in (left, right):
                    kept = np.diag((sigma > 1e-6 * sigma[0]).astype(float))
                    np.testing.assert_allclose(x.T @ x, kept, atol=1e-5)
            for r in range(1, len(sigma) + 1):
                after = sigma[r] if r < len(sigma) else 0
                if sigma[r - 1] - after < 1e-3 * sigma[0]:
                    continue  # no float32 SVD can tell these directions apart
                with self.subTest(name, part=f"projectors of rank {r}"):
                    p, q = projectors(basis, r)
                    atol = 1e-5 if name not in ("limit", "lapack") else 5e-5
                    np.testing.assert_allclose(p[0], u[:, :r] @ u[:, :r].T, atol=atol)
                    np.testing.assert_allclose(q[0], vh[:r].T @ vh[:r], atol=atol)

    def test_graded_columns_keep_relative_accuracy(self):
        rng = np.random.default_rng(1)
        scales = np.array([1e-4, 1, 1e-8, 1e-2, 1e-6, 1e-3])
        matrix = np.float32(orthonormal(rng, 40, 6) * scales)
        basis = subspace.svd_bases({"w": matrix}, rank=5)["w"]
        came = np.einsum("mr,mn,nr->r", basis.left[0], matrix, basis.right[0])
        np.testing.assert_allclose(came, [1, 1e-2, 1e-3, 1e-4, 1e-6], rtol=1e-5)

    def test_zero_gradient_has_rank_one_and_zero_columns(self):
        for shape in ((3, 3, 2, 16), (70, 80)):
            zeros = np.zeros(shape, np.float32)
            basis = subspace.svd_bases({"w": zeros}, 1.0)["w"]
            np.testing.assert_array_equal(basis.rank, 1)
            self.assertFalse(basis.left.any() or basis.right.any())
            self.assertEqual(basis.left.shape[-1], 1)

    def test_zero_channel_beside_a_full_one(self):
        grads = normal_tree(0, {"w": (3, 3, 2, 16)})
        grads["w"][:, :, 1] = 0
        basis = subspace.svd_bases(grads, 1.0)["w"]
        np.testing.assert_array_equal(basis.rank, 9)
        self.assertFalse(basis.left[1].any())
        np.testing.assert_allclose(
            basis.left[0].T @ basis.left[0], np.eye(9), atol=1e-5
        )

    @parameterized.product(
        value=(math.nan, math.inf),
        shape=((3, 3, 2, 16), (70, 80), (90, 100)),
        options=({}, {"rank": 2}, {"max_rank": 3}, {"per_channel": True}),
    )
    def test_not_finite_is_an_error_or_rank_zero(self, value, shape, options):
        grads = normal_tree(0, {"sound": (5, 4), "w": shape, "bias": (3,)})
        grads["w"][0, 0] = value
        with self.assertRaisesRegex(ValueError, r"grads\['w'\] of shape.*not finite"):
            subspace.svd_bases(grads, **options)
        bases = jax.jit(lambda g: subspace.svd_bases(g, **options))(grads)
        np.testing.assert_array_equal(bases["w"].rank, 0)
        self.assertTrue(np.isnan(bases["w"].left).all())
        self.assertTrue(np.isnan(bases["w"].right).all())
        self.assertTrue((bases["sound"].rank > 0).all())
        self.assertTrue(np.isfinite(bases["sound"].left).all())
        with self.assertRaisesRegex(ValueError, r"basis of \['w'\] has rank 0"):
            subspace.trim(bases)

    def test_one_matrix_that_is_not_finite_leaves_the_others(self):
        grads = normal_tree(0, {"w": (3, 3, 2, 16)})
        whole = subspace.svd_bases(grads, 0.8, per_channel=True)["w"]
        grads["w"][:, :, 1] = math.nan
        basis = jax.jit(lambda g: subspace.svd_bases(g, 0.8, per_channel=True))(grads)
        np.testing.assert_array_equal(basis["w"].rank, [whole.rank[0], 0])
        self.assertTrue(np.isfinite(basis["w"].left[0]).all())

    def test_weights_that_are_not_finite(self):
        grads = normal_tree(0, {"w": (5, 4)})
        with self.assertRaisesRegex(ValueError, r"orthogonal_to\['w'\].*not finite"):
            subspace.svd_bases(grads, 0.9, {"w": np.full((5, 4), np.inf, np.float32)})

    @parameterized.parameters(1e-30, 1e30)
    def test_orthogonal_to_weights_of_any_scale(self, scale):
        grads, weights = (normal_tree(x, {"w": (12, 7)}) for x in (0, 1))
        wanted = subspace.svd_bases(grads, 0.8, weights)
        scaled = {"w": weights["w"] * np.float32(scale)}
        assert_same_bases(subspace.svd_bases(grads, 0.8, scaled), wanted)

    @parameterized.parameters(jnp.float16, jnp.bfloat16)
    def test_half_precision_is_factored_in_single(self, dtype):
        # Entries of 200 have squares beyond what float16 holds.
        half = jax.tree.map(
            lambda x: jnp.asarray(200 * x, dtype), normal_tree(0, {"w": (40, 9)})
        )
        single = jax.tree.map(lambda x: x.astype(jnp.float32), half)
        assert_same_bases(
            subspace.svd_bases(half, 0.8, half), subspace.svd_bases(single, 0.8, single)
        )

    def test_energy_one_finds_the_exact_rank(self):
        rng = np.random.default_rng(0)
        matrices = [with_spectrum(rng, 40, 9, [3, 2, 1e-3]) for _ in range(4)]
        grads = {"w": np.stack(matrices).reshape(2, 2, 40, 9)}
        view = subspace.MatrixAxes((0, 1), (2,), (3,))
        basis = subspace.svd_bases(grads, 1.0, axes={"w": view})["w"]
        np.testing.assert_array_equal(basis.rank, [3] * 4)

    @pytest.mark.slow
    def test_forty_kernels_of_twenty_sizes_in_one_jit(self):
        # Batched LAPACK calls would wait for each other here for ever.
        rng = np.random.default_rng(0)
        grads = {}
        for n in (3, 4, 7, 8, 15, 16, 31, 32, 63, 64, *range(65, 75)):
            sigma = 0.7 ** np.arange(min(n, 20))
            grads[f"dense{n}"] = with_spectrum(rng, 2 * n, n, sigma)
            pair = np.stack([with_spectrum(rng, 2 * n, n, sigma) for _ in range(2)])
            grads[f"conv{n}"] = pair.transpose(2, 0, 1)[None]
        bases = jax.jit(lambda g: subspace.svd_bases(g, 0.9))(grads)
        self.assertLen(bases, 40)
        for name, basis in bases.items():
            stack = grads[name][None]
            if name.startswith("conv"):
                stack = grads[name][0].transpose(1, 2, 0)
            u, sigma, vh = np.linalg.svd(stack.astype(np.float64), full_matrices=False)
            share = np.cumsum(sigma[0] ** 2) / np.sum(sigma[0] ** 2)
            r = 1 + int(np.sum(share < 0.9))
            np.testing.assert_array_equal(basis.rank, r)
            u, v = u[..., :r], vh[:, :r].swapaxes(1, 2)
            for p, x in zip(projectors(basis), (u, v), strict=True):
                np.testing.assert_allclose(p, x @ x.swapaxes(1, 2), atol=1e-5)

    def test_range_finder(self):
        rng = np.random.default_rng(0)
        sigma = [8, 6, 4, 2, *np.full(76, 0.05)]
        pair = np.stack([with_spectrum(rng, 90, 120, sigma) for _ in range(2)])
        make = functools.partial(
            subspace.svd_bases,
            {"heads": pair},
            axes={"heads": subspace.MatrixAxes((0,), (1,), (2,))},
        )
        for energy in (0.9, 0.99):
            assert_same_bases(make(energy), make(energy, max_rank=12), atol=1e-4)
        # What the sketch misses counts: 120 of 120.19 falls short of 0.999.
        basis = make(0.999, max_rank=12)["heads"]
        np.testing.assert_array_equal(basis.rank, [12, 12])
        self.assertEqual(basis.right.shape, (2, 120, 12))

    def test_max_rank_bounds_small_kernels_and_fixed_ranks(self):
        grads = normal_tree(0, {"w": (12, 7)})
        self.assertEqual(subspace.svd_bases(grads, 1.0, max_rank=3)["w"].rank, 3)
        basis = subspace.svd_bases(grads, rank=5, max_rank=3)["w"]
        self.assertEqual(basis.left.shape, (1, 12, 3))

    def test_orthogonal_to_weights(self):
        grads = normal_tree(0, {"w": (3, 3, 2, 16), "b": (16,)})
        weights = normal_tree(1, {"w": (3, 3, 2, 16), "b": (16,)})
        g, w = grads["w"].astype(np.float64), weights["w"].astype(np.float64)
        removed = {"w": np.float32(g - (g * w).sum() / (w * w).sum() * w), "b": 0.0}
        came = subspace.svd_bases(grads, orthogonal_to=weights)
        assert_same_bases(came, subspace.svd_bases(removed))
        zeros = jax.tree.map(np.zeros_like, weights)
        same = subspace.svd_bases(grads, orthogonal_to=zeros)
        assert_same_bases(same, subspace.svd_bases(grads))


class LawsTest(parameterized.TestCase):
    SHAPES: ClassVar = {"conv": (2, 3, 4, 10), "dense": (12, 7), "bias": (7,)}

    def decaying(self, seed):
        """Gradients whose singular values fall off, each matrix at its own rate."""
        rng = np.random.default_rng(seed)
        *rates, rate = rng.uniform(0.2, 1, 5)
        conv = [with_spectrum(rng, 10, 6, x ** np.arange(6)) for x in rates]
        return {
            "conv": np.stack(conv).reshape(4, 10, 2, 3).transpose(2, 3, 0, 1),
            "dense": with_spectrum(rng, 12, 7, rate ** np.arange(7)),
            "bias": np.ones(7, np.float32),
        }

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 10**6), st.floats(0.01, 1), st.booleans())
    def test_rank_is_the_smallest_that_reaches_the_energy(self, seed, energy, per):
        grads = self.decaying(seed)
        bases = subspace.svd_bases(grads, energy, per_channel=per)
        conv = grads["conv"].transpose(2, 3, 0, 1).reshape(4, 10, 6)
        for name, stack in (("conv", conv), ("dense", grads["dense"][None])):
            sigma = np.linalg.svd(stack.astype(np.float64), compute_uv=False)
            share = np.cumsum(sigma**2, 1) / np.sum(sigma**2, 1, keepdims=True)
            rank = np.asarray(bases[name].rank)
            last = rank[:, None] - 1
            ends = np.take_along_axis(share, last, 1)[:, 0]
            self.assertTrue((ends >= energy - 1e-5).all())
            before = np.take_along_axis(share, np.maximum(last - 1, 0), 1)[:, 0]
            minimal = (rank == 1) | (before < energy + 1e-5)
            self.assertTrue(minimal.all() if per else minimal.any())
            self.assertEqual(bases[name].left.shape[-1], rank.max())
            if not per:
                self.assertEqual(rank.min(), rank.max())
            width = np.arange(rank.max())
            for side in (bases[name].left, bases[name].right):
                gram = np.einsum("bmi,bmj->bij", side, side)
                kept = (width < rank[:, None])[:, None] * np.eye(len(width))
                np.testing.assert_allclose(gram, kept, atol=1e-5)

    @settings(max_examples=10, deadline=None)
    @given(st.integers(0, 10**6), st.floats(0.3, 1))
    def test_projection_is_idempotent_and_kind_to_the_rest(self, seed, energy):
        bases = subspace.svd_bases(self.decaying(seed), energy, per_channel=True)
        masked = jax.tree.map(lambda x: widen(x, 7), bases, is_leaf=is_basis)
        tree = normal_tree(seed, self.SHAPES)
        once = subspace.project(tree, masked)
        twice = subspace.project(once, masked)
        for name in ("conv", "dense"):
            np.testing.assert_allclose(once[name], twice[name], atol=1e-5)
        self.assertIs(once["bias"], tree["bias"])
        p, q = projectors(bases["dense"])
        wanted = p[0] @ tree["dense"] @ q[0]
        np.testing.assert_allclose(once["dense"], wanted, atol=1e-5)

    @settings(max_examples=10, deadline=None)
    @given(st.integers(0, 10**6))
    def test_projection_commutes_with_transposing(self, seed):
        grads, tree = (normal_tree(x, {"w": (12, 7)}) for x in (seed, seed + 1))
        bases = subspace.svd_bases(grads, rank=3)
        flipped = subspace.svd_bases(
            {"w": grads["w"].T}, rank=3, axes={"w": COLUMNS_FIRST}
        )
        wanted = subspace.project(tree, bases)["w"].T
        came = subspace.project({"w": tree["w"].T}, flipped)["w"]
        np.testing.assert_allclose(came, wanted, atol=1e-4)

    @settings(max_examples=5, deadline=None)
    @given(st.integers(0, 10**6))
    def test_sgd_on_cores_is_projected_sgd_on_weights(self, seed):
        bases = subspace.svd_bases(normal_tree(seed, self.SHAPES), rank=2)
        params = normal_tree(seed + 1, self.SHAPES)
        target = normal_tree(seed + 2, self.SHAPES)

        def loss(params):
            gaps = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 4), params, target)
            return gaps["conv"] + gaps["dense"]

        @jax.jit
        def step(cores, weights):
            grads = jax.grad(lambda c: loss(subspace.apply_cores(params, bases, c)))
            projected = subspace.project(jax.grad(loss)(weights), bases)
            return jax.tree.map(
                lambda x, g: x - 1e-3 * g, (cores, weights), (grads(cores), projected)
            )

        cores, weights = subspace.init_cores(bases), params
        for _ in range(3):
            cores, weights = step(cores, weights)
        moved = subspace.apply_cores(params, bases, cores)
        for name in ("conv", "dense"):
            np.testing.assert_allclose(moved[name], weights[name], atol=1e-4)
            self.assertGreater(np.abs(moved[name] - params[name]).max(), 1e-3)


class TransformationTest(parameterized.TestCase):
    SHAPES: ClassVar = {
        "conv": (3, 3, 8, 16),
        "dense": (24, 10),
        "big": (80, 96),
        "bias": (10,),
    }

    @parameterized.named_parameters(
        ("energy", {"energy": 0.7, "per_channel": True, "max_rank": 20}),
        ("rank", {"rank": 3}),
    )
    def test_jit_then_trim_equals_eager(self, options):
        grads = normal_tree(0, self.SHAPES)
        jitted = jax.jit(lambda g: subspace.svd_bases(g, **options))(grads)
        eager = subspace.svd_bases(grads, **options)
        assert_same_bases(subspace.trim(jitted), eager)
        if "rank" in options:
            shapes = jax.tree.map(jnp.shape, (jitted, eager))
            self.assertEqual(*shapes)
        tree = normal_tree(1, self.SHAPES)
        masked, cut = (subspace.project(tree, bases) for bases in (jitted, eager))
        for name in tree:
            np.testing.assert_allclose(masked[name], cut[name], atol=1e-4)

    def test_masked_directions_get_no_gradient(self):
        grads = normal_tree(0, {"w": (3, 3, 2, 16)})
        bases = jax.jit(lambda g: subspace.svd_bases(g, 0.6, per_channel=True))(grads)
        cores = subspace.init_cores(bases)
        (core,) = jax.grad(
            lambda c: jnp.sum(grads["w"] * subspace.apply_cores(grads, bases, c)["w"])
        )(cores)
        kept = np.arange(9) < np.asarray(bases["w"].rank)[:, None]
        self.assertFalse(kept.all())
        outside = ~(kept[:, :, None] & kept[:, None, :])
        self.assertFalse(core[outside].any())
        self.assertTrue(core[:, 0, 0].all())

    def test_bases_stop_gradients(self):
        for shape in ((12, 7), (70, 66)):
            grad = jax.grad(
                lambda g: subspace.svd_bases({"w": g}, rank=2)["w"].left.sum()
            )
            self.assertFalse(grad(normal_tree(0, {"w": shape})["w"]).any())

    def test_vmap_equals_loop(self):
        trees = [normal_tree(seed, self.SHAPES) for seed in range(3)]
        stacked = jax.tree.map(lambda *x: np.stack(x), *trees)
        make = functools.partial(
            subspace.svd_bases, energy=0.6, per_channel=True, max_rank=20
        )

        def unlearn(grads):
            bases = make(grads)
            cores = tuple(c + 0.1 for c in subspace.init_cores(bases))
            return bases, cores, subspace.project(grads, bases)

        bases, cores, projected = jax.jit(jax.vmap(unlearn))(stacked)
        self.assertEqual(cores[1].shape[0], 3)
        cut = subspace.trim(bases)
        for i, tree in enumerate(trees):
            one = jax.tree.map(lambda x, i=i: x[i], (cut, projected))
            assert_same_bases(one[0], make(tree))
            for name, leaf in subspace.project(tree, make(tree)).items():
                np.testing.assert_allclose(one[1][name], leaf, atol=1e-4)

    def test_sharded_equals_single(self):
        grads = normal_tree(0, {"conv": (3, 3, 8, 16), "dense": (64, 10)})
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        specs = {
            "conv": PartitionSpec(None, None, None, "data"),
            "dense": PartitionSpec("data"),
        }
        placed = {
            name: jax.device_put(leaf, NamedSharding(mesh, specs[name]))
            for name, leaf in grads.items()
        }
        masked = jax.jit(lambda g: subspace.svd_bases(g, 0.8)).lower(placed).compile()
        self.assertNotIn("all-gather", str(masked.as_text()))
        single = subspace.svd_bases(grads, 0.8)
        assert_same_bases(subspace.trim(masked(placed)), single)
        cores = tuple(c + 0.1 for c in subspace.init_cores(single))
        moved = jax.jit(subspace.apply_cores)(placed, single, cores)
        for name, leaf in subspace.apply_cores(grads, single, cores).items():
            np.testing.assert_allclose(moved[name], leaf, atol=1e-5)

    @parameterized.parameters("tpu", "cuda")
    def test_lowers_for(self, platform):
        shapes = {"conv": (3, 3, 4, 8), "big": (200, 100), "sketched": (80, 70)}
        grads = normal_tree(0, shapes)

        @jax.jit
        def unlearn(grads):
            bases = subspace.svd_bases(grads, max_rank=65)
            cores = tuple(c + 1 for c in subspace.init_cores(bases))
            return subspace.apply_cores(grads, bases, cores)

        exported = jax.export.export(unlearn, platforms=[platform])(grads)
        self.assertEqual(exported.platforms, (platform,))

    def test_leaf_dtypes_are_kept(self):
        grads = normal_tree(0, {"conv": (3, 3, 2, 4), "bias": (4,)})
        half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), grads)
        bases = subspace.svd_bases(half, 0.8, half)
        self.assertEqual(
            {x.dtype.name for x in jax.tree.leaves(bases)}, {"float32", "int32"}
        )
        cores = tuple(c + 1 for c in subspace.init_cores(bases))
        moved = subspace.apply_cores(half, bases, cores)
        for tree in (moved, subspace.project(half, bases)):
            self.assertEqual({x.dtype for x in tree.values()}, {jnp.bfloat16.dtype})
        exact = subspace.apply_cores(
            jax.tree.map(lambda x: x.astype(jnp.float32), half), bases, cores
        )
        for name in half:
            np.testing.assert_array_equal(moved[name], exact[name].astype(jnp.bfloat16))

    def test_double_precision_mode_changes_nothing(self):
        grads = normal_tree(0, {"w": (40, 30)})
        with jax.enable_x64(True):
            double = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), grads)
            bases = subspace.svd_bases(double, 0.8, max_rank=5)
            self.assertEqual(bases["w"].left.dtype, jnp.float32)
            self.assertEqual(subspace.project(double, bases)["w"].dtype, jnp.float64)
        assert_same_bases(bases, subspace.svd_bases(grads, 0.8, max_rank=5))


class KernelsTest(parameterized.TestCase):
    def test_attention_and_conv1d_kernels(self):
        grads = normal_tree(
            0,
            {
                "query": (12, 3, 4),
                "out": (3, 4, 12),
                "conv1d": (5, 6, 8),
                "embedding": (30, 6),
            },
        )
        axes = {
            "query": subspace.MatrixAxes((1,), (0,), (2,)),
            "out": subspace.MatrixAxes((), (0, -2), (-1,)),
            "conv1d": subspace.MatrixAxes([1], [2], [0]),  # type: ignore
            "embedding": None,
        }
        bases = subspace.svd_bases(grads, 0.8, axes=axes)
        self.assertIsNone(bases["embedding"])
        views = {
            "query": grads["query"].transpose(1, 0, 2),
            "out": grads["out"].reshape(1, 12, 12),
            "conv1d": grads["conv1d"].transpose(1, 2, 0),
        }
        for name, stack in views.items():
            u, sigma, vh = np.linalg.svd(stack, full_matrices=False)
            share = np.cumsum(sigma**2, 1) / np.sum(sigma**2, 1, keepdims=True)
            r = int(np.max(1 + np.sum(share < 0.8, 1)))
            np.testing.assert_array_equal(bases[name].rank, r)
            p, q = projectors(bases[name])
            u, v = u[..., :r], vh[:, :r].swapaxes(1, 2)
            np.testing.assert_allclose(p, u @ u.swapaxes(1, 2), atol=1e-4)
            np.testing.assert_allclose(q, v @ v.swapaxes(1, 2), atol=1e-4)

        def named(path, leaf):
            del leaf
            return axes[path[0].key]

        assert_same_bases(bases, subspace.svd_bases(grads, 0.8, axes=named))
        shapes = [c.shape[:-2] for c in subspace.init_cores(bases)]
        self.assertEqual(shapes, [(6,), (), (3,)])  # conv1d, out, query
        all_directions = subspace.svd_bases(grads, 1.0, axes=axes)
        for name, leaf in subspace.project(grads, all_directions).items():
            np.testing.assert_allclose(leaf, grads[name], atol=1e-5)

    def test_open_role_names_leaf_and_argument(self):
        grads = normal_tree(0, {"w": (12, 6, 4)})
        with self.assertRaisesRegex(ValueError, r"leaf w of.*overrides=\{'w'"):
            subspace.svd_bases(grads)
        view = subspace.MatrixAxes((0,), (1,), (2,))
        assert_same_bases(
            subspace.svd_bases(grads, overrides={"*": view}),
            subspace.svd_bases(grads, axes={"w": view}),
        )
        kept = subspace.svd_bases(grads, axes={"w": view}, overrides={"w": None})
        self.assertEqual(kept, {"w": None})

    def test_scalars_of_any_library(self):
        grads = normal_tree(0, {"w": (12, 7)})
        for energy in (np.float32(0.8), jnp.float32(0.8)):
            assert_same_bases(
                subspace.svd_bases(grads, energy), subspace.svd_bases(grads, 0.8)
            )
        for rank in (np.int64(3), jnp.int32(3)):
            self.assertEqual(
                subspace.svd_bases(grads, rank=rank)["w"].left.shape, (1, 12, 3)
            )
        traced = jax.jit(lambda e: subspace.svd_bases(grads, e))(0.8)
        assert_same_bases(subspace.trim(traced), subspace.svd_bases(grads, 0.8))

    def test_attention_is_the_same_however_it_is_stored(self):
        flat = normal_tree(0, {"kernel": (12, 8)})["kernel"]
        split = subspace.svd_bases({"query": {"kernel": flat.reshape(12, 2, 4)}}, 0.8)
        assert_same_bases(
            {"w": dataclasses.replace(split["query"]["kernel"], axes=None)},
            {
                "w": dataclasses.replace(
                    subspace.svd_bases({"w": flat}, 0.8)["w"], axes=None
                )
            },
        )

    @parameterized.parameters((1, 0.034), (2, 0.126), (4, 0.490), (8, 1.949))
    def test_trainable_share_of_resnet18(self, rank, percent):
        shapes = resnet18_shapes()
        self.assertEqual(sum(math.prod(s) for s in shapes), 11_173_962)
        params = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
        bases = jax.eval_shape(lambda g: subspace.svd_bases(g, rank=rank), params)
        cores = jax.eval_shape(subspace.init_cores, bases)
        fraction = subspace.trainable_fraction(params, cores)
        self.assertAlmostEqual(100 * fraction, percent, places=3)


class ErrorsTest(parameterized.TestCase):
    GRADS: ClassVar = {
        "a": {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32)}
    }

    @parameterized.named_parameters(
        ("energy_zero", {"energy": 0}, "energy is 0;"),
        ("energy_large", {"energy": 1.5}, "energy is 1.5;"),
        ("energy_nan", {"energy": math.nan}, "energy is nan;"),
        ("rank", {"rank": 0}, "rank is 0;"),
        ("rank_float", {"rank": 2.5}, "rank is 2.5;"),
        ("max_rank", {"max_rank": -1}, "max_rank is -1;"),
        ("energy_array", {"energy": jnp.float32(1.5)}, "energy is 1.5;"),
        ("energy_numpy", {"energy": np.float64(-0.5)}, "energy is -0.5;"),
        ("energy_two", {"energy": np.array([0.5, 0.9])}, "energy is"),
        ("energy_text", {"energy": "0.9"}, "energy is 0.9;"),
        ("rank_bool", {"rank": True}, "rank is True;"),
        ("rank_numpy", {"rank": np.int32(0)}, "rank is"),
        ("rank_array", {"rank": jnp.float32(2)}, "rank is"),
        ("override", {"overrides": {"x*": None}}, r"'x\*' fits no leaf.*a/b, a/w"),
        ("weights_missing", {"orthogonal_to": {"a": {"w": np.ones((4, 3))}}}, r"'b'"),
        (
            "weights_shape",
            {"orthogonal_to": {"a": {"w": np.ones((3, 4)), "b": np.ones(3)}}},
            r"\['a'\]\['w'\] has shape \(3, 4\)",
        ),
        ("axes_missing", {"axes": {"a": {"w": None}}}, r"axes.*\['a'\]\['b'\]"),
        ("axes_type", {"axes": {"a": {"w": (0, 1), "b": None}}}, r"tuple at \['a'\]"),
        (
            "axes_twice",
            {"axes": lambda path, leaf: subspace.MatrixAxes((0,), (0,), (1,))},
            r"\['a'\]\['b'\] of shape",
        ),
    )
    def test_svd_bases_says(self, options, message):
        with self.assertRaisesRegex(ValueError, message):
            subspace.svd_bases(self.GRADS, **options)

    @parameterized.parameters(
        (np.complex64, "complex64"), (np.int8, "int8"), (bool, "bool")
    )
    def test_kernels_of_other_numbers(self, dtype, name):
        grads = {"w": np.ones((4, 3), dtype), "b": np.ones(3, dtype)}
        message = rf"\['w'\] of shape \(4, 3\) is {name}, wanted real"
        with self.assertRaisesRegex(ValueError, message):
            subspace.svd_bases(grads)
        bases = subspace.svd_bases({"w": np.ones((4, 3)), "b": np.ones(3)})
        with self.assertRaisesRegex(ValueError, message):
            subspace.project(grads, bases)
        kept = subspace.svd_bases(grads, overrides={"w": None})
        self.assertEqual(kept, {"w": None, "b": None})

    def test_kernel_of_keys(self):
        keys = {"w": jax.random.split(jax.random.key(0), (4, 3))}
        with self.assertRaisesRegex(ValueError, r"\['w'\] of shape.*key<fry>"):
            subspace.svd_bases(keys)

    def test_traced_rank(self):
        with self.assertRaisesRegex(ValueError, "rank is .*not traced"):
            jax.jit(lambda r: subspace.svd_bases(self.GRADS, rank=r))(2)

    def test_empty_kernel(self):
        with self.assertRaisesRegex(ValueError, r"\['w'\] of shape \(0, 3\)"):
            subspace.svd_bases({"w": np.ones((0, 3))})

    def test_no_kernel_at_all(self):
        bases = subspace.svd_bases({"b": np.ones(3)})
        self.assertEqual(bases, {"b": None})
        self.assertEqual(subspace.init_cores(bases), ())

    def test_bases_of_another_tree(self):
        bases = subspace.svd_bases(self.GRADS)
        other = {"a": {"w": np.ones((3, 4), np.float32), "b": np.ones(3)}}
        message = r"\['a'\]\['w'\] of shape \(3, 4\) is \(1, 3, 4\).*for \(1, 4, 3\)"
        with self.assertRaisesRegex(ValueError, message):
            subspace.project(other, bases)
        with self.assertRaisesRegex(ValueError, message):
            subspace.apply_cores(other, bases, subspace.init_cores(bases))
        with self.assertRaisesRegex(ValueError, r"bases has a leaf at \['a'\]\['w'\]"):
            subspace.project({"a": {"b": self.GRADS["a"]["b"]}}, bases)
        with self.assertRaisesRegex(ValueError, "ndarray at"):
            subspace.project(self.GRADS, self.GRADS)

    def test_cores_of_other_bases(self):
        bases = subspace.svd_bases(self.GRADS, rank=2)
        with self.assertRaisesRegex(ValueError, "0 cores came for 1 kernels"):
            subspace.apply_cores(self.GRADS, bases, ())
        message = r"core of \['a'\]\['w'\] has shape \(3, 3\).*wants \(2, 2\)"
        with self.assertRaisesRegex(ValueError, message):
            subspace.apply_cores(self.GRADS, bases, (jnp.ones((3, 3)),))

    def test_trim_inside_jit(self):
        bases = jax.jit(subspace.svd_bases)(self.GRADS)
        with self.assertRaises(jax.errors.ConcretizationTypeError):
            jax.jit(subspace.trim)(bases)


class DescribeTest(parameterized.TestCase):
    def test_says_what_bases_hold(self):
        grads = normal_tree(
            0, {"conv": (3, 3, 2, 16), "query": (12, 2, 4), "bias": (8,)}
        )
        overrides = {"query": subspace.MatrixAxes((1,), (0,), (2,))}
        bases = subspace.svd_bases(grads, 0.6, per_channel=True, overrides=overrides)
        rows = subspace.describe(grads, bases, overrides=overrides)
        bias, conv, query = rows
        self.assertEqual((bias.role, bias.view, bias.trainable), ("vector", None, 0))
        self.assertEqual((conv.role, conv.view), ("convolution", (2, 16, 9)))
        self.assertEqual((query.role, query.view), ("given", (2, 12, 4)))
        for name, row in (("conv", conv), ("query", query)):
            ranks = np.asarray(bases[name].rank)
            self.assertEqual(row.ranks, (ranks.min(), ranks.max()))
            self.assertEqual(row.trainable, 2 * ranks.max() ** 2)
        fraction = subspace.trainable_fraction(grads, subspace.init_cores(bases))
        self.assertEqual(rows.share, fraction)
        # Bases say what is a kernel where the tree alone does not.
        self.assertEqual(
            [row.view for row in subspace.describe(grads, bases)],
            [row.view for row in rows],
        )

    def test_table(self):
        tree = {"blocks": [{"kernel": np.ones((4, 3)), "bias": np.ones(3)}] * 2}
        bases = subspace.svd_bases(tree, overrides={"blocks/1/*": None})
        text = str(subspace.describe(tree, bases))
        lines = text.splitlines()
        self.assertEqual(lines[0].split()[0], "leaf")
        self.assertIn("blocks/0/kernel  4×3    dense", text)
        self.assertRegex(lines[4], r"blocks/1/kernel +4×3 +given$")
        self.assertRegex(lines[-1], r"total +30 +1 kernels +3.333 %$")

    def test_needs_roles_without_bases(self):
        with self.assertRaisesRegex(ValueError, "leaf foo"):
            subspace.describe({"foo": np.ones((2, 3, 4))})
        rows = subspace.describe({"foo": jax.ShapeDtypeStruct((3, 4), jnp.float32)})
        self.assertEqual((rows[0].view, rows[0].ranks), ((1, 3, 4), None))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any


class Pair(NamedTuple):
    kernel: Any
    bias: Any


class Module(eqx.Module):
    """With a static field and a function beside its arrays."""

    kernel: Any
    bias: Any
    name: str = eqx.field(static=True, default="linear")
    activation: Any = jax.nn.relu
    nothing: Any = None


def is_variable(node):
    return isinstance(node, nnx.Variable)


def variables(kernel, bias):
    """A State with its variables."""
    net = nnx.state(nnx.Linear(*kernel.shape, rngs=nnx.Rngs(0)))
    nnx.replace_by_pure_dict(net, {"kernel": kernel, "bias": bias})
    return net


CONTAINERS = (
    lambda kernel, bias: {"kernel": kernel, "bias": bias},
    lambda kernel, bias: freeze({"kernel": kernel, "bias": bias}),
    lambda kernel, bias: jax.tree.map(
        lambda x: x[...], variables(kernel, bias), is_leaf=is_variable
    ),
    variables,
    Layer,
    Pair,
    Module,
)


class ContainersTest(parameterized.TestCase):
    @parameterized.product(made=CONTAINERS, met=CONTAINERS)
    def test_bases_of_one_container_meet_another(self, made, met):
        leaves = normal_tree(0, {"kernel": (6, 5), "bias": (5,)})
        bases = subspace.svd_bases(made(**leaves), 0.8, met(**leaves))
        views = jax.tree.map(
            lambda x: subspace.MatrixAxes() if np.ndim(x) == 2 else None,
            made(**leaves),
        )
        again = subspace.svd_bases(met(**leaves), 0.8, met(**leaves), axes=views)
        assert_same_bases(bases, again)
        cores = tuple(c + 1 for c in subspace.init_cores(bases))
        plain = subspace.svd_bases(leaves, 0.8, leaves)
        wanted = subspace.apply_cores(leaves, plain, cores)["kernel"]
        moved = subspace.apply_cores(met(**leaves), bases, cores)
        projected = subspace.project(met(**leaves), bases)
        for tree in (moved, projected):
            self.assertEqual(
                jax.tree.structure(tree), jax.tree.structure(met(**leaves))
            )
        found = [x for x in jax.tree.leaves(moved) if np.shape(x) == (6, 5)]
        np.testing.assert_allclose(found[0], wanted, atol=1e-5)

    def test_indices_meet_their_texts(self):
        leaves = [{"w": x} for x in normal_tree(0, {"a": (4, 3), "b": (4, 3)}).values()]
        bases = subspace.svd_bases({"layers": leaves}, rank=1)
        for other in ({"0": leaves[0], "1": leaves[1]}, dict(enumerate(leaves))):
            came = subspace.project({"layers": other}, bases)["layers"]
            wanted = subspace.project({"layers": leaves}, bases)["layers"]
            chex.assert_trees_all_equal(list(came.values()), wanted)

    def test_hidden_leaves_stay_hidden(self):
        leaves = normal_tree(0, {"a": (4, 3), "b": (4, 3)})
        bases = subspace.svd_bases(leaves, rank=1)
        hidden = {"a": leaves["a"], "b": optax.MaskedNode()}
        came = subspace.project(hidden, bases)
        wanted = subspace.project(leaves, bases)
        np.testing.assert_array_equal(came["a"], wanted["a"])
        self.assertEqual(came["b"], optax.MaskedNode())


@pytest.mark.slow
class MeshTest(parameterized.TestCase):
    SHAPES: ClassVar = {
        "conv": {"kernel": (3, 3, 8, 16), "bias": (16,)},
        "dense": {"kernel": (64, 12), "bias": (12,)},
        "query": {"kernel": (16, 2, 8), "bias": (2, 8)},
        "large": {"kernel": (80, 96)},
    }

    @parameterized.product(
        kind=(AxisType.Explicit, AxisType.Auto),
        ambient=(True, False),
        jit=(True, False),
        options=({"energy": 0.8}, {"rank": 2, "max_rank": 5}),
    )
    def test_equals_one_device(self, kind, ambient, jit, options):
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))

        def place(leaf):
            # The last two axes with a length to split.
            names = iter(("model", "data"))
            spec = [next(names, None) if n % 4 == 0 else None for n in leaf.shape[::-1]]
            spec = PartitionSpec(*reversed(spec))
            return jax.device_put(leaf, NamedSharding(mesh, spec))

        grads, weights = (
            {k: normal_tree(seed, v) for k, v in self.SHAPES.items()} for seed in (0, 1)
        )
        compiled = jax.jit if jit else lambda function: function
        make = compiled(lambda g, w: subspace.svd_bases(g, orthogonal_to=w, **options))
        single = subspace.svd_bases(grads, orthogonal_to=weights, **options)
        placed, placed_weights = jax.tree.map(place, (grads, weights))
        with jax.set_mesh(mesh) if ambient else contextlib.nullcontext():
            bases = subspace.trim(make(placed, placed_weights))
            cores = tuple(c + 0.1 for c in subspace.init_cores(bases))
            moved = compiled(subspace.apply_cores)(placed_weights, bases, cores)
            inside = compiled(subspace.project)(placed, bases)
        assert_same_bases(bases, single, atol=2e-4)
        bases, cores = jax.device_get((bases, cores))
        wanted = subspace.apply_cores(weights, bases, cores)
        chex.assert_trees_all_close(moved, wanted, atol=1e-5)
        wanted = subspace.project(grads, bases)
        chex.assert_trees_all_close(inside, wanted, atol=1e-5)
        if jit and kind == AxisType.Auto:
            return  # the compiler places what a program returns
        for came, like in zip(
            jax.tree.leaves((moved, inside)),
            jax.tree.leaves((placed_weights, placed)),
            strict=True,
        ):
            same = came.sharding.is_equivalent_to(like.sharding, came.ndim)
            self.assertTrue(same, f"{came.sharding} is not {like.sharding}")

    def test_semu_on_explicit_axes(self):
        mesh = jax.make_mesh((4, 2), ("data", "model"))
        params = normal_tree(0, {"w": (8, 16)})
        batch = normal_tree(1, {"x": (8, 8)})["x"]

        def loss_fn(params, state, batch, key):
            del key
            return jnp.mean((batch @ params["w"]) ** 2), (state, None)

        method = methods.semu(loss_fn, optax.sgd(0.5))

        def unlearn(params, batch):
            state = method.init(params, (), [batch])
            for _ in range(2):
                state, _ = jax.jit(method.step)(state, batch)
            return method.finish(state)[0]["w"]

        wanted = unlearn(params, batch)
        with jax.set_mesh(mesh):
            whole = NamedSharding(mesh, PartitionSpec(None, "model"))
            moved = unlearn(
                jax.device_put(params, whole),
                jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data"))),
            )
        np.testing.assert_allclose(moved, wanted, atol=1e-5)
        self.assertGreater(np.abs(wanted - params["w"]).max(), 1e-2)
        self.assertTrue(moved.sharding.is_equivalent_to(whole, 2))


class LinenBlock(nn.Module):
    """A transformer's block and a dense layer on its mean."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
        return nn.Dense(3)(x.mean(1))


class NnxBlock(nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 16, rngs=rngs)])
        self.head = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return self.head(nnx.gelu(self.layers[0](x)).mean(1))


def from_nnx(net):
    """Pure parameters and ``apply(params, x)`` of a module."""
    graph, params, rest = nnx.split(net, nnx.Param, ...)

    def apply(params, x):
        return nnx.merge(graph, params, rest, copy=True)(x)

    return nnx.to_pure_dict(params), apply


def from_linen(net, x):
    params = net.init(jax.random.key(0), x)["params"]
    return params, lambda params, x: net.apply({"params": params}, x)


@pytest.mark.slow
class TransformerTest(parameterized.TestCase):
    """SEMU moves every kernel of attention, and nothing that is no kernel."""

    @parameterized.parameters("linen", "nnx", "vit")
    def test_attention_moves_and_biases_stay(self, kind):
        image = (8, 8, 1)
        shape = image if kind == "vit" else (5, 8)
        x = jax.random.normal(jax.random.key(1), (6, *shape))
        if kind == "linen":
            params, apply = from_linen(LinenBlock(), x)
        elif kind == "nnx":
            params, apply = from_nnx(NnxBlock(nnx.Rngs(0)))
        else:
            options = {"patch": 4, "width": 8, "depth": 1, "heads": 2}
            params, apply = from_nnx(ViT(3, image, **options, rngs=nnx.Rngs(0)))

        def loss_fn(params, state, batch, key):
            del key
            logits: Any = apply(params, batch[0])
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
            return loss.mean(), (state, None)

        method = methods.semu(loss_fn, optax.sgd(0.5), rank=2)
        labels = jnp.arange(6) % 3
        state = method.init(params, (), [(x, labels)])
        step = jax.jit(method.step)
        for _ in range(3):
            state, _ = step(state, (x, (labels + 1) % 3))
        moved, _ = method.finish(state)
        distances = {
            roles.leaf_name(path): float(jnp.abs(a - b).max())
            for (path, a), b in zip(
                jax.tree.leaves_with_path(params), jax.tree.leaves(moved), strict=True
            )
        }
        for name, distance in distances.items():
            if name.endswith("kernel"):
                self.assertGreater(distance, 1e-6, name)
            else:
                self.assertEqual(distance, 0, name)
        heads = [x for x in distances if "ttention" in x or "queries" in x]
        self.assertNotEmpty([x for x in heads if x.endswith("kernel")])


def resnet18_shapes():
    """Parameters of ResNet-18 for 10 classes with a 3×3 stem."""
    shapes = [(3, 3, 3, 64), (64,), (64,)]
    c = 64
    for width in (64, 128, 256, 512):
        for _ in range(2):
            shapes += [(3, 3, c, width), (3, 3, width, width), *[(width,)] * 4]
            if c != width:
                shapes += [(1, 1, c, width), (width,), (width,)]
            c = width
    return [*shapes, (512, 10), (10,)]


if __name__ == "__main__":
    absltest.main()
