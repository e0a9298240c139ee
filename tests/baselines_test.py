"""Baselines of other papers, each held to a formula written in NumPy."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from mujax import methods, roles, transforms

RNG = np.random.default_rng(0)
X, W = RNG.normal(size=(12, 5)).astype(np.float32), RNG.normal(size=(5, 4)) / 2
W = W.astype(np.float32)
Y = (np.arange(12) % 4).astype(np.int32)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def outputs_fn(w, model_state, batch, key):
    del key
    x, labels = batch
    return methods.Outputs(x @ w, labels, None, model_state)


def loss_fn(w, model_state, batch, key):
    ours = outputs_fn(w, model_state, batch, key)
    losses = optax.softmax_cross_entropy_with_integer_labels(ours.logits, ours.labels)
    return jnp.mean(losses), (model_state, None)


def cross_entropy_gradient(w, x, y):
    p = softmax(x @ w)
    p[np.arange(len(y)), y] -= 1
    return x.T @ p / len(y)


def moved(method, state, *batches, **options):
    """What a state's parameters are after a step on each batch."""
    for batch in batches:
        state, _ = method.step(state, batch, **options)
    return np.asarray(method.finish(state)[0])


class SparseTest(parameterized.TestCase):
    def test_penalty_fades_on_all_parameters_and_spares_zero(self):
        method = methods.l1_sparse(
            loss_fn, optax.sgd(0.1), strength=optax.linear_schedule(0.5, 0.0, 2)
        )
        w = W.copy()
        w[0, 0] = 0
        state, wanted = method.init(jnp.asarray(w)), w
        for strength in (0.5, 0.25, 0.0):
            gradient = cross_entropy_gradient(wanted, X, Y)
            wanted = wanted - 0.1 * (gradient + strength * np.sign(wanted))
            state, _ = method.step(state, (X, Y))
            found = method.finish(state)[0]
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


class DampeningTest(parameterized.TestCase):
    def test_ssd_by_the_released_importance(self):
        batches = [(X[i : i + 3], Y[i : i + 3]) for i in range(0, 12, 3)]
        method = methods.ssd(loss_fn, threshold=1.5, dampening=0.8)
        state = method.init(jnp.asarray(W), (), batches[:1])
        found = moved(method, state, *batches)
        squares = [cross_entropy_gradient(W, *batch) ** 2 for batch in batches]
        forget, everything = squares[0], np.mean(squares, 0)
        factor = np.minimum(0.8 * everything / forget, 1)
        wanted = np.where(forget > 1.5 * everything, factor * W, W)
        np.testing.assert_allclose(found, wanted, rtol=1e-4)
        self.assertBetween(np.sum(wanted != W), 2, 18)

    def test_ssd_twice_over_the_data_is_the_same(self):
        batches = [(X[:6], Y[:6]), (X[6:], Y[6:])]
        method = methods.ssd(loss_fn, threshold=1.1)
        state = method.init(jnp.asarray(W), (), batches[:1])
        np.testing.assert_allclose(
            moved(method, state, *batches),
            moved(method, state, *batches, *batches),
            rtol=1e-5,
        )

    def test_fisher_noise_has_the_deviation_of_the_formula(self):
        noise, cap = 1e-3, 0.05
        method = methods.fisher(loss_fn, noise=noise, cap=cap)
        state = method.init(jnp.asarray(W))

        @jax.jit
        def drawn(key):
            done, _ = method.step(state, (X, Y), key=key)
            return method.finish(done)[0] - W

        samples = jax.vmap(drawn)(jax.random.split(jax.random.key(0), 4000))
        fisher = np.mean(
            [
                cross_entropy_gradient(W, X[i : i + 1], Y[i : i + 1]) ** 2
                for i in range(12)
            ],
            0,
        )
        wanted = np.minimum(np.sqrt(noise / fisher), cap)
        np.testing.assert_allclose(samples.std(0), wanted, rtol=0.06)
        np.testing.assert_allclose(samples.mean(0), 0, atol=0.004)
        self.assertTrue((wanted < cap).any() and (wanted == cap).any())

    @parameterized.named_parameters(
        ("typed", jax.random.key(0)),
        ("raw", jax.random.PRNGKey(0)),
        ("of_another_kind", jax.random.key(0, impl="rbg")),
    )
    def test_fisher_takes_any_key_and_wants_one(self, key):
        method = methods.fisher(loss_fn, noise=1.0, cap=0.1)
        state = method.init(jnp.asarray(W))
        found, again = (moved(method, state, (X, Y), key=k) for k in (key, key))
        np.testing.assert_array_equal(found, again)
        self.assertTrue((found != W).all())
        with self.assertRaisesRegex(ValueError, "key=None"):
            method.step(state, (X, Y))

    def test_fisher_gives_the_head_ten_times_the_noise(self):
        options: Any = {"noise": 1.0, "cap": 1e-3}
        found = [
            moved(
                method := methods.fisher(loss_fn, num_classes=classes, **options),
                method.init(jnp.asarray(W)),
                (X, Y),
                key=jax.random.key(1),
            )
            - W
            for classes in (None, 4)
        ]
        np.testing.assert_allclose(found[1], 10 * found[0], rtol=2e-3, atol=1e-6)


