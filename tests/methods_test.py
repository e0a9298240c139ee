"""The methods against golden vectors, plain optax loops and NumPy formulas.

The other method tests (sharding, pmap, export) take the small network, its data and
:data:`METHODS` from here.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from mujax import labels, methods, saliency, subspace, transforms
from mujax._trees import select
from tests import reference

# A small network with one kernel of each kind and a running mean, and its data.


def tiny_params(seed: int = 0, dtype: Any = jnp.float32) -> dict:
    """A convolution over the whole 4×4 image, then a dense layer."""
    rng = np.random.default_rng(seed)
    shapes = {
        "conv": {"kernel": (4, 4, 2, 6), "bias": (6,)},
        "dense": {"kernel": (6, 4), "bias": (4,)},
    }
    return {
        layer: {
            name: jnp.asarray(rng.normal(scale=0.4, size=shape), dtype)
            for name, shape in leaves.items()
        }
        for layer, leaves in shapes.items()
    }


def tiny_state(dtype: Any = jnp.float32) -> dict:
    """The running mean of the hidden layer, and how often it moved."""
    return {"mean": jnp.full(6, 0.1, dtype), "count": jnp.zeros([], jnp.int32)}


def tiny_batch(seed: int, size: int = 16) -> dict:
    """Random images with their labels."""
    rng = np.random.default_rng(1000 + seed)
    return {
        "x": jnp.asarray(rng.normal(size=(size, 4, 4, 2)), jnp.float32),
        "y": jnp.asarray(rng.integers(4, size=size), jnp.int32),
    }


def tiny_loss(train: bool, axis_name: str | None = None) -> methods.LossFn:
    """Cross-entropy; the hidden layer moves by half the batch's or the running mean.

    Half of it, because the whole would leave a bias no gradient but rounding. With
    ``axis_name`` the batch's mean is that of the whole batch, as in a BatchNorm
    that is synchronised over replicas.
    """

    def loss_fn(params, model_state, batch, key):
        del key
        x = batch["x"].astype(params["conv"]["kernel"].dtype)
        hidden = jnp.einsum("nhwc,hwco->no", x, params["conv"]["kernel"])
        hidden = hidden + params["conv"]["bias"]
        mean, count = model_state["mean"], model_state["count"]
        if train:
            batch_mean = hidden.mean(0)
            if axis_name is not None:
                batch_mean = jax.lax.pmean(batch_mean, axis_name)
            hidden = hidden - batch_mean / 2
            model_state = {"mean": 0.9 * mean + 0.1 * batch_mean, "count": count + 1}
        else:
            hidden = hidden - mean / 2
        logits = jnp.tanh(hidden) @ params["dense"]["kernel"] + params["dense"]["bias"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return loss.mean(), (model_state, logits)

    return loss_fn


TRAIN, EVAL = tiny_loss(train=True), tiny_loss(train=False)


def esd(loss_fn, optimizer, **options) -> methods.Method:
    """ESD with a loss that looks at both parameters."""

    def pair_loss(params, original, model_state, batch, key):
        loss, rest = loss_fn(params, model_state, batch, key)
        moved = jax.tree.map(lambda p, o: jnp.mean((p - o) ** 2), params, original)
        return loss + jax.tree.reduce(jnp.add, moved).astype(loss.dtype), rest

    return methods.esd(pair_loss, optimizer, **options)


METHODS: dict[str, Callable[..., methods.Method]] = {
    "finetune": methods.finetune,
    "gradient_ascent": methods.gradient_ascent,
    "neggrad_plus": methods.neggrad_plus,
    "random_label": methods.random_label,
    "salun": functools.partial(methods.salun, eval_loss_fn=EVAL),
    "salun_soft": functools.partial(methods.salun_soft, total_steps=8),
    "semu": functools.partial(methods.semu, eval_loss_fn=EVAL, energy=0.8),
    "semu_retain": functools.partial(
        methods.semu_retain, eval_loss_fn=EVAL, energy=0.8
    ),
    "ufg": functools.partial(
        methods.ufg, eval_loss_fn=EVAL, threshold=-0.5, refresh_every=2
    ),
    "cufg": functools.partial(
        methods.cufg, eval_loss_fn=EVAL, threshold=-0.5, microbatch_size=4
    ),
    "esd": esd,
}
ADAMW = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.05), optax.ema(0.9))
# One of each shape of step, where compiling all of them shows nothing more.
KINDS = [
    {"testcase_name": name, "name": name}
    for name in ("neggrad_plus", "salun_soft", "semu", "ufg", "cufg")
]
BY_METHOD = [{"testcase_name": name, "name": name} for name in METHODS]


def sgd() -> optax.GradientTransformation:
    """The papers' optimiser, with a step that shows on a small network."""
    return optax.chain(optax.add_decayed_weights(5e-3), optax.sgd(0.1, momentum=0.9))


@functools.cache
def build(name: str) -> methods.Method:
    """A method of the table on the small network."""
    return METHODS[name](TRAIN, sgd())


