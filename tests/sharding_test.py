"""Eight devices, batches and parameters sharded: all gives what one device gives.

The axes of the mesh are Auto, where the compiler decides, or Explicit, where types do:
there the caller's loss states how a contraction over a sharded axis lies.
"""

import contextlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mujax import (
    correction,
    curriculum,
    diffusion,
    gradients,
    labels,
    methods,
    metrics,
    saliency,
    subspace,
    transforms,
)
from mujax.methods import plain_loss
from tests import methods_test as small

LAYOUTS = (("replicated", False), ("by_output_channel", True))


class ShardingTest(parameterized.TestCase):
    """Each test computes on one device and on a mesh of 4 × 2."""

    def setUp(self):
        super().setUp()
        auto = (AxisType.Auto, AxisType.Auto)
        self.mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=auto)

    def split(self, tree):
        """Arrays sharded over examples."""
        return jax.device_put(tree, NamedSharding(self.mesh, P("data")))

    def place(self, tree, by_channel):
        """A tree like the parameters, replicated or sharded by output channel."""

        def put(leaf):
            spec = P(*[None] * (leaf.ndim - 1), "model") if by_channel else P()
            return jax.device_put(leaf, NamedSharding(self.mesh, spec))

        return jax.tree.map(put, tree)

    def assert_placed(self, tree, like):
        """Both trees lie on the devices in the same way."""
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True)
        for leaf, other in pairs:
            same = leaf.sharding.is_equivalent_to(other.sharding, leaf.ndim)
            self.assertTrue(same, f"{leaf.sharding} and {other.sharding}")

    @parameterized.product(
        score=(saliency.gradient_saliency, saliency.fisher_saliency),
        by_channel=(False, True),
    )
    def test_saliency(self, score, by_channel):
        params = small.tiny_params()
        loss_fn = plain_loss(small.EVAL, small.tiny_state())
        wanted = score(loss_fn, params, small.forget_batches())
        placed = self.place(params, by_channel)
        scores = score(loss_fn, placed, self.split(small.forget_batches()))
        chex.assert_trees_all_close(scores, wanted, rtol=1e-5, atol=1e-6)
        self.assert_placed(scores, placed)

    @parameterized.product(
        ties=(False, True), by_channel=(False, True), fraction=(0.1, 0.5)
    )
    def test_mask(self, ties, by_channel, fraction):
        scores = small.tiny_params()
        if ties:  # three values: 0, 0.4 and 0.8
            scores = jax.tree.map(lambda s: jnp.round(jnp.clip(s, 0, 1) / 0.4), scores)
        wanted = saliency.top_fraction_mask(scores, fraction)
        placed = self.place(scores, by_channel)
        mask = saliency.top_fraction_mask(placed, fraction)
        chex.assert_trees_all_equal(mask, wanted)
        self.assert_placed(mask, placed)

        # Nothing gathers the parameters, or any other array, in one place.
        lowered = jax.jit(saliency.top_fraction_mask, static_argnums=1).lower(
            placed, fraction
        )
        program = lowered.compile().as_text() or ""
        moves = re.findall(r"all-gather|all-to-all|collective-permute", program)
        self.assertEmpty(moves)
        self.assertEqual("all-reduce" in program, by_channel)

    @parameterized.named_parameters(*LAYOUTS)
    def test_bases_and_projection(self, by_channel):
        params, grads = small.tiny_params(1), small.tiny_params(2)

        @jax.jit
        def descend(params, grads):
            inside = subspace.project(grads, subspace.svd_bases(grads, rank=2))
            return jax.tree.map(lambda p, g: p - g, params, inside)

        wanted = descend(params, grads)
        placed = self.place(params, by_channel)
        moved = descend(placed, self.place(grads, by_channel))
        chex.assert_trees_all_close(moved, wanted, atol=1e-5)
        self.assert_placed(moved, placed)
        bases = subspace.svd_bases(self.place(grads, by_channel), energy=0.7)
        ranks = subspace.svd_bases(grads, energy=0.7)
        for layer in grads:
            chex.assert_trees_all_equal(
                bases[layer]["kernel"].rank, ranks[layer]["kernel"].rank
            )

    @parameterized.named_parameters(*LAYOUTS)
    def test_correct(self, by_channel):
        retain, forget = small.tiny_params(1), small.tiny_params(2)

        def combine(retain, forget):
            return correction.correct(retain, forget, threshold=-1, forget_weight=0.5)

        wanted = combine(retain, forget)
        placed = self.place(retain, by_channel)
        corrected = jax.jit(combine)(placed, self.place(forget, by_channel))
        chex.assert_trees_all_close(corrected, wanted, atol=1e-5)
        self.assert_placed(corrected, placed)

    @parameterized.named_parameters(
        *[(f"{name}_by_output_channel", name, True) for name in small.METHODS],
        *[(f"{k['name']}_replicated", k["name"], False) for k in small.KINDS],
    )
    def test_steps(self, name, by_channel):
        method, mask = small.build(name), small.random_mask()
        batches = [small.tiny_batch(10 + i) for i in range(2)]
        forget = small.tiny_batch(5)
        state = small.started(method, mask=mask)
        state, losses, _ = small.run(method, state, batches, forget)
        params, model_state = method.finish(state)

        placed = self.place(small.tiny_params(), by_channel)
        start = method.init(
            placed,
            jax.device_put(small.tiny_state(), NamedSharding(self.mesh, P())),
            self.split(small.forget_batches()),
            mask=self.place(mask, by_channel),
        )
        end, sharded_losses, _ = small.run(
            method, start, self.split(batches), self.split(forget)
        )
        np.testing.assert_allclose(sharded_losses, losses, atol=1e-5)
        chex.assert_trees_all_close(
            method.finish(end), (params, model_state), atol=1e-5
        )
        self.assert_placed(method.finish(end)[0], placed)
        self.assertEqual(
            small.frozen_bits(mask, method.finish(end)[0]),
            small.frozen_bits(mask, small.tiny_params()),
        )

    def test_masks_that_no_score_decides_lie_as_the_tree(self):
        placed = self.place(small.tiny_params(), True)
        key = jax.random.key(3)
        wanted = saliency.random_mask(key, small.tiny_params(), 0.5)
        mask = saliency.random_mask(key, placed, 0.5)
        chex.assert_trees_all_equal(mask, wanted)
        self.assert_placed(mask, placed)
        for fraction in (0.0, 1.0):
            self.assert_placed(saliency.top_fraction_mask(placed, fraction), placed)


