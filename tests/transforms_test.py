"""Each transform against its closed form, and exact freezing under any optimiser."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from mujax import correction, saliency, subspace, transforms

STEPS = 20
OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "sgd_weight_decay": lambda: optax.chain(
        optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)
    ),
    "adam": lambda: optax.adam(0.01),
    "adamw": lambda: optax.adamw(0.01, weight_decay=0.1),
    "lion": lambda: optax.lion(0.01, weight_decay=0.1),
    "lamb": lambda: optax.lamb(0.01, weight_decay=0.1),
    "adafactor": lambda: optax.adafactor(0.01, min_dim_size_to_factor=4),
    "rmsprop": lambda: optax.rmsprop(0.01, momentum=0.9),
    "clip": lambda: optax.chain(
        optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9)
    ),
    "ema": lambda: optax.chain(optax.sgd(0.1), optax.ema(0.9)),
    "noise": lambda: optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(0.1)),
    "multi_steps": lambda: optax.MultiSteps(
        optax.adamw(0.01, weight_decay=0.1), 3
    ).gradient_transformation(),
}


def bits(x):
    x = np.asarray(x)
    return x.view(f"u{x.dtype.itemsize}")


def random_tree(seed, lead=()) -> Any:
    """A float32 matrix, a bfloat16 vector and a scalar in mixed containers."""
    rng = np.random.default_rng(seed)

    def normal(*shape, dtype=jnp.float32):
        return jnp.asarray(rng.normal(size=(*lead, *shape)), dtype)

    return {"w": normal(6, 5), "rest": (normal(8, dtype=jnp.bfloat16), normal())}


def walk(optimizer, params: Any, grads, mask=None, fused=True) -> Any:
    """Parameters after a step for each row of the gradients, masked or not.

    Fused, update and addition are one program, in which XLA may contract multiply and
    add; otherwise only the update is compiled.
    """

    def chain(mask):
        last = optax.identity() if mask is None else transforms.mask_updates(mask)
        return optax.chain(optimizer, last)

    def update(mask, params, opt_state, grads):
        return chain(mask).update(grads, opt_state, params)

    def step(update, *args):
        updates, opt_state = update(*args)
        return optax.apply_updates(args[1], updates), opt_state

    if fused:
        step = jax.jit(step, static_argnums=0)
    else:
        update = jax.jit(update)
    opt_state = chain(mask).init(params)
    for i in range(len(jax.tree.leaves(grads)[0])):
        now = jax.tree.map(lambda g, i=i: g[i], grads)
        params, opt_state = step(update, mask, params, opt_state, now)
    return params


class MaskUpdatesTest(parameterized.TestCase):
    @parameterized.parameters(*OPTIMIZERS)
    def test_frozen_weights_keep_their_bits(self, name):
        params = random_tree(0)
        mask: Any = jax.tree.map(lambda p: p > 0, random_tree(1))
        odd = jnp.array([-0.0, 0.0, jnp.inf, -jnp.inf, jnp.nan, 3e38, 2e-38])
        params["w"] = params["w"].at[0].set(odd[:5]).at[1, :2].set(odd[5:])
        mask["w"] = mask["w"].at[0].set(False).at[1, :2].set(False)
        vector, scalar = params["rest"]
        params["rest"] = (vector.at[0].set(-0.0).at[1].set(jnp.inf), scalar)
        mask["rest"] = (mask["rest"][0].at[:2].set(False), mask["rest"][1])
        grads = random_tree(2, lead=(STEPS,))
        # What freezes must not depend on the gradient being finite.
        grads["w"] = grads["w"].at[5, 0, 0].set(jnp.nan).at[9, 1, 1].set(jnp.inf)

        moved = walk(OPTIMIZERS[name](), params, grads, mask)
        chex.assert_trees_all_equal_dtypes(moved, params)
        for m, before, after in zip(
            *(jax.tree.leaves(tree) for tree in (mask, params, moved)), strict=True
        ):
            frozen = ~np.asarray(m)
            np.testing.assert_array_equal(bits(after)[frozen], bits(before)[frozen])

    @parameterized.parameters(*OPTIMIZERS)
    def test_an_all_true_mask_changes_nothing(self, name):
        params, grads = random_tree(0), random_tree(2, lead=(STEPS,))
        mask = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
        free = walk(OPTIMIZERS[name](), params, grads, fused=False)
        masked = walk(OPTIMIZERS[name](), params, grads, mask, fused=False)
        for before, a, b in zip(
            *(jax.tree.leaves(tree) for tree in (params, free, masked)), strict=True
        ):
            np.testing.assert_array_equal(bits(a), bits(b))
            self.assertTrue((np.asarray(a) != np.asarray(before)).any())

    @parameterized.parameters("momentum", "rmsprop", "adamw", "lion", "noise")
    def test_movable_weights_move_as_without_a_mask(self, name):
        # These optimisers treat each entry alone: the frozen ones do not matter.
        params, grads = random_tree(0), random_tree(2, lead=(STEPS,))
        mask = jax.tree.map(lambda p: p > 0, random_tree(1))
        free = walk(OPTIMIZERS[name](), params, grads, fused=False)
        masked = walk(OPTIMIZERS[name](), params, grads, mask, fused=False)
        for m, a, b in zip(
            *(jax.tree.leaves(tree) for tree in (mask, free, masked)), strict=True
        ):
            np.testing.assert_array_equal(
                bits(a)[np.asarray(m)], bits(b)[np.asarray(m)]
            )

    def test_accumulation_around_the_masked_chain(self):
        # Between its steps MultiSteps emits 0 · (−0) = −0, which adds nothing either.
        params = {"w": jnp.array([-0.0, 1.0, 2.0])}
        mask = {"w": jnp.array([False, False, True])}
        chained = optax.chain(optax.adamw(0.1), transforms.mask_updates(mask))
        tx: Any = optax.MultiSteps(chained, 3).gradient_transformation()
        moved = walk(tx, params, {"w": jnp.ones((7, 3))})["w"]
        np.testing.assert_array_equal(bits(moved)[:2], bits(params["w"])[:2])
        self.assertLess(moved[2], 2)

    def test_subnormal_weights_at_most_flush_to_zero(self):
        weights = jnp.array([1e-40, -1e-40])
        moved = walk(optax.adamw(0.1), weights, jnp.ones((3, 2)), jnp.zeros(2, bool))
        signs = bits(weights) & np.uint32(1 << 31)
        kept = (bits(moved) == bits(weights)) | (bits(moved) == signs)
        self.assertTrue(kept.all())

    @parameterized.parameters(jnp.float32, jnp.bfloat16, jnp.float16)
    def test_closed_form(self, dtype):
        updates = jnp.array([1.0, -2.0, jnp.nan], dtype)
        tx: Any = transforms.mask_updates(jnp.array([True, False, False]))
        masked, _ = tx.update(updates, tx.init(updates))
        self.assertEqual(masked.dtype, dtype)
        np.testing.assert_array_equal(
            bits(masked), bits(jnp.array([1.0, -0.0, -0.0], dtype))
        )

    def test_weight_decay_behind_the_mask_would_move_frozen_weights(self):
        # The control for the tests above: they can tell a mask that comes first.
        params, mask = jnp.ones(2), jnp.array([True, False])
        wrong = optax.chain(
            transforms.mask_updates(mask), optax.adamw(0.1, weight_decay=0.1)
        )
        self.assertNotEqual(walk(wrong, params, jnp.ones((1, 2)))[1], 1)


class CombineGradientsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.params = random_tree(0)
        self.retain = [random_tree(seed) for seed in range(10, 16)]
        self.forget = [random_tree(seed) for seed in range(20, 26)]

    def walk(self, tx):
        """Updates of six steps."""
        state, found = tx.init(self.params), []
        update = jax.jit(tx.update)
        for retain, forget in zip(self.retain, self.forget, strict=True):
            updates, state = update(retain, state, self.params, forget_grads=forget)
            found.append(updates)
        return found

    @parameterized.product(
        scheduled=[False, True], per_tensor=[False, True], weighted_norm=[False, True]
    )
    def test_correct_updates(self, scheduled, per_tensor, weighted_norm):
        def threshold_at(step):
            return 0.2 - 0.15 * step

        def weight_at(step):
            return 0.5**step

        options: dict[str, Any] = {
            "per_tensor": per_tensor,
            "weighted_norm": weighted_norm,
        }
        found = self.walk(
            transforms.correct_updates(threshold_at, weight_at, **options)
            if scheduled
            else transforms.correct_updates(-0.1, jnp.float32(0.5), **options)
        )
        for step, updates in enumerate(found):
            wanted = correction.correct(
                self.retain[step],
                self.forget[step],
                threshold=threshold_at(step) if scheduled else -0.1,
                forget_weight=weight_at(step) if scheduled else 0.5,
                **options,
            )
            chex.assert_trees_all_close(updates, wanted, rtol=1e-2, atol=1e-6)
            chex.assert_trees_all_equal_dtypes(updates, self.retain[step])

    def test_the_threshold_schedule_decides_when_to_fire(self):
        retain, forget = jnp.array([2.0, 0.0]), jnp.array([3.0, 4.0])  # cosine 0.6
        tx: Any = transforms.correct_updates(lambda step: 0.72 - 0.05 * step, 1.0)
        state, fired = tx.init(retain), []
        for _ in range(4):
            updates, state = tx.update(retain, state, forget_grads=forget)
            fired.append(not np.array_equal(updates, retain))
        self.assertEqual(fired, [False, False, False, True])  # 0.72, 0.67, 0.62, 0.57
        self.assertEqual(state.count, 4)
        self.assertEqual(state.count.dtype, jnp.int32)

    @parameterized.named_parameters(
        ("number", 0.75, [0.75] * 6),
        ("array", jnp.float32(0.75), [0.75] * 6),
        (
            "schedule",
            optax.linear_schedule(1.0, 0.0, 4),
            [1.0, 0.75, 0.5, 0.25, 0.0, 0.0],
        ),
    )
    def test_blend_updates(self, share, shares):
        for updates, retain, forget, a in zip(
            self.walk(transforms.blend_updates(share)),
            self.retain,
            self.forget,
            shares,
            strict=True,
        ):
            for u, r, f in zip(
                *(jax.tree.leaves(tree) for tree in (updates, retain, forget)),
                strict=True,
            ):
                self.assertEqual(u.dtype, r.dtype)
                wanted = a * np.float32(r) + (1 - a) * np.float32(f)
                tolerance = 4 * float(jnp.finfo(u.dtype).eps)
                np.testing.assert_allclose(np.float32(u), wanted, atol=3 * tolerance)

    @parameterized.named_parameters(
        ("number", 0.5, [0.5] * 6),
        ("schedule", lambda step: 1.0 / (1 + step), [1 / (1 + i) for i in range(6)]),
    )
    def test_project_conflicting_updates(self, weight, weights):
        found = self.walk(transforms.project_conflicting_updates(weight))
        for updates, retain, forget, w in zip(
            found, self.retain, self.forget, weights, strict=True
        ):
            wanted = correction.project_conflicts(retain, forget, forget_weight=w)
            chex.assert_trees_all_close(updates, wanted, rtol=2e-2, atol=1e-5)

    def test_the_optimiser_sees_the_corrected_gradient(self):
        # By hand: momentum over corrected gradients, weight decay, then the mask.
        mask = {"w": jnp.array([True, False, True])}
        params: Any = {"w": jnp.array([1.0, 2.0, 3.0])}
        tx: Any = optax.chain(
            transforms.correct_updates(-1.5, 0.5),
            optax.add_decayed_weights(0.1),
            optax.sgd(0.1, momentum=0.9),
            transforms.mask_updates(mask),
        )
        state = tx.init(params)
        w, trace = np.array([1.0, 2.0, 3.0]), np.zeros(3)
        for seed in range(5):
            r, f = np.random.default_rng(seed).normal(size=(2, 3))
            r_hat, f_hat = r / np.linalg.norm(r), f / np.linalg.norm(f)
            u = (r_hat + 0.5 * f_hat) / np.linalg.norm(r_hat + f_hat)
            trace = u + 0.1 * w + 0.9 * trace
            w = w - 0.1 * trace * np.array([1, 0, 1])
            updates, state = tx.update(
                {"w": jnp.asarray(r, jnp.float32)},
                state,
                params,
                forget_grads={"w": jnp.asarray(f, jnp.float32)},
            )
            params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["w"], w, rtol=1e-5)

    @parameterized.named_parameters(
        ("correct", transforms.correct_updates(0.5, 1.0)),
        ("project", transforms.project_conflicting_updates()),
        ("blend", transforms.blend_updates(0.5)),
    )
    def test_a_missing_forget_gradient_raises(self, tx):
        chained = optax.chain(tx, optax.sgd(0.1))
        with self.assertRaisesRegex(ValueError, "forget_grads=None, wanted"):
            chained.update(self.params, chained.init(self.params), self.params)


def soft_threshold_by_hand(start, grads, fractions, learning_rate, momentum):
    """SalUn-soft in NumPy, float64, on a flat vector: every iterate."""
    w, trace, path = start.copy(), np.zeros_like(start), []
    for g, fraction in zip(grads, fractions, strict=True):
        trace = g + momentum * trace
        delta = w - learning_rate * trace - start
        rank = math.floor(fraction * start.size)
        gamma = np.sort(np.abs(delta))[rank - 1] if rank else 0.0
        w = start + np.sign(delta) * np.maximum(np.abs(delta) - gamma, 0)
        path.append(w)
    return path


class SoftThresholdTest(parameterized.TestCase):
    def walk(self, fraction, start, grads, learning_rate=0.1, momentum=0.9):
        """Every iterate, from a tree of two leaves that holds the flat vector."""
        tx: Any = optax.chain(
            optax.sgd(learning_rate, momentum=momentum),
            transforms.soft_threshold_updates(fraction),
        )

        def tree(x):
            return {"a": jnp.float32(x[:12].reshape(3, 4)), "b": jnp.float32(x[12:])}

        @jax.jit
        def step(params, state, g):
            updates, state = tx.update(g, state, params)
            return optax.apply_updates(params, updates), state

        params = tree(start)
        state, path = tx.init(params), []
        for g in grads:
            params, state = step(params, state, tree(g))
            path.append(np.concatenate([np.ravel(params["a"]), params["b"]]))
        return path

    @parameterized.named_parameters(
        ("number", 0.3, [0.3] * 25),
        ("none", 0.0, [0.0] * 25),
        ("all", 1.0, [1.0] * 25),
        (
            "linear",
            optax.linear_schedule(0.5, 0.0, 16),  # exact in float32
            [0.5 * (1 - min(step / 16, 1)) for step in range(25)],
        ),
    )
    def test_follows_the_formula(self, fraction, fractions):
        rng = np.random.default_rng(0)
        start = rng.normal(size=20).astype(np.float32).astype(np.float64)
        grads = rng.normal(size=(25, 20)).astype(np.float32)
        found = self.walk(fraction, start, grads)
        wanted = soft_threshold_by_hand(start, grads, fractions, 0.1, 0.9)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)

    def test_pulled_weights_are_exactly_back_at_the_first_parameters(self):
        # Multiples of 1/64 add without rounding, as long as they stay small.
        rng = np.random.default_rng(1)
        start = rng.integers(-64, 64, 20) / 64
        grads = rng.integers(-64, 64, (10, 20)) / 64
        path = self.walk(0.4, start, grads, learning_rate=1.0, momentum=0.0)
        wanted = soft_threshold_by_hand(start, grads, [0.4] * 10, 1.0, 0.0)
        np.testing.assert_array_equal(path, np.asarray(wanted, np.float32))
        for w in path:
            self.assertGreaterEqual(np.sum(w == np.float32(start)), 8)
        self.assertGreater(np.abs(path[-1] - start).max(), 0.5)

    def test_nothing_to_pull_leaves_the_updates_bits(self):
        # Far from the anchor, θ + u − θ₀ could not hold so small a step.
        tx: Any = transforms.soft_threshold_updates(0.0)
        state = tx.init(jnp.array([1.0, 0.0]))
        updates = jnp.array([1e-9, 3.0])
        found, _ = tx.update(updates, state, jnp.array([0.0, 5.0]))
        np.testing.assert_array_equal(found, updates)

    @parameterized.parameters((0.57, 100), (0.29, 100), (0.1, 30), (0.7, 10))
    def test_rank_is_the_floor_of_plain_arithmetic(self, fraction, n):
        # As in top_fraction_mask: 0.57 · 100 is just below 57, in float32 just 57.
        tx: Any = transforms.soft_threshold_updates(fraction)
        params = jnp.zeros(n)
        steps = jnp.arange(1.0, n + 1)
        updates, _ = tx.update(steps, tx.init(params), params)
        self.assertEqual(np.sum(updates == 0), math.floor(fraction * n))
        mask = saliency.top_fraction_mask(-steps, fraction)
        np.testing.assert_array_equal(np.asarray(updates) == 0, mask)

    @parameterized.parameters(jnp.bfloat16, jnp.float16)
    def test_low_precision(self, dtype):
        params = jnp.array([1.0, 2.0, -3.0, 0.5], dtype)
        tx: Any = transforms.soft_threshold_updates(0.5)
        state = tx.init(params)
        self.assertEqual(state.anchor.dtype, dtype)
        step = jnp.array([0.25, -0.5, 1.0, 0.125], dtype)
        updates, _ = tx.update(step, state, params)
        self.assertEqual(updates.dtype, dtype)
        np.testing.assert_array_equal(updates, jnp.array([0.0, -0.25, 0.75, 0], dtype))

    def test_anchor_is_a_copy_of_the_first_parameters(self):
        params = {"w": jnp.arange(3.0)}
        tx: Any = transforms.soft_threshold_updates(0.5)
        state = tx.init(params)
        donating = jax.jit(lambda p: jax.tree.map(jnp.sin, p), donate_argnums=0)
        moved = donating(params)
        np.testing.assert_array_equal(state.anchor["w"], [0, 1, 2])
        _, state = tx.update(moved, state, moved)
        np.testing.assert_array_equal(state.anchor["w"], [0, 1, 2])
        self.assertEqual(state.count, 1)

    def test_missing_params_raise(self):
        tx: Any = optax.chain(optax.sgd(0.1), transforms.soft_threshold_updates(0.5))
        with self.assertRaisesRegex(ValueError, "params=None, wanted"):
            tx.update(jnp.ones(2), tx.init(jnp.ones(2)))

    @parameterized.parameters(-0.1, 1.5, float("nan"))
    def test_a_fraction_outside_raises(self, fraction):
        with self.assertRaisesRegex(ValueError, "fraction=.*wanted"):
            transforms.soft_threshold_updates(fraction)


class ProjectUpdatesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)

        def normal(*shape):
            return jnp.asarray(rng.normal(size=shape), jnp.float32)

        self.params = {
            "dense": normal(6, 5),
            "conv": normal(3, 3, 2, 4),
            "b": normal(5),
        }
        grads = {"dense": normal(6, 5), "conv": normal(3, 3, 2, 4), "b": normal(5)}
        self.bases = subspace.svd_bases(grads, rank=2)
        self.target = jax.tree.map(lambda p: p[::-1], grads)

    def loss(self, params):
        return sum(
            jnp.sum(jnp.sin(p - t))
            for p, t in zip(
                jax.tree.leaves(params), jax.tree.leaves(self.target), strict=True
            )
        )

    def train(self, tx, loss, params: Any) -> Any:
        @jax.jit
        def step(params, state):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        state = tx.init(params)
        for _ in range(6):
            params, state = step(params, state)
        return params

    @parameterized.parameters(True, False)
    def test_walks_as_training_the_cores_does(self, project_first):
        sgd = optax.sgd(0.1, momentum=0.9)
        project = transforms.project_updates(self.bases, freeze_rest=True)
        tx: Any = (
            optax.chain(project, sgd) if project_first else optax.chain(sgd, project)
        )
        moved = self.train(tx, self.loss, self.params)
        cores = self.train(
            sgd,
            lambda c: self.loss(subspace.apply_cores(self.params, self.bases, c)),
            subspace.init_cores(self.bases),
        )
        wanted = subspace.apply_cores(self.params, self.bases, cores)
        chex.assert_trees_all_close(moved, wanted, rtol=1e-4, atol=1e-5)
        self.assertGreater(
            float(jnp.abs(moved["dense"] - self.params["dense"]).max()), 0.01
        )
        np.testing.assert_array_equal(bits(moved["b"]), bits(self.params["b"]))

    def test_other_leaves_pass_unless_frozen(self):
        tx: Any = transforms.project_updates(self.bases)
        updates, _ = tx.update(self.target, tx.init(self.params))
        np.testing.assert_array_equal(updates["b"], self.target["b"])
        frozen: Any = transforms.project_updates(self.bases, freeze_rest=True)
        updates, _ = frozen.update(self.target, frozen.init(self.params))
        np.testing.assert_array_equal(bits(updates["b"]), bits(jnp.full(5, -0.0)))

    def test_closed_form_of_a_dense_kernel(self):
        basis = self.bases["dense"]
        u, v = np.asarray(basis.left[0]), np.asarray(basis.right[0])
        tx: Any = transforms.project_updates(self.bases)
        updates, _ = tx.update(self.target, tx.init(self.params))
        wanted = u @ u.T @ np.asarray(self.target["dense"]) @ v @ v.T
        np.testing.assert_allclose(updates["dense"], wanted, atol=1e-5)

    def test_last_in_the_chain_it_holds_adam_to_the_subspace(self):
        tx: Any = optax.chain(
            optax.adamw(0.01), transforms.project_updates(self.bases, freeze_rest=True)
        )
        moved = self.train(tx, self.loss, self.params)
        delta = jax.tree.map(jnp.subtract, moved, self.params)
        chex.assert_trees_all_close(
            subspace.project(delta, self.bases), delta, atol=1e-5
        )


if __name__ == "__main__":
    absltest.main()