@functools.cache
def step_of(method: methods.Method) -> Callable:
    """Its step as a loop has it: jitted, and the state donated."""
    return jax.jit(method.step, donate_argnums=0)


def started(method: methods.Method, seed: int = 0, mask: Any = None) -> methods.State:
    """The state of a method before its first step."""
    return method.init(tiny_params(seed), tiny_state(), forget_batches(seed), mask=mask)


def forget_batches(seed: int = 0) -> list[dict]:
    """The forget set of a seed, in batches of two sizes."""
    return [tiny_batch(seed + 1), tiny_batch(seed + 2, 8)]


def random_mask(seed: int = 0, fraction: float = 0.5) -> dict:
    """A random mask of the small network's parameters."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.random(p.shape) < fraction), tiny_params()
    )


def stack(trees: list) -> Any:
    """Trees as one, with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def bits(tree: Any) -> list[bytes]:
    """The leaves' bits, so that -0.0, NaN and subnormal numbers are told apart."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def frozen_bits(mask: Any, params: Any) -> list[bytes]:
    """The bits of the entries where the mask is false."""
    pairs = zip(jax.tree.leaves(mask), jax.tree.leaves(params), strict=True)
    return [np.asarray(p)[~np.asarray(m)].tobytes() for m, p in pairs]


def run(method, state, batches, forget_batch=None):
    """Runs steps; returns the state, the losses and the parameters after each step."""
    losses, trail = [], []
    for batch in batches:
        state, info = step_of(method)(state, batch, forget_batch=forget_batch)
        losses.append(float(info.loss))
        # Copied, because the next step donates the state.
        trail.append(jax.tree.map(np.array, method.finish(state)[0]))
    return state, losses, trail


@jax.jit
def train_grad(params, model_state, batch):
    """The gradient and the model state of the loss in training mode."""
    return jax.grad(TRAIN, has_aux=True)(params, model_state, batch, None)


@jax.jit
def train_loss(params, model_state, batch):
    """The loss in training mode."""
    return TRAIN(params, model_state, batch, None)[0]


@jax.jit
def eval_grad(params, batch):
    """The gradient of the loss in evaluation mode, at the original statistics."""
    return jax.grad(lambda p: EVAL(p, tiny_state(), batch, None)[0])(params)


def golden_loss(params, model_state, batch, key):
    """The golden network's loss in the methods' form."""
    del key
    return reference.loss(params, batch), (model_state, None)


@functools.cache
def golden_salun() -> methods.Method:
    """SalUn as the golden steps were taken."""
    tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.013, momentum=0.9))
    return methods.salun(golden_loss, tx, fraction=0.5)


class GoldenTest(parameterized.TestCase):
    """Against what the released programs computed."""

    @parameterized.named_parameters(("own_mask", False), ("golden_mask", True))
    def test_salun_takes_the_released_steps(self, given):
        model, golden = reference.load("model"), reference.load("salun_steps")
        params = reference.tree(model, "param.")
        released_mask = reference.tree(reference.load("salun_mask"), "mask.0.5.")
        released_mask = jax.tree.map(lambda m: m.astype(bool), released_mask)
        method = golden_salun()
        state = method.init(
            params,
            (),
            None if given else reference.batches(model, "forget"),
            mask=released_mask if given else None,
        )
        chex.assert_trees_all_equal(state.mask, released_mask)

        forget, _ = reference.batches(model, "forget")[0]
        relabelled = (forget, jnp.asarray(golden["random_labels"]))
        retain = reference.batches(model, "retain")[0]
        turns = [relabelled, retain, relabelled, retain, relabelled]
        state, losses, trail = run(method, state, turns)

        np.testing.assert_allclose(losses, golden["losses"], atol=1e-4)
        chex.assert_trees_all_close(
            trail[-1], reference.tree(golden, "param."), atol=1e-4
        )
        # Tighter than the numbers' size: the moves themselves agree.
        moves, wanted = (
            jax.tree.map(jnp.subtract, end, params)
            for end in (trail[-1], reference.tree(golden, "param."))
        )
        chex.assert_trees_all_close(moves, wanted, atol=1e-6)
        self.assertEqual(
            frozen_bits(state.mask, trail[-1]), frozen_bits(state.mask, params)
        )

    @parameterized.product(
        projection=("plain", "orthogonal"), energy=("0.8", "0.95", "0.99")
    )
    def test_semu_takes_the_mended_steps(self, projection, energy):
        model, golden = reference.load("model"), reference.load("semu")
        under = f"mended.{projection}.{energy}."
        params = reference.tree(model, "param.")
        tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.05, momentum=0.9))
        method = methods.semu(
            golden_loss, tx, energy=float(energy), orthogonal=projection == "orthogonal"
        )
        state = method.init(params, (), reference.batches(model, "forget"))
        trainable = sum(core.size for core in state.trained)
        self.assertEqual(trainable, golden[under + "n_trainable"])
        self.assertAlmostEqual(
            methods.trainable_fraction(state, params),
            trainable / sum(x.size for x in jax.tree.leaves(params)),
        )

        images = reference.images(model, "forget")
        wrong = labels.next_label(jnp.asarray(model["forget_labels"]), 10)
        _, losses, trail = run(method, state, 3 * [(images, wrong)])
        np.testing.assert_allclose(losses, golden[under + "losses"], atol=1e-4)
        np.testing.assert_allclose(
            reference.apply(trail[-1], images),
            golden[under + "logits_after"],
            atol=1e-4,
        )
        for layer in reference.LAYERS:
            np.testing.assert_allclose(
                trail[-1][layer]["kernel"],
                reference.kernel(golden[f"{under}merged.{layer}"]),
                atol=1e-4,
            )
            self.assertEqual(
                bits(trail[-1][layer]["bias"]), bits(params[layer]["bias"])
            )


def corrector(retain_grads, forget_grads, threshold, weight):
    """The paper's corrector in NumPy; also says whether it fired."""
    pairs = [
        (np.float64(r), np.float64(f))
        for r, f in zip(
            jax.tree.leaves(retain_grads), jax.tree.leaves(forget_grads), strict=True
        )
    ]
    hats = [(r / np.linalg.norm(r), f / np.linalg.norm(f)) for r, f in pairs]
    if not any(np.sum(r * f) > threshold for r, f in hats):
        return retain_grads, False
    leaves = [(r + weight * f) / (np.linalg.norm(r + f) + 1e-8) for r, f in hats]
    return jax.tree.unflatten(jax.tree.structure(retain_grads), leaves), True


