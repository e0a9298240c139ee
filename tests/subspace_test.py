import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from threadpoolctl import threadpool_limits

from mujax import subspace
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

    def test_nan_is_not_hidden(self):
        basis = subspace.svd_bases({"w": np.full((3, 3, 2, 16), np.nan, np.float32)})[
            "w"
        ]
        self.assertTrue(np.isnan(basis.left).all())

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
        with self.assertRaisesRegex(ValueError, r"bases.*differ.*\['a'\]\['b'\]"):
            subspace.project({"a": {"w": self.GRADS["a"]["w"]}}, bases)
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