def divergence_gradient(w, x, target, temperature=1.0):
    """Of the mean of T² KL(target‖softmax(x w / T)) by w, a row an example."""
    student = softmax(x @ w / temperature)
    return [
        np.outer(a, temperature * (s - t))
        for a, s, t in zip(x, student, target, strict=True)
    ]


class DistillationTest(parameterized.TestCase):
    def test_scrub(self):
        rate, weights, heat = 0.1, (0.7, 0.3), 3.0
        method = methods.scrub(
            outputs_fn,
            optax.sgd(rate),
            max_steps=2,
            cross_entropy=weights[0],
            stay=weights[1],
            temperature=heat,
        )
        labels = np.where(np.arange(12) < 5, -1, Y)
        student = W + 0.1 * RNG.normal(size=W.shape).astype(np.float32)
        state = method.init(jnp.asarray(W))._replace(trained=jnp.asarray(student))
        teacher, w = softmax(X @ W / heat), student
        for step in range(3):
            apart = divergence_gradient(w, X, teacher, heat)
            total = np.zeros_like(w)
            for i in range(12):
                if labels[i] < 0:
                    total -= apart[i] if step < 2 else 0
                else:
                    one = X[i : i + 1], Y[i : i + 1]
                    total += weights[0] * cross_entropy_gradient(w, *one)
                    total += weights[1] * apart[i]
            w = w - rate * total / 12
            state, _ = method.step(state, (X, labels))
            np.testing.assert_allclose(method.finish(state)[0], w, rtol=2e-4, atol=1e-6)

    def test_bad_teacher(self):
        random = RNG.normal(size=W.shape).astype(np.float32)
        method = methods.bad_teacher(
            outputs_fn, optax.sgd(0.1), incompetent=(jnp.asarray(random), ())
        )
        gone = np.arange(12) % 3 == 0
        target = np.where(gone[:, None], softmax(X @ random), softmax(X @ W))
        found = moved(
            method,
            method.init(jnp.asarray(W)),
            (X, np.where(gone, -1, Y).astype(np.int32)),
        )
        wanted = W - 0.1 * np.mean(divergence_gradient(W, X, target), 0)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)

    def test_delete_drops_the_true_class_and_keeps_the_others_ratios(self):
        method = methods.delete(outputs_fn, optax.sgd(0.1))
        target = softmax(X @ W)
        target[np.arange(12), Y] = 0
        target /= target.sum(1, keepdims=True)
        found = moved(method, method.init(jnp.asarray(W)), (X, Y))
        wanted = W - 0.1 * np.mean(divergence_gradient(W, X, target), 0)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)

    def test_labels_that_know_no_minus_are_refused(self):
        for dtype in (np.uint8, np.uint32):
            with self.assertRaisesRegex(TypeError, "signed"):
                methods.mark_forgotten(None, jnp.arange(3).astype(dtype), 3)

    def test_teachers_look_with_the_statistics_of_the_original(self):
        def moving(w, model_state, batch, key):
            del key
            x, labels = batch
            return methods.Outputs(model_state * (x @ w), labels, None, 2 * model_state)

        def steady(w, model_state, batch, key):
            return moving(w, model_state, batch, key)._replace(model_state=model_state)

        for outputs, scale in ((moving, 2.0), (steady, 1.0)):
            method = methods.delete(outputs, optax.sgd(0.1), eval_outputs_fn=steady)
            state = method.init(jnp.asarray(W), jnp.float32(1))
            state, _ = method.step(state, (X, Y))
            w = np.asarray(method.finish(state)[0])
            target = softmax(X @ W)
            target[np.arange(12), Y] = 0
            target /= target.sum(1, keepdims=True)
            # By the second step the student's outputs are scaled, the teacher's not.
            student = softmax(scale * (X @ w))
            gradient = X.T @ (scale * (student - target)) / 12
            found = moved(method, state, (X, Y))
            np.testing.assert_allclose(found, w - 0.1 * gradient, rtol=1e-4, atol=1e-6)