class CorrectedStepsTest(parameterized.TestCase):
    """UFG and CUFG against their formula."""

    def restate(self, retain_batches, forget_batch, threshold, weight, refresh_every=1):
        """Steps of UFG by hand: momentum 0.9, weight decay 5e-3, rate 0.1."""
        forget_grad = jax.jit(jax.grad(lambda p, s, b: -EVAL(p, s, b, None)[0]))
        params, model_state = tiny_params(), tiny_state()
        velocity = jax.tree.map(lambda p: np.zeros(p.shape), params)
        fired, held, trail = [], None, []
        for t, batch in enumerate(retain_batches):
            grads, (after, _) = train_grad(params, model_state, batch)
            if t % refresh_every == 0:
                held = forget_grad(params, model_state, forget_batch)
            u, fires = corrector(grads, held, threshold(t), weight(t))
            fired.append(fires)
            model_state = after
            velocity = jax.tree.map(
                lambda v, u, p: 0.9 * v + np.float64(u) + 5e-3 * np.float64(p),
                velocity,
                u,
                params,
            )
            params = jax.tree.map(
                lambda p, v: jnp.float32(np.float64(p) - 0.1 * v), params, velocity
            )
            trail.append(params)
        return trail, model_state, fired

    @parameterized.named_parameters(
        dict(testcase_name="exact", options={}),
        dict(testcase_name="microbatches", options={"microbatch_size": 4}),
        dict(testcase_name="refreshed", options={"refresh_every": 3}),
    )
    def test_ufg_steps_follow_the_formula(self, options):
        # Two steps an epoch; shifted so that it fires in some steps and not in others.
        released_threshold = methods.released_threshold(2)
        released_weight = methods.released_forget_weight(2)

        def threshold(step):
            return released_threshold(step) + jnp.where(step % 3 == 1, 0.5, -0.3)

        retain = [tiny_batch(10 + i) for i in range(6)]
        forget = tiny_batch(1)
        method = methods.ufg(
            TRAIN,
            sgd(),
            threshold=threshold,
            forget_weight=released_weight,
            eval_loss_fn=EVAL,
            **options,
        )
        wanted, model_state, fired = self.restate(
            retain,
            forget,
            threshold=lambda t: 0.45 - 0.05 * (t // 20) + (0.5 if t % 3 == 1 else -0.3),
            weight=lambda t: 0.9 ** (t // 2),
            refresh_every=options.get("refresh_every", 1),
        )
        self.assertIn(True, fired)
        self.assertIn(False, fired)

        state, _, trail = run(method, started(method), retain, forget)
        chex.assert_trees_all_close(trail, wanted, atol=2e-5)
        # The statistics moved with the retain batches and nothing else.
        chex.assert_trees_all_close(state.model_state, model_state, atol=2e-5)

    def test_without_an_evaluation_loss_the_forgetting_gradient_trains(self):
        forget, retain = tiny_batch(1), tiny_batch(2)
        both = methods.ufg(TRAIN, optax.sgd(1.0), threshold=-2.0)
        state, _, _ = run(both, started(both), [retain], forget)
        towards, (model_state, _) = train_grad(tiny_params(), tiny_state(), retain)
        away, _ = train_grad(tiny_params(), tiny_state(), forget)
        moves, _ = corrector(towards, jax.tree.map(np.negative, away), -2, 1)
        moved = jax.tree.map(np.subtract, tiny_params(), moves)
        chex.assert_trees_all_close(state.trained, moved, atol=1e-5)
        chex.assert_trees_all_close(state.model_state, model_state)

    def test_released_schedules(self):
        steps = np.arange(0, 300, 7)
        threshold = jax.vmap(methods.released_threshold(4))(steps)
        weight = jax.vmap(methods.released_forget_weight(4))(steps)
        epochs = steps // 4
        np.testing.assert_allclose(threshold, 0.45 - 0.05 * (epochs // 10), rtol=1e-5)
        np.testing.assert_allclose(weight, 0.9**epochs, rtol=1e-4)

    @parameterized.named_parameters(
        (
            "a_bar_that_no_cosine_passes_is_fine_tuning",
            methods.ufg(TRAIN, sgd(), threshold=1.0),
            "finetune",
        ),
        (
            "a_weighted_sum_is_neggrad_plus",
            methods.ufg(TRAIN, sgd(), combine=transforms.blend_updates(0.95)),
            "neggrad_plus",
        ),
    )
    def test_another_rule_makes_another_method(self, method, same):
        retain, forget, mask = [tiny_batch(2)], tiny_batch(1), random_mask()
        one, other = (
            run(m, started(m, mask=mask), retain, forget)[0].trained
            for m in (method, build(same))
        )
        chex.assert_trees_all_close(one, other)

    def test_the_corrector_in_neggrad_plus(self):
        retain, forget = [tiny_batch(2)], tiny_batch(1)
        rule = transforms.correct_updates(-2.0, 0.5)
        method = methods.neggrad_plus(TRAIN, optax.sgd(1.0), combine=rule)
        state, _, _ = run(method, started(method), retain, forget)
        towards, _ = train_grad(tiny_params(), tiny_state(), retain[0])
        away, _ = train_grad(tiny_params(), tiny_state(), forget)
        moves, _ = corrector(towards, jax.tree.map(np.negative, away), -2, 0.5)
        moved = jax.tree.map(np.subtract, tiny_params(), moves)
        chex.assert_trees_all_close(state.trained, moved, atol=1e-5)

    def test_weighted_padding_counts_for_nothing(self):
        # A forget set of 6, padded to 8 by examples of weight 0, in pieces of 4.
        def weighted(params, model_state, batch, key):
            del key
            errors = (batch["x"] @ params - batch["y"]) ** 2
            return jnp.mean(batch["weight"] * errors), (model_state, None)

        def data(seed, weight):
            x = jax.random.normal(jax.random.key(seed), (6, 3))
            x = jnp.resize(x, (len(weight), 3))
            return {"x": x, "y": x.sum(1) ** 2, "weight": jnp.asarray(weight)}

        whole = methods.ufg(weighted, sgd(), threshold=-2.0)
        pieces = methods.ufg(weighted, sgd(), threshold=-2.0, microbatch_size=4)
        retain = data(1, [1.0] * 6)
        padded = data(0, 6 * [8 / 6] + [0.0, 0.0])
        exact = run(whole, whole.init(jnp.ones(3)), [retain], data(0, [1.0] * 6))
        again = run(pieces, pieces.init(jnp.ones(3)), [retain], padded)
        chex.assert_trees_all_close(again[-1], exact[-1], atol=1e-6)

    def test_microbatches_add_up_in_float32(self):
        # In bfloat16, 256 + 1 would stay 256.
        def linear(w, model_state, batch, key):
            del key
            return w * jnp.mean(batch), (model_state, None)

        forget = jnp.ones(4096, jnp.bfloat16)
        method = methods.ufg(
            linear,
            optax.sgd(1.0),
            combine=transforms.blend_updates(0.0),
            microbatch_size=1,
        )
        state = method.init(jnp.zeros([], jnp.bfloat16))
        state, _, _ = run(method, state, [jnp.ones(1, jnp.bfloat16)], forget)
        self.assertEqual(state.trained.dtype, jnp.bfloat16)
        self.assertEqual(float(state.trained), 1.0)


class PlainLoopTest(parameterized.TestCase):
    """One-gradient methods and NegGrad+ against loops written out here."""

    def loop(self, batches, direction, tx, after=lambda t, params: params):
        """``params += tx(direction)``, statistics from the batch in training mode."""
        params, model_state = tiny_params(), tiny_state()
        opt_state = tx.init(params)
        losses = []
        for t, batch in enumerate(batches):
            losses.append(float(train_loss(params, model_state, batch)))
            grads, model_state = direction(params, model_state, batch)
            updates, opt_state = tx.update(grads, opt_state, params)
            params = after(t, optax.apply_updates(params, updates))
        return params, model_state, losses

    def check(self, method, batches, wanted, forget_batch=None, mask=None):
        state = started(method, mask=mask)
        state, losses, _ = run(method, state, batches, forget_batch)
        params, model_state, wanted_losses = wanted
        chex.assert_trees_all_close(state.trained, params, atol=1e-5)
        chex.assert_trees_all_close(state.model_state, model_state, atol=1e-5)
        np.testing.assert_allclose(losses, wanted_losses, atol=1e-5)
        self.assertEqual(int(state.step), len(batches))

    @parameterized.named_parameters(
        ("finetune", "finetune", 1),
        ("random_label", "random_label", 1),
        ("gradient_ascent", "gradient_ascent", -1),
    )
    def test_one_gradient(self, name, sign):
        batches = [tiny_batch(i) for i in range(4)]

        def direction(params, model_state, batch):
            grads, (model_state, _) = train_grad(params, model_state, batch)
            return jax.tree.map(lambda g: sign * g, grads), model_state

        wanted = self.loop(batches, direction, sgd())
        # A mask that is true everywhere is no mask at all.
        everything = jax.tree.map(lambda p: jnp.ones_like(p, bool), tiny_params())
        self.check(build(name), batches, wanted, mask=everything)

    @parameterized.named_parameters(
        ("default", {}, lambda t: 0.95),
        (
            "schedule",
            {"retain_share": optax.linear_schedule(1.0, 0.0, 4)},
            lambda t: 1 - t / 4,
        ),
    )
    def test_neggrad_plus(self, options, share):
        batches, forget = [tiny_batch(i) for i in range(4)], tiny_batch(99, 8)
        shares = (share(t) for t in range(4))

        def direction(params, model_state, batch):
            alpha = next(shares)
            away, _ = train_grad(params, model_state, forget)
            towards, (model_state, _) = train_grad(params, model_state, batch)
            grads = jax.tree.map(
                lambda r, f: alpha * r - (1 - alpha) * f, towards, away
            )
            return grads, model_state

        wanted = self.loop(batches, direction, sgd())
        self.check(
            methods.neggrad_plus(TRAIN, sgd(), **options), batches, wanted, forget
        )

    def test_salun_soft(self):
        batches, total, share = [tiny_batch(i) for i in range(5)], 7, 0.6
        start = jax.tree.leaves(tiny_params())
        size = sum(leaf.size for leaf in start)

        def after(t, params):
            deltas = [
                p - a for p, a in zip(jax.tree.leaves(params), start, strict=True)
            ]
            rank = math.floor(share * (1 - t / total) * size)
            sizes = np.sort(np.concatenate([np.abs(d).ravel() for d in deltas]))
            gamma = sizes[rank - 1] if rank else 0.0
            pulled = [
                a + np.sign(d) * np.maximum(np.abs(d) - gamma, 0)
                for a, d in zip(start, deltas, strict=True)
            ]
            return jax.tree.unflatten(jax.tree.structure(params), pulled)

        def direction(params, model_state, batch):
            grads, (model_state, _) = train_grad(params, model_state, batch)
            return grads, model_state

        wanted = self.loop(batches, direction, sgd(), after)
        method = methods.salun_soft(TRAIN, sgd(), total_steps=total, fraction=share)
        self.check(method, batches, wanted)

    def test_salun_is_random_label_under_its_mask(self):
        batches = [tiny_batch(i) for i in range(3)]
        state = started(build("salun"))
        grads = [eval_grad(tiny_params(), batch) for batch in forget_batches()]
        scores = jax.tree.map(lambda a, b: np.abs(a + b), *grads)
        flat = np.concatenate([s.ravel() for s in jax.tree.leaves(scores)])
        kept = math.floor(0.5 * flat.size)
        bar = np.sort(flat)[-kept]
        wanted = jax.tree.map(lambda s: s >= bar, scores)
        chex.assert_trees_all_equal(state.mask, wanted)
        self.assertAlmostEqual(
            methods.trainable_fraction(state, tiny_params()), kept / flat.size
        )
        plain = build("random_label")
        chex.assert_trees_all_equal(
            run(build("salun"), state, batches)[0].trained,
            run(plain, started(plain, mask=wanted), batches)[0].trained,
        )

    def test_salun_takes_other_scores_and_selections(self):
        method = methods.salun(
            TRAIN,
            sgd(),
            score=saliency.fisher_saliency,
            select=saliency.top_fraction_mask_by_leaf,
            eval_loss_fn=EVAL,
        )
        mask = started(method).mask
        for leaf in jax.tree.leaves(mask):
            self.assertEqual(np.sum(leaf), leaf.size // 2)


class StatisticsTest(parameterized.TestCase):
    """Whether the model state moves, and with which batch."""

    @parameterized.named_parameters(BY_METHOD)
    def test_statistics_move_with_the_batch_alone_or_not_at_all(self, name):
        method = build(name)
        batch = tiny_batch(5)
        state = started(method, mask=random_mask())
        state, losses, _ = run(method, state, [batch], tiny_batch(6))
        _, model_state = method.finish(state)
        if name.startswith("semu"):
            self.assertEqual(bits(model_state), bits(tiny_state()))
            loss, _ = EVAL(tiny_params(), tiny_state(), batch, None)
            self.assertAlmostEqual(losses[0], float(loss), places=5)
        else:
            _, (wanted, _) = train_grad(tiny_params(), tiny_state(), batch)
            chex.assert_trees_all_close(model_state, wanted)
            self.assertEqual(int(model_state["count"]), 1)

    def test_without_an_evaluation_loss_semu_drops_what_the_loss_returns(self):
        method = methods.semu(TRAIN, sgd())
        state, _, _ = run(method, started(method), [tiny_batch(5)])
        self.assertEqual(bits(state.model_state), bits(tiny_state()))

    @parameterized.parameters(methods.semu, methods.semu_retain)
    def test_semus_loss_may_look_at_the_original(self, semu):
        """Against plain SEMU on the loss with the original in its closure."""
        original, batches = tiny_params(), [tiny_batch(i) for i in range(3)]

        def pair_loss(params, first, model_state, batch, key):
            loss, rest = EVAL(params, model_state, batch, key)
            moved = jax.tree.map(lambda p, o: jnp.sum((p - o) ** 2), params, first)
            return loss + 0.1 * jax.tree.reduce(jnp.add, moved), rest

        def closed(params, model_state, batch, key):
            return pair_loss(params, original, model_state, batch, key)

        trained = {}
        for with_original, loss_fn in ((True, pair_loss), (False, closed)):
            method = semu(
                loss_fn, sgd(), basis_loss_fn=EVAL, with_original=with_original
            )
            state, losses, _ = run(method, started(method), batches)
            trained[with_original] = method.finish(state)[0]
            first, _ = EVAL(original, tiny_state(), batches[0], None)
            self.assertAlmostEqual(losses[0], float(first), places=5)
        chex.assert_trees_all_close(trained[True], trained[False], atol=1e-6)


class MaskTest(parameterized.TestCase):
    """A mask plugs into every method, and frozen weights keep their bits."""

    @parameterized.named_parameters(
        *BY_METHOD,
        dict(testcase_name="salun_soft_adamw", name="salun_soft", tx=ADAMW),
        dict(testcase_name="cufg_adamw", name="cufg", tx=ADAMW),
    )
    def test_frozen_weights_stay_bit_identical(self, name, tx=None):
        params, mask = tiny_params(), random_mask()
        # Weights that addition would not leave alone: −0.0 and a subnormal number.
        for leaf, odd in (("kernel", -0.0), ("bias", 1e-40)):
            params["dense"][leaf] = params["dense"][leaf].at[..., 0].set(odd)
            mask["dense"][leaf] = mask["dense"][leaf].at[..., 0].set(False)
        method = build(name) if tx is None else METHODS[name](TRAIN, tx)
        state = method.init(params, tiny_state(), forget_batches(), mask=mask)
        batches = [tiny_batch(i) for i in range(3)]
        trained = run(method, state, batches, tiny_batch(1))[-1][-1]
        self.assertEqual(frozen_bits(mask, trained), frozen_bits(mask, params))
        for layer in ("conv", "dense"):
            moving = np.asarray(mask[layer]["kernel"])
            moved = np.asarray(trained[layer]["kernel"] != params[layer]["kernel"])
            # SalUn-soft pulls some of them back to where they were.
            self.assertTrue(moved[moving].all() or name == "salun_soft")
            self.assertTrue(moved[moving].any())

    def test_the_fraction_counts_the_mask(self):
        method = build("finetune")
        mask = random_mask(fraction=0.25)
        flat = np.concatenate([m.ravel() for m in jax.tree.leaves(mask)])
        state = started(method, mask=mask)
        self.assertAlmostEqual(
            methods.trainable_fraction(state, tiny_params()), flat.mean()
        )
        self.assertEqual(methods.trainable_fraction(started(method), tiny_params()), 1)

    def test_masked_semu_factors_the_masked_gradient(self):
        mask = random_mask()
        state = started(build("semu"), mask=mask)
        weights = np.asarray(tiny_params()["dense"]["kernel"])
        grads = [eval_grad(tiny_params(), batch) for batch in forget_batches()]
        grad = sum(np.asarray(g["dense"]["kernel"]) for g in grads)
        grad = np.where(mask["dense"]["kernel"], grad, 0)
        grad = grad - np.sum(grad * weights) / np.sum(weights**2) * weights
        left, sigma, right = np.linalg.svd(grad)
        energy = np.cumsum(sigma**2) / np.sum(sigma**2)
        rank = 1 + int(np.argmax(energy >= 0.8))
        wanted = left[:, :rank] @ left[:, :rank].T, right[:rank].T @ right[:rank]
        basis = state.fixed[1]["dense"]["kernel"]
        for side, projector in zip((basis.left, basis.right), wanted, strict=True):
            np.testing.assert_allclose(side[0] @ side[0].T, projector, atol=1e-4)

    def test_saluns_mask_on_cufg(self):
        # SalUn's mask is a value: any method takes it, and CUFG moves within it.
        mask = started(build("salun")).mask
        method = build("cufg")
        step = [tiny_batch(4)], tiny_batch(5)
        masked = run(method, started(method, mask=mask), *step)[0].trained
        everything = jax.tree.map(jnp.ones_like, mask)
        free = run(method, started(method, mask=everything), *step)[0].trained
        chex.assert_trees_all_equal(masked, select(mask, free, tiny_params()))

    @parameterized.named_parameters(BY_METHOD)
    def test_a_mask_that_does_not_fit_is_named(self, name):
        mask = random_mask()
        mask["dense"]["kernel"] = mask["dense"]["kernel"][:2]
        with self.assertRaisesRegex(ValueError, r"mask\['dense'\]\['kernel'\].*\(2, 4"):
            started(build(name), mask=mask)


class DataUseTest(parameterized.TestCase):
    """What a method says that it reads."""

    @parameterized.named_parameters(
        ("finetune", "finetune", [["retain"]], None, False, 10),
        ("gradient_ascent", "gradient_ascent", [["forget"]], None, False, 5),
        ("neggrad_plus", "neggrad_plus", [["retain"]], "sampled", False, 5),
        ("random_label", "random_label", [["forget"], ["retain"]], None, True, 10),
        ("salun", "salun", [["forget"], ["retain"]], None, True, 10),
        ("salun_soft", "salun_soft", [["forget"], ["retain"]], None, True, 10),
        ("semu", "semu", [["forget"]], None, True, 10),
        ("semu_retain", "semu_retain", [["forget", "retain"]], None, True, 10),
        ("ufg", "ufg", [["retain"]], "whole", False, 10),
        ("cufg", "cufg", [["retain"]], "whole", False, 10),
    )
    def test_data_use(self, name, passes, companion, relabels, epochs):
        use = build(name).data_use
        self.assertEqual([list(names) for names in use.passes], passes)
        self.assertEqual(use.companion, companion)
        self.assertEqual(use.epochs, epochs)
        self.assertEqual(use.stages, 3 if name == "cufg" else 1)
        self.assertEqual(use.microbatch_size, 4 if name == "cufg" else None)
        self.assertFalse(use.fresh_start)
        if not relabels:
            self.assertIsNone(use.relabel)
            return
        assert use.relabel is not None
        true = jnp.arange(400) % 4
        drawn = use.relabel(jax.random.key(0), true, 4)
        self.assertFalse(np.any(drawn == true))  # the papers' rule, y' ≠ y
        self.assertEqual(set(np.asarray(drawn)), {0, 1, 2, 3})

    @parameterized.named_parameters(
        ("random_label", methods.random_label),
        ("salun", methods.salun),
        ("salun_soft", functools.partial(methods.salun_soft, total_steps=1)),
    )
    def test_options_of_random_labels(self, factory):
        use = factory(TRAIN, sgd(), joint=True, exclude_true=False).data_use
        self.assertEqual(use.passes, (("forget", "retain"),))
        true = jnp.arange(4000) % 4
        drawn = use.relabel(jax.random.key(0), true, 4)
        self.assertAlmostEqual(float(jnp.mean(drawn == true)), 0.25, delta=0.04)

    def test_retrain_starts_fresh(self):
        use = methods.retrain(TRAIN, sgd()).data_use
        self.assertEqual((use.passes, use.fresh_start), ((("retain",),), True))

    def test_sampled_ufg(self):
        use = methods.ufg(TRAIN, sgd(), sampled=True).data_use
        self.assertEqual(use.companion, "sampled")

    def test_a_curriculum_for_any_method(self):
        method = build("salun")
        staged = methods.with_data(method, stages=4, epochs=2)
        self.assertEqual((staged.data_use.stages, staged.data_use.epochs), (4, 2))
        self.assertEqual(staged.data_use.passes, method.data_use.passes)
        self.assertEqual(staged.step, method.step)
        self.assertEqual(method.data_use.stages, 1)


class ErrorsTest(parameterized.TestCase):
    """Errors that say what came and what was wanted."""

    @parameterized.named_parameters(
        ("soft", lambda: methods.salun_soft(TRAIN, sgd(), total_steps=0), "steps=0"),
        ("stages", lambda: methods.cufg(TRAIN, sgd(), stages=0), "stages=0"),
        ("refresh", lambda: methods.ufg(TRAIN, sgd(), refresh_every=0), "every=0"),
        (
            "pieces",
            lambda: methods.with_data(build("ufg"), microbatch_size=2),
            "microbatch_size, which the method's step is built with",
        ),
        (
            "original",
            lambda: methods.semu(EVAL, sgd(), with_original=True),
            "without basis_loss_fn",
        ),
        ("saliency", lambda: build("salun").init(tiny_params()), "SalUn's saliency"),
        ("bases", lambda: build("semu").init(tiny_params()), "SEMU's bases"),
        ("empty", lambda: build("semu").init(tiny_params(), (), []), "no batch"),
    )
    def test_building(self, make, message):
        with self.assertRaisesRegex(ValueError, message):
            make()

    def test_stepping(self):
        method = methods.ufg(TRAIN, sgd(), microbatch_size=5)
        with self.assertRaisesRegex(ValueError, "forget_batch=None"):
            jax.eval_shape(method.step, started(method), tiny_batch(0))
        with self.assertRaisesRegex(ValueError, "16 examples.*multiple.*size=5"):
            run(method, started(method), [tiny_batch(0)], tiny_batch(1))


class CompositionTest(parameterized.TestCase):
    """jit, scan, vmap and donation change nothing."""

    @parameterized.named_parameters(("semu", "semu"), ("ufg", "ufg"))
    def test_a_jitted_step_equals_an_eager_one(self, name):
        method, batch, forget = build(name), tiny_batch(3), tiny_batch(4)
        mask = random_mask()
        eager = method.step(started(method, mask=mask), batch, forget_batch=forget)
        jitted = step_of(method)(started(method, mask=mask), batch, forget_batch=forget)
        chex.assert_trees_all_close(jitted, eager, atol=1e-5)

    @parameterized.named_parameters(("salun_soft", "salun_soft"), ("ufg", "ufg"))
    def test_a_scan_equals_a_loop(self, name):
        method, forget, mask = build(name), tiny_batch(1), random_mask()
        batches = [tiny_batch(i) for i in range(4)]
        state, losses, _ = run(method, started(method, mask=mask), batches, forget)

        @functools.partial(jax.jit, donate_argnums=0)
        def epoch(state, batches):
            return jax.lax.scan(
                lambda s, b: method.step(s, b, forget_batch=forget), state, batches
            )

        scanned, infos = epoch(started(method, mask=mask), stack(batches))
        chex.assert_trees_all_close(scanned, state, atol=1e-5)
        np.testing.assert_allclose(infos.loss, losses, atol=1e-5)

    @parameterized.named_parameters(
        *[(f"{name}_eager_init", name, False) for name in METHODS],
        # Under jit an output may share its input's memory.
        *[(f"{name}_jitted_init", name, True) for name in ("salun", "semu", "ufg")],
    )
    def test_what_the_caller_gave_survives_donation(self, name, jitted):
        method = build(name)
        given = (tiny_params(), tiny_state(), forget_batches())
        mask = random_mask()
        before = bits((given, mask))
        init = jax.jit(method.init) if jitted else method.init
        state = init(*given, mask=mask)
        step_of(method)(state, tiny_batch(0), forget_batch=given[2][0])
        self.assertTrue(jax.tree.leaves(state.trained)[0].is_deleted())
        self.assertEqual(bits((given, mask)), before)

    @parameterized.named_parameters(KINDS)
    def test_vmap_over_seeds_equals_single_runs(self, name):
        method = build(name)

        def train(params, mask, forget, batches):
            state = method.init(params, tiny_state(), forget, mask=mask)
            state, infos = jax.lax.scan(
                lambda s, b: method.step(s, b, forget_batch=forget[0]), state, batches
            )
            return *method.finish(state), infos.loss

        given, wanted = [], []
        for seed in range(3):
            mask, forget = random_mask(seed), forget_batches(10 * seed)
            batches = [tiny_batch(100 * seed + i) for i in range(3)]
            state = method.init(tiny_params(seed), tiny_state(), forget, mask=mask)
            state, losses, _ = run(method, state, batches, forget[0])
            given.append((tiny_params(seed), mask, forget, stack(batches)))
            wanted.append((*method.finish(state), jnp.array(losses)))
        together = jax.jit(jax.vmap(train))(*stack(given))
        chex.assert_trees_all_close(together, stack(wanted), atol=1e-5)

    @parameterized.named_parameters(
        ("salun_soft", "salun_soft"), ("semu", "semu"), ("ufg", "ufg")
    )
    def test_bfloat16(self, name):
        method = build(name)
        params, mask = tiny_params(dtype=jnp.bfloat16), random_mask()
        model_state = tiny_state(jnp.bfloat16)
        state = method.init(params, model_state, forget_batches(), mask=mask)
        batches = [tiny_batch(i) for i in range(2)]
        state, losses, trail = run(method, state, batches, tiny_batch(1))
        self.assertTrue(np.isfinite(losses).all())
        chex.assert_trees_all_equal_dtypes(trail[-1], params)
        chex.assert_trees_all_equal_dtypes(state.model_state, model_state)
        chex.assert_tree_all_finite(trail[-1])
        _, info = jax.eval_shape(
            method.step, state, batches[0], forget_batch=batches[0]
        )
        self.assertEqual(info.loss.dtype, jnp.float32)
        self.assertEqual(frozen_bits(mask, trail[-1]), frozen_bits(mask, params))
        self.assertNotEqual(bits(trail[-1]), bits(params))
        if name.startswith("semu"):
            bases = jax.tree.leaves(
                state.fixed[1], is_leaf=lambda x: isinstance(x, subspace.Basis)
            )
            for basis, core in zip(bases, state.trained, strict=True):
                for array in (basis.left, basis.right, core):
                    self.assertEqual(array.dtype, jnp.float32)

    def test_keys_reach_the_loss_and_extra_arguments_the_optimiser(self):
        def noisy(w, model_state, batch, key):
            return w * jax.random.normal(key) + jnp.mean(batch), (model_state, None)

        def update(updates, state, params=None, **extra_args):
            del params
            return jax.tree.map(lambda u: extra_args["scale"] * u, updates), state

        tx = optax.GradientTransformationExtraArgs(optax.identity().init, update)
        method = methods.finetune(noisy, tx)
        key = jax.random.key(3)
        state, _ = method.step(
            method.init(jnp.float32(0)), jnp.ones(2), key=key, scale=2.0
        )
        noise = jax.random.normal(jax.random.split(key)[0])
        self.assertAlmostEqual(float(state.trained), 2 * float(noise), places=6)


if __name__ == "__main__":
    absltest.main()
