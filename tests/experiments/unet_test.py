"""The U-Net: published size, what its output may depend on, its use as a network."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from flax import nnx
from jax.sharding import PartitionSpec

from experiments.diffusion.unet import (
    Attention,
    Block,
    UNet,
    _Layers,
    _sinusoids,
    cifar_unet,
    digits_unet,
)
from experiments.models.border import ModelError
from experiments.models.convolution import patch_convolution
from mujax import diffusion

# The native convolution compiles sooner; patches run sooner inside a scan.
NATIVE = {"conv_general_dilated": jax.lax.conv_general_dilated}
PATCHES = {"conv_general_dilated": patch_convolution}
TINY: dict[str, Any] = dict(width=8, multipliers=(1, 2), blocks=1, attention=(4,))
SCHEDULE = diffusion.linear_schedule(100, 1e-3, 0.2)


def shapes(factory, *arguments, **options):
    return nnx.eval_shape(lambda: factory(*arguments, **options, rngs=nnx.Rngs(0)))


def count(model) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@functools.cache
def network(**options):
    """A tiny network's parameters, none of them zero, and its ``predict``.

    Drawn by NumPy, since compiling the initialisation takes longer than all tests.
    """
    model = shapes(UNet, 3, (8, 8, 1), **{**TINY, **NATIVE, **options})
    graph, abstract = nnx.split(model)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = 0.1 if len(leaf.shape) == 1 else np.prod(leaf.shape[:-1]) ** -0.5
        offset = jax.tree_util.keystr(path).endswith("['scale']")
        return jnp.asarray(offset + scale * rng.normal(size=leaf.shape), leaf.dtype)

    params = jax.tree.map_with_path(draw, nnx.to_pure_dict(abstract))
    return params, jax.jit(lambda p, x, t, c: nnx.merge(graph, p)(x, t, c))


def inputs(shape=(8, 8, 1), n=4):
    x = jax.random.normal(jax.random.key(1), (n, *shape))
    return x, jnp.arange(n) * 20, jnp.arange(n) % 4


class SizeTest(parameterized.TestCase):
    def test_cifar_has_the_published_number_of_parameters(self):
        """35.7 M in Ho et al. (2020), appendix B; then a table of 11 × 512."""
        self.assertEqual(count(shapes(cifar_unet)), 35_746_307 + 11 * 512)

    @parameterized.named_parameters(
        ("digits", 1, 32, (1, 2), 1, (False, True), shapes(digits_unet)),
        ("cifar", 3, 128, (1, 2, 2, 2), 2, (False, True, False, False),
         shapes(cifar_unet)),
        ("three_levels", 1, 16, (1, 2, 2), 2, (False, False, True),
         shapes(UNet, 10, (28, 28, 1), width=16, multipliers=(1, 2, 2),
                attention=(7,))),
    )  # fmt: skip
    def test_formula(self, channels, width, multipliers, blocks, attention, model):
        def dense(i, o):
            return i * o + o

        def convolution(i, o):
            return 9 * i * o + o

        def attend(c):
            return 2 * c + 4 * dense(c, c)

        def block(i, o):
            shortcut = dense(i, o) if i != o else 0
            convolutions = convolution(i, o) + convolution(o, o)
            return 2 * i + 2 * o + convolutions + dense(4 * width, o) + shortcut

        levels = [width * m for m in multipliers]
        total = dense(width, 4 * width) + dense(4 * width, 4 * width) + 11 * 4 * width
        total += convolution(channels, width)
        at, skips = width, [width]
        for i, c in enumerate(levels):
            for _ in range(blocks):
                total += block(at, c) + attention[i] * attend(c)
                at = c
                skips.append(c)
            if i + 1 < len(levels):
                total += convolution(c, c)
                skips.append(c)
        total += 2 * block(at, at) + attend(at)
        for i, c in reversed(list(enumerate(levels))):
            for _ in range(blocks + 1):
                total += block(at + skips.pop(), c) + attention[i] * attend(c)
                at = c
            if i:
                total += convolution(c, c)
        total += 2 * at + convolution(at, channels)
        self.assertEqual(count(model), total)

    def test_attention_stands_at_the_named_resolutions(self):
        def attentions(attention):
            model = shapes(UNet, 3, (8, 8, 1), **{**TINY, "attention": attention})
            return sum(isinstance(m, Attention) for _, m in nnx.iter_graph(model))

        self.assertEqual(attentions(()), 1)  # the middle
        self.assertEqual(attentions((4,)), 1 + 1 + 2)  # one block down, two up
        self.assertEqual(attentions((4, 8)), 1 + 3 + 3)

    @parameterized.named_parameters(
        ("odd", (9, 9, 1), {}, r"9×9 for 2 levels, wanted multiples of 2"),
        ("columns", (8, 9, 1), {}, r"8×9 for 2 levels"),
        ("width", (8, 8, 1), {"width": 6}, r"width 6; give a multiple of 4"),
        ("attention", (8, 8, 1), {"attention": (16,)}, r"heights \[8, 4\]"),
    )
    def test_refuses(self, shape, options, message):
        with self.assertRaisesRegex(ModelError, message):
            UNet(3, shape, **{**TINY, **options}, rngs=nnx.Rngs(0))


class OutputTest(parameterized.TestCase):
    def test_starts_at_zero(self):
        def last():  # jit leaves out the initialisation of all else
            return nnx.state(UNet(3, (8, 8, 1), rngs=nnx.Rngs(0)).last)

        for leaf in jax.tree.leaves(jax.jit(last)()):
            np.testing.assert_array_equal(leaf, 0)

    def test_a_block_starts_as_the_identity_and_drops_features(self):
        make = _Layers(6, 0.5, None, jax.lax.conv_general_dilated, nnx.Rngs(0))
        block = Block(4, 4, True, make)
        x, embedding = jnp.arange(32.0).reshape(2, 2, 2, 4), jnp.ones((2, 6))
        np.testing.assert_array_equal(block(x, embedding), x)

        block.conv2.kernel[...] = jnp.ones((3, 3, 4, 4))
        block.train()
        change = block(x, embedding) - block(x, embedding)
        self.assertGreater(jnp.abs(change).max(), 0.01)
        block.eval()
        np.testing.assert_array_equal(block(x, embedding), block(x, embedding))

    @parameterized.parameters(((12, 8, 3),), ((28, 28, 1),))
    def test_other_images(self, shape):
        options = {**TINY, "attention": (shape[0] // 2,)}

        def noise(x, t, c):
            return UNet(3, shape, **options, rngs=nnx.Rngs(0))(x, t, c)

        self.assertEqual(jax.eval_shape(noise, *inputs(shape)).shape, (4, *shape))

    def test_depends_on_image_step_and_class(self):
        params, predict = network()
        x, t, c = inputs()
        out = predict(params, x, t, c)
        for other in [(x + 0.1, t, c), (x, t + 1, c), (x, t, (c + 1) % 4)]:
            change = jnp.abs(predict(params, *other) - out).max(axis=(1, 2, 3))
            self.assertGreater(change.min(), 1e-4)

    def test_examples_do_not_see_each_other(self):
        params, predict = network()
        x, t, c = inputs()
        changed = predict(params, x.at[0].set(9.0), t.at[0].set(7), c.at[0].set(1))
        np.testing.assert_allclose(changed[1:], predict(params, x, t, c)[1:], atol=1e-5)

    def test_a_pixel_reaches_every_pixel(self):
        params, predict = network()
        x, t, c = inputs()
        change = predict(params, x.at[:, 0, 0].add(1.0), t, c) - predict(
            params, x, t, c
        )
        self.assertGreater(jnp.abs(change).min(), 0)

    def test_the_null_class_has_a_row_of_its_own(self):
        params, predict = network()
        x, t, c = inputs()
        table = params["embed_class"]["embedding"]
        self.assertLen(table, 4)
        other = {**params, "embed_class": {"embedding": table.at[3].add(1.0)}}
        change = jnp.abs(predict(other, x, t, c) - predict(params, x, t, c))
        moved = change.max(axis=(1, 2, 3)) > 1e-3
        self.assertEqual(moved.tolist(), [False, False, False, True])

    def test_sinusoids(self):
        t = np.array([0, 3, 999])
        angles = t[:, None] * 10_000.0 ** (-np.arange(16) / 15)
        np.testing.assert_allclose(
            _sinusoids(jnp.asarray(t), 32),
            np.concatenate([np.sin(angles), np.cos(angles)], axis=1),
            atol=2e-4,  # float32 angles up to 999
        )

    def test_patches_equal_the_native_convolution(self):
        params, predict = network()
        patches = network(**PATCHES)[1]
        np.testing.assert_allclose(
            patches(params, *inputs()), predict(params, *inputs()), atol=1e-4
        )

    def test_dtypes(self):
        params, predict = network()
        x, t, c = inputs()
        short = jax.eval_shape(predict, params, x.astype(jnp.bfloat16), t, c)
        self.assertEqual(short.dtype, jnp.bfloat16)

        out = predict(params, x, t, c)
        low_params, low_predict = network(dtype=jnp.bfloat16)
        chex.assert_trees_all_equal(params, low_params)  # float32 both
        computed = low_predict(params, x, t, c)
        self.assertEqual(computed.dtype, jnp.float32)
        error = jnp.linalg.norm(computed - out) / jnp.linalg.norm(out)
        self.assertBetween(error, 1e-4, 0.05)  # rounded, and no more than that


class NetworkTest(parameterized.TestCase):
    """As ``predict`` of the losses and samplers."""

    def setUp(self):
        super().setUp()
        self.params, self.predict = network()

    def loss(self, params, x0, labels, key):
        return diffusion.noise_loss(
            self.predict, params, SCHEDULE, x0, labels, key, pixel_reduction=jnp.mean
        )

    def sample(self, params, labels, key):
        shape = (len(labels), 8, 8, 1)
        return diffusion.ddim_sample(
            self.predict, params, SCHEDULE, key, labels, shape, num_steps=10, clip=1.0
        )

    @pytest.mark.slow
    def test_learns_a_picture_for_each_class(self):
        self.params, self.predict = network(multipliers=(1,), attention=(), **PATCHES)
        half = jnp.where(jnp.arange(8) < 4, 1.0, -1.0)
        pictures = jnp.stack(jnp.broadcast_arrays(half, half[:, None]))
        labels, optimiser = jnp.arange(32) % 2, optax.adam(1e-2)

        @jax.jit
        def train(params):
            def step(carry, key):
                params, state = carry
                x0 = pictures[labels][..., None]
                loss, grads = jax.value_and_grad(self.loss)(params, x0, labels, key)
                updates, state = optimiser.update(grads, state)
                return (optax.apply_updates(params, updates), state), loss

            start = params, optimiser.init(params)
            keys = jax.random.split(jax.random.key(2), 300)
            (params, _), losses = jax.lax.scan(step, start, keys)
            return params, losses

        last = jax.tree.map(jnp.zeros_like, self.params["last"])
        params, losses = train({**self.params, "last": last})
        self.assertLess(losses[-20:].mean(), 0.1)  # 1 for a network that says zero
        images = jax.jit(self.sample)(params, labels, jax.random.key(3))[..., 0]
        self.assertGreater(jnp.mean(images * pictures[labels]), 0.7)  # 1 if equal
        self.assertLess(jnp.mean(images * pictures[1 - labels]), 0.2)  # 0 if equal

    @parameterized.parameters("tpu", "cuda")
    def test_lowers_elsewhere(self, platform):
        x0, _, labels = inputs()
        key = jax.random.key(0)
        for function, arguments in [
            (jax.grad(self.loss), (self.params, x0, labels, key)),
            (self.sample, (self.params, labels, key)),
        ]:
            exported = jax.export.export(jax.jit(function), platforms=[platform])
            self.assertEqual(exported(*arguments).platforms, (platform,))

    def test_eight_devices_give_what_one_gives(self):
        mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
        split = jax.sharding.NamedSharding(mesh, PartitionSpec("batch"))
        whole = jax.sharding.NamedSharding(mesh, PartitionSpec())
        batch = inputs(n=8)
        shared = self.predict(
            jax.device_put(self.params, whole), *jax.device_put(batch, split)
        )
        self.assertLen(shared.sharding.device_set, 8)
        np.testing.assert_allclose(shared, self.predict(self.params, *batch), atol=1e-5)