SPECS = {"up": P(None, "model"), "bias": P("model"), "down": P("model", None)}
"""Where the parameters of :func:`mlp` lie: by column, then by row."""


def mlp(params, x):
    """Two layers; the second contracts the axis that the first one's output lies on."""
    hidden = jnp.tanh(x @ params["up"] + params["bias"][None])
    sharding = jax.typeof(hidden).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return hidden @ params["down"]
    out = NamedSharding(sharding.mesh, P(sharding.spec[0], None))
    return jnp.dot(hidden, params["down"], out_sharding=out)


def loss_fn(params, batch):
    return jnp.mean((mlp(params, batch["x"]) - batch["y"]) ** 2)


def full_loss(params, model_state, batch, key):
    del key
    return loss_fn(params, batch), (model_state, None)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def mlp_params(seed=0):
    shapes = {"up": (4, 6), "bias": (6,), "down": (6, 3)}
    return {name: normal(seed, *shape) for name, shape in shapes.items()}


def mlp_batch(seed=0, size=16):
    return {"x": normal(100 + seed, size, 4), "y": normal(200 + seed, size, 3)}


def batches():
    return [mlp_batch(0), mlp_batch(1, 8)]


def chain_of(tx, **extra_args):
    """A function of one's own loop: two updates of a transform."""

    def run(data):
        params, grads = data["params"], data["grads"]
        extra = {name: data[which] for name, which in extra_args.items()}
        chain = tx(data)
        state = chain.init(params)
        for step in (chain.update, jax.jit(chain.update)):
            updates, state = step(grads, state, params, **extra)
            params = optax.apply_updates(params, updates)
        return params

    return run


def steps_of(make):
    """A function of one's own loop: two steps of a method, eager and jitted."""

    def run(data):
        method = make(full_loss, optax.adamw(0.05))
        forget = data["batches"][0]
        state = method.init(data["params"], (), data["batches"])
        for step in (method.step, jax.jit(method.step)):
            state, _ = step(state, forget, forget_batch=forget)
        return method.finish(state)[0]

    return run


def probs(data):
    return jax.nn.softmax(data["batches"][0]["y"])


def classes(data):
    return jnp.argmax(data["batches"][0]["y"], 1).astype(jnp.int32)