KERNELS: Any = {
    "conv": {
        "kernel": RNG.normal(size=(3, 3, 2, 4)).astype(np.float32),
        "bias": np.ones(4, np.float32),
    },
    "point": {"kernel": RNG.normal(size=(1, 1, 4, 4)).astype(np.float32)},
    "dense": {"kernel": RNG.normal(size=(4, 3)).astype(np.float32)},
}


def linear(params, model_state, batch, key):
    """A loss whose gradient is the batch's mean."""
    del key
    parts = jax.tree.map(lambda p, b: jnp.sum(p * b.mean(0)), params, batch)
    return jax.tree.reduce(jnp.add, parts), (model_state, None)


def batch_of(tree):
    return jax.tree.map(lambda x: x[None], tree)


def at_start(*batches, seed=0) -> dict[str, Any]:
    """What MSG wants at its start besides the forget batches."""
    return {"retain_batches": list(batches), "key": jax.random.key(seed)}


# Heads as many as each is wide: a window by its shape alone.
ATTENTION: Any = {
    name: {"kernel": RNG.normal(size=(16, 4, 4)).astype(np.float32)}
    for name in ("query", "key", "value")
} | {"out": {"kernel": RNG.normal(size=(4, 4, 16)).astype(np.float32)}}


class ResetsTest(parameterized.TestCase):
    def test_attention_is_no_convolution(self):
        ct = methods.ct(linear, optax.sgd(0.1))
        chex.assert_trees_all_equal(ct.finish(ct.init(ATTENTION))[0], ATTENTION)
        msg = methods.msg(linear, optax.sgd(0.1), fraction=1.0)
        batch = batch_of(ATTENTION)
        state = msg.init(ATTENTION, (), [batch], **at_start(batch))
        chex.assert_trees_all_equal(msg.finish(state)[0], ATTENTION)

    def test_what_the_caller_calls_a_convolution_is_one(self):
        params = {"odd": KERNELS["conv"]["kernel"]}
        view = roles.MatrixAxes(batch=(2,), rows=(3,), columns=(0, 1))
        ct = methods.ct(linear, optax.sgd(0.1), overrides={"odd": view})
        found = ct.finish(ct.init(params))[0]["odd"]
        np.testing.assert_array_equal(found, params["odd"].transpose(1, 0, 2, 3))

    def test_windows_of_one_axis_are_drawn_anew_and_not_transposed(self):
        kernel = RNG.normal(size=(3, 3, 8)).astype(np.float32)
        params = {"Conv_0": {"kernel": kernel}}
        ct = methods.ct(linear, optax.sgd(0.1))
        found = ct.finish(ct.init(params))[0]["Conv_0"]["kernel"]
        np.testing.assert_array_equal(found, kernel)
        msg = methods.msg(linear, optax.sgd(0.1), fraction=1.0)
        batch = batch_of(params)
        state = msg.init(params, (), [batch], **at_start(batch))
        found = np.asarray(msg.finish(state)[0]["Conv_0"]["kernel"])
        self.assertFalse((found == kernel).any())

    def test_ct_transposes_windows_alone(self):
        method = methods.ct(linear, optax.sgd(0.1))
        found = method.finish(method.init(KERNELS))[0]
        np.testing.assert_array_equal(
            found["conv"]["kernel"], KERNELS["conv"]["kernel"].transpose(1, 0, 2, 3)
        )
        for leaf in (("conv", "bias"), ("point", "kernel"), ("dense", "kernel")):
            layer, name = leaf
            np.testing.assert_array_equal(found[layer][name], KERNELS[layer][name])

    def test_ct_under_a_mask_moves_what_may_move(self):
        mask = jax.tree.map(lambda x: np.ones(x.shape, bool), KERNELS)
        mask["conv"]["kernel"][0] = False
        found = (method := methods.ct(linear, optax.sgd(0.1))).finish(
            method.init(KERNELS, mask=mask)
        )[0]["conv"]["kernel"]
        kernel = KERNELS["conv"]["kernel"]
        np.testing.assert_array_equal(found[0], kernel[0])
        np.testing.assert_array_equal(found[1:], kernel.transpose(1, 0, 2, 3)[1:])

    def test_msg_draws_the_smallest_differences_anew(self):
        fraction, rate = 0.25, 0.1
        method = methods.msg(linear, optax.sgd(rate), fraction=fraction, kept_rate=0.3)
        rng = np.random.default_rng(1)
        forget, retain = (
            jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), KERNELS)
            for _ in range(2)
        )
        state = method.init(
            KERNELS, (), [batch_of(forget)], **at_start(batch_of(retain))
        )
        begun = method.finish(state)[0]
        kernel = KERNELS["conv"]["kernel"]
        distance = np.abs(retain["conv"]["kernel"] - forget["conv"]["kernel"])
        count = int(fraction * kernel.size)
        new = np.zeros(kernel.size, bool)
        new[np.argsort(distance.ravel(), kind="stable")[:count]] = True
        new = new.reshape(kernel.shape)
        np.testing.assert_array_equal(
            np.asarray(begun["conv"]["kernel"]) != kernel, new
        )
        np.testing.assert_array_equal(
            begun["dense"]["kernel"], KERNELS["dense"]["kernel"]
        )
        np.testing.assert_array_equal(begun["conv"]["bias"], KERNELS["conv"]["bias"])
        # One step: the gradient is the batch, slower where a kernel's entry was kept.
        done, _ = method.step(state, batch_of(retain))
        step = jax.tree.map(lambda a, b: a - b, method.finish(done)[0], begun)
        rates = np.where(new, rate, 0.3 * rate)
        np.testing.assert_allclose(
            step["conv"]["kernel"],
            -rates * retain["conv"]["kernel"],
            rtol=1e-3,
            atol=1e-6,
        )
        for name in ("bias",):
            np.testing.assert_allclose(
                step["conv"][name], -rate * retain["conv"][name], rtol=1e-3, atol=1e-6
            )

    def test_msg_draws_by_kaiming_with_the_fan_out(self):
        params = {"conv": {"kernel": np.zeros((3, 3, 50, 40), np.float32)}}
        method = methods.msg(linear, optax.sgd(0.1), fraction=1.0)
        batches = [batch_of(params)]
        state = method.init(params, (), batches, **at_start(*batches))
        drawn = np.asarray(method.finish(state)[0]["conv"]["kernel"])
        self.assertAlmostEqual(drawn.std(), np.sqrt(2 / (9 * 40)), delta=0.001)
        state = method.init(params, (), batches, **at_start(*batches, seed=1))
        again = method.finish(state)[0]["conv"]["kernel"]
        self.assertFalse(np.array_equal(again, drawn))

    def test_msg_says_what_it_wants(self):
        method = methods.msg(linear, optax.sgd(0.1))
        with self.assertRaisesRegex(ValueError, "retain_batches=None"):
            method.init(KERNELS, (), [batch_of(KERNELS)])
        with self.assertRaisesRegex(ValueError, "forget_batches=None"):
            method.init(KERNELS, (), **at_start(batch_of(KERNELS)))
        with self.assertRaisesRegex(ValueError, "key=None"):
            batches = [batch_of(KERNELS)]
            method.init(KERNELS, (), batches, retain_batches=batches)
        with self.assertRaisesRegex(ValueError, "fraction"):
            methods.msg(linear, optax.sgd(0.1), fraction=1.5).init(KERNELS, (), [])