LIKE_PARAMS = {
    "gradient_saliency": lambda d: saliency.gradient_saliency(
        loss_fn, d["params"], d["batches"]
    ),
    "absolute_saliency": lambda d: saliency.absolute_saliency(
        loss_fn, d["params"], d["batches"]
    ),
    "fisher_saliency": lambda d: saliency.fisher_saliency(
        loss_fn, d["params"], d["batches"]
    ),
    "forgetting_gradient": lambda d: correction.forgetting_gradient(
        loss_fn, d["params"], d["batches"]
    ),
    "top_fraction_mask": lambda d: saliency.top_fraction_mask(d["params"], 0.3),
    "by_leaf": lambda d: saliency.top_fraction_mask_by_leaf(d["params"], 0.3),
    "threshold_mask": lambda d: saliency.threshold_mask(d["params"], 0.3),
    "random_mask": lambda d: saliency.random_mask(jax.random.key(0), d["params"], 0.3),
    "correct": lambda d: correction.correct(
        d["params"], d["grads"], threshold=-1, forget_weight=0.5
    ),
    "project_conflicts": lambda d: correction.project_conflicts(
        d["params"], d["grads"]
    ),
    "masked_adamw": chain_of(
        lambda d: optax.chain(optax.adamw(0.1), transforms.mask_updates(d["mask"]))
    ),
    "corrected": chain_of(
        lambda d: transforms.correct_updates(-0.5, 0.5), forget_grads="params"
    ),
    "pcgrad": chain_of(
        lambda d: transforms.project_conflicting_updates(), forget_grads="params"
    ),
    "blended": chain_of(lambda d: transforms.blend_updates(0.7), forget_grads="params"),
    "soft": chain_of(
        lambda d: optax.chain(optax.sgd(0.1), transforms.soft_threshold_updates(0.5))
    ),
    "salun": steps_of(methods.salun),
    "salun_soft": steps_of(lambda *a: methods.salun_soft(*a, total_steps=8)),
    "ufg_pieces": steps_of(
        lambda *a: methods.ufg(*a, threshold=-0.5, refresh_every=2, microbatch_size=8)
    ),
    "ufg_small_pieces": steps_of(
        lambda *a: methods.ufg(*a, threshold=-0.5, microbatch_size=2)
    ),
}
OTHERS = {
    "example_gradients": lambda d: gradients.example_gradients(
        loss_fn, d["params"], d["batches"][0]
    ),
    "conflict": lambda d: correction.conflict(d["params"], d["grads"]),
    "kth_smallest": lambda d: saliency.kth_smallest(d["params"], 7),
    "density": lambda d: saliency.density(d["mask"]),
    "gradient_norm": lambda d: curriculum.gradient_norm(
        loss_fn, d["params"], d["batches"][0], batch_size=8
    ),
    "gradient_norm_uneven": lambda d: curriculum.gradient_norm(
        loss_fn, d["params"], d["batches"][0], batch_size=3
    ),
    "gradient_alignment": lambda d: curriculum.gradient_alignment(
        loss_fn, d["params"], d["batches"][0], d["grads"]
    ),
    "scores_of_outputs": lambda d: [
        score(probs(d), classes(d))
        for score in (
            curriculum.confidence_difficulty,
            curriculum.el2n,
            curriculum.loss_difficulty,
            metrics.accuracy,
        )
    ],
    "stages": lambda d: [
        curriculum.assign_stages(d["batches"][0]["y"][:, 0], 3),
        curriculum.stage_indices(d["batches"][0]["y"][:, 0], 3),
    ],
    "labels": lambda d: [
        labels.random_labels(jax.random.key(0), classes(d), 3),
        labels.random_labels(jax.random.key(0), classes(d), 3, exclude_true=False),
        labels.next_label(classes(d), 3),
    ],
}


def predict(params, x, t, condition):
    """A noise network on images of three entries."""
    inputs = jnp.concatenate([x, condition[:, None]], 1)
    return mlp(params, inputs + t[:, None].astype(jnp.float32) / 8)


def diffuse(d):
    """The four losses, with their gradients."""
    schedule, key = diffusion.linear_schedule(8, 0.01, 0.5), jax.random.key(0)
    x0, condition = d["batches"][0]["y"], d["batches"][0]["x"][:, 0]
    other, which = condition + 1, condition > 0

    def total(params):
        data = (predict, params, schedule, x0, condition)
        return (
            diffusion.noise_loss(*data, key)
            + diffusion.match_loss(*data, other, key)
            + diffusion.relabel_loss(*data, other, which, key)
            + diffusion.erase_loss(
                predict, params, d["grads"], *data[2:], jnp.float32(0), key
            )
        )

    return jax.value_and_grad(total)(d["params"])