class BoundaryTest(parameterized.TestCase):
    @parameterized.parameters(None, 20)
    def test_labels_are_those_across_the_boundary(self, levels):
        x = 0.5 + X / 8  # near the middle of the bounds
        method = methods.boundary_shrink(
            outputs_fn,
            optax.sgd(0.3),
            get_inputs=lambda batch: batch[0],
            set_inputs=lambda batch, x: (x, batch[1]),
            size=0.3,
            levels=levels,
        )
        found = moved(method, method.init(jnp.asarray(W)), (x, Y), (x, Y))
        error = softmax(x @ W)
        error[np.arange(12), Y] -= 1
        near = np.clip(x + 0.3 * np.sign(error @ W.T), 0, 1)
        near = near if levels is None else np.round(near * levels) / levels
        labels = np.argmax(near @ W, -1)
        self.assertBetween(np.sum(labels != np.argmax(x @ W, -1)), 1, 11)
        wanted = W
        for _ in range(2):  # the labels stay the original's
            wanted = wanted - 0.3 * cross_entropy_gradient(wanted, x, labels)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


class AdversarialTest(absltest.TestCase):
    def test_amun_learns_the_nearest_wrong_neighbour(self):
        x, size, radii, steps = 0.5 + X / 8, 0.1, 3, 5
        retain, forget = (x[:6], Y[:6]), (x[6:], Y[6:])
        method = methods.amun(
            outputs_fn,
            optax.sgd(0.3),
            get_inputs=lambda batch: batch[0],
            set_inputs=lambda batch, x: (x, batch[1]),
            share=0.25,
            size=size,
            radii=radii,
            attack_steps=steps,
        )
        state = method.init(jnp.asarray(W))
        for _ in range(2):
            state, _ = method.step(state, retain, forget_batch=forget)

        def attack(x, y, radius):
            moved = np.zeros_like(x)
            for _ in range(steps):
                error = softmax((x + moved) @ W) - np.eye(4)[y]
                gradient = W @ error
                moved += 2.5 * radius / steps * gradient / np.linalg.norm(gradient)
                moved *= min(1, radius / np.linalg.norm(moved))
                moved = np.clip(x + moved, 0, 1) - x
            return x + moved

        near, labels, found_in = [], [], []
        for one, label in zip(*forget, strict=True):
            i, there = 0, one
            for i in range(radii):
                there = attack(one, label, size * 2**i)
                if np.argmax(there @ W) != label:
                    break
            near.append(there)
            labels.append(np.argmax(np.where(np.arange(4) == label, -9, there @ W)))
            found_in.append(i)
        self.assertGreater(len(set(found_in)), 1)
        w, adversarial = W, (np.array(near), np.array(labels))
        for _ in range(2):  # the neighbours stay the original's
            ours, theirs = (
                cross_entropy_gradient(w, *batch) for batch in (retain, adversarial)
            )
            w = w - 0.3 * (0.75 * ours + 0.25 * theirs)
        np.testing.assert_allclose(method.finish(state)[0], w, rtol=1e-3, atol=1e-5)


class TwoStreamsTest(parameterized.TestCase):
    @parameterized.parameters(0.02, 0.8, 3.0)
    def test_gdr_gma_by_its_formula(self, level):
        method = methods.gdr_gma(loss_fn, optax.sgd(0.2), level=level, slope=4.0)
        retain, forget = (X[:8], Y[:8]), (X[4:], Y[4:])
        found = moved(method, method.init(jnp.asarray(W)), retain, forget_batch=forget)
        r, f = cross_entropy_gradient(W, *retain), -cross_entropy_gradient(W, *forget)
        self.assertLess(np.sum(r * f), 0)  # they conflict
        p = softmax(retain[0] @ W)[np.arange(8), retain[1]]
        share = 1 / (1 + np.exp(4 * (np.mean(-np.log(p)) - level)))
        wanted = W - 0.2 * (
            (1 - share) * (r - np.sum(r * f) / np.sum(f * f) * f)
            + share * (f - np.sum(r * f) / np.sum(r * r) * r)
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)

    def test_separate_optimisers_do_not_mix_their_momenta(self):
        combine = transforms.separate_updates(
            optax.sgd(0.1, momentum=0.9), optax.sgd(0.2, momentum=0.5)
        )
        method = methods.neggrad_plus(loss_fn, optax.identity(), combine=combine)
        state, w = method.init(jnp.asarray(W)), W
        trace = np.zeros((2, *W.shape))
        for i in range(3):
            batches = (X[i : i + 6], Y[i : i + 6]), (X[i + 3 :], Y[i + 3 :])
            state, _ = method.step(state, batches[0], forget_batch=batches[1])
            r, f = (cross_entropy_gradient(w, *batch) for batch in batches)
            trace = np.array([0.9 * trace[0] + r, 0.5 * trace[1] - f])
            w = w - 0.1 * trace[0] - 0.2 * trace[1]
        np.testing.assert_allclose(method.finish(state)[0], w, rtol=1e-4, atol=1e-6)

    def test_sfron_by_its_formula(self):
        retain, forget = (X[:8], Y[:8]), (X[7:], Y[7:])
        method = methods.sfron(
            outputs_fn, optax.sgd(0.1), optax.sgd(0.5, momentum=0.9), every=2
        )
        state, w = method.init(jnp.asarray(W), (), [forget], retain_batches=[retain]), W

        def fisher(x, y):
            ones = [slice(i, i + 1) for i in range(len(y))]
            squares = [cross_entropy_gradient(W, x[i], y[i]) ** 2 for i in ones]
            return np.mean(squares, 0)

        mask = fisher(*forget) >= fisher(*retain)
        self.assertBetween(mask.mean(), 0.1, 0.9)
        trace = np.zeros_like(W)
        for i in range(3):
            state, _ = method.step(state, retain, forget_batch=forget)
            if i % 2 == 0:
                x, y = forget
                p = softmax(x @ w)
                weights = (-np.log(p[np.arange(5), y])) ** -0.5
                p[np.arange(5), y] -= 1
                ascent = -(x.T @ (p * (weights / weights.mean())[:, None])) / 5
                trace = 0.9 * trace + np.where(mask, ascent, 0)
                w = w - 0.5 * trace
            w = w - 0.1 * cross_entropy_gradient(w, *retain)
        np.testing.assert_allclose(method.finish(state)[0], w, rtol=1e-4, atol=1e-6)