def sample(d):
    """Both samplers."""
    schedule, key = diffusion.linear_schedule(8, 0.01, 0.5), jax.random.key(0)
    arguments = (predict, d["params"], schedule, key, d["batches"][0]["x"][:, 0])
    return [
        diffusion.ddpm_sample(*arguments, (16, 3)),
        diffusion.ddim_sample(*arguments, (16, 3), num_steps=3),
    ]


OTHERS |= {"diffusion_losses": diffuse, "samplers": sample}


def one_device(run):
    """What a function gives on one device."""
    params = mlp_params()
    data = {"params": params, "grads": mlp_params(1), "batches": batches()}
    return run(data | {"mask": saliency.top_fraction_mask(params, 0.4)})


@pytest.mark.slow
class AxesTest(parameterized.TestCase):
    """Batches lie along one axis and parameters along the other, of either kind."""

    def on_mesh(self, run, kind, context, specs=SPECS):
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))

        def place(tree):
            return {
                name: jax.device_put(leaf, NamedSharding(mesh, specs[name]))
                for name, leaf in tree.items()
            }

        by_example = NamedSharding(mesh, P("data"))
        data = {
            "params": place(mlp_params()),
            "grads": place(mlp_params(1)),
            "mask": place(saliency.top_fraction_mask(mlp_params(), 0.4)),
            "batches": jax.device_put(batches(), by_example),
        }
        with jax.set_mesh(mesh) if context else contextlib.nullcontext():
            return run(data), data["params"]

    def check(self, found, wanted):
        """Whole numbers and masks are identical, others within rounding."""
        chex.assert_trees_all_equal_structs(found, wanted)
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
        for leaf, other in pairs:
            exact = not jnp.issubdtype(leaf.dtype, jnp.inexact)
            bound = 0 if exact else 2e-5
            np.testing.assert_allclose(leaf, np.asarray(other), rtol=bound, atol=bound)

    @parameterized.named_parameters(*LIKE_PARAMS.items())
    def test_explicit_like_the_parameters(self, run):
        found, params = self.on_mesh(run, AxisType.Explicit, context=True)
        self.check(found, one_device(run))
        for name, leaf in params.items():
            same = found[name].sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
            self.assertTrue(same, f"{name}: {found[name].sharding}")

    @parameterized.named_parameters(*OTHERS.items())
    def test_explicit(self, run):
        found, _ = self.on_mesh(run, AxisType.Explicit, context=True)
        self.check(found, one_device(run))

    @parameterized.product(
        name=("gradient_saliency", "random_mask", "ufg_pieces", "gradient_norm"),
        kind=(AxisType.Explicit, AxisType.Auto),
    )
    def test_without_a_mesh_in_context(self, name, kind):
        run = (LIKE_PARAMS | OTHERS)[name]
        # Without a mesh in context JAX wants a jit about what starts on no mesh.
        run = jax.jit(run) if name == "ufg_pieces" else run
        found, _ = self.on_mesh(run, kind, context=False)
        self.check(found, one_device(run))

    def test_parameters_and_examples_along_one_axis(self):
        specs = {"up": P("data", None), "bias": P(), "down": P()}

        def run(data):
            def gathered_loss(params, batch):
                up = params["up"]
                mesh = jax.typeof(up).sharding.mesh
                if not mesh.empty:
                    up = jax.sharding.reshard(up, NamedSharding(mesh, P(None, None)))
                return loss_fn(params | {"up": up}, batch)

            params = data["params"]
            return [
                saliency.gradient_saliency(gathered_loss, params, data["batches"]),
                saliency.fisher_saliency(gathered_loss, params, data["batches"]),
                curriculum.gradient_norm(gathered_loss, params, data["batches"][0]),
            ]

        (found, params) = self.on_mesh(run, AxisType.Explicit, True, specs)
        self.check(found, one_device(run))
        for scores in found[:2]:
            self.assertEqual(scores["up"].sharding.spec, params["up"].sharding.spec)

    def test_each_device_looks_at_its_own_examples(self):
        def text(run):
            def compiled(data):
                jitted = jax.jit(run).lower(data["params"], data["batches"][0])
                return jitted.compile().as_text() or ""

            return self.on_mesh(compiled, AxisType.Explicit, True)[0]

        method = methods.ufg(full_loss, optax.sgd(0.1), microbatch_size=8)
        for run in (
            lambda params, batch: curriculum.gradient_norm(loss_fn, params, batch),
            lambda params, batch: (
                method.step(method.init(params), batch, forget_batch=batch)[0].trained
            ),
        ):
            moves = re.findall(r"all-gather|all-to-all|collective-permute", text(run))
            self.assertEmpty(moves)


if __name__ == "__main__":
    absltest.main()