class InfluenceTest(absltest.TestCase):
    def test_equals_the_recursion_of_rank_one_updates(self):
        forget, retain = (X[:4], Y[:4]), [(X[4:8], Y[4:8]), (X[8:], Y[8:])]
        method = methods.influence(loss_fn, scale=0.3, damping=0.05)
        state = method.init(jnp.asarray(W), (), [forget], retain_batches=retain)
        # WoodFisher: the inverse after one example more, by Sherman and Morrison.
        inverse = np.eye(W.size) / 0.05
        for i in range(4, 12):
            g = cross_entropy_gradient(W, X[i : i + 1], Y[i : i + 1]).ravel()
            along = inverse @ g
            inverse = inverse - np.outer(along, along) / (8 + g @ along)
        away = cross_entropy_gradient(W, *forget)
        gap = away - cross_entropy_gradient(W, X[4:], Y[4:])
        wanted = W + 0.3 * (inverse @ gap.ravel()).reshape(W.shape)
        np.testing.assert_allclose(moved(method, state), wanted, rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(
            moved(method, state), moved(method, state, retain[0])
        )

    def test_an_oracle_teaches_its_own_outputs(self):
        other = W[:, ::-1].copy()
        method = methods.oracle_matching(
            outputs_fn, optax.sgd(0.2), oracle=(jnp.asarray(other), ())
        )
        found = moved(method, method.init(jnp.asarray(W)), (X, Y))
        wanted = W - 0.2 * X.T @ (softmax(X @ W) - softmax(X @ other)) / 12
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    absltest.main()
