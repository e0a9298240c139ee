"""Models: published sizes, the border to pure functions, patches, own factories."""

import functools
import os
import pathlib
import sys
import tempfile
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import datasets

from experiments import models
from experiments.models import resnet, vit
from experiments.models.border import ModelError, from_linen, from_nnx
from experiments.models.convolution import conv_general_dilated, patch_convolution

NHWC = ("NHWC", "HWIO", "NHWC")
FEATURES, CLASSES = 6, 3
X = jax.random.normal(jax.random.key(7), (4, FEATURES)) + 2.0


def count(model: models.Model) -> int:
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


class NNXNet(nnx.Module):
    """BatchNorm on the input, dropout, a dense layer, for images or vectors."""

    def __init__(self, num_classes=CLASSES, input_shape=(FEATURES,), *, rngs):
        size = input_shape[-1]
        self.norm = nnx.BatchNorm(size, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(size, num_classes, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(self.norm(x))
        return self.dense(x.reshape(len(x), -1, x.shape[-1]).mean(1))


class Affine(nnx.Module):
    """Adds ``i`` and multiplies by ``1 + i / 10``: the order of such layers matters."""

    def __init__(self, i: int):
        self.shift = nnx.Param(jnp.float32(i))
        self.scale = nnx.Param(jnp.float32(1 + i / 10))

    def __call__(self, x):
        return (x + self.shift[...]) * self.scale[...]


def affine_net(*, rngs):
    """Twelve layers in a list."""
    del rngs
    return nnx.Sequential(*(Affine(i) for i in range(12)))


class LinenNet(linen.Module):
    """BatchNorm on the input, dropout, a dense layer."""

    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.BatchNorm(momentum=0.9, use_running_average=not train, name="norm")(x)
        x = linen.Dropout(0.5, deterministic=not train)(x)
        return linen.Dense(CLASSES)(x)


# Each model once, so that its initialisation compiles once.
BOTH = (
    ("nnx", functools.cache(lambda: from_nnx(NNXNet))),
    ("linen", functools.cache(lambda: from_linen(LinenNet(), (FEATURES,)))),
)


def batch_mean(model_state):
    """The BatchNorm's running mean, in either library's layout."""
    return model_state.get("batch_stats", model_state)["norm"]["mean"]


class BorderTest(parameterized.TestCase):
    @parameterized.named_parameters(*BOTH)
    def test_statistics_move_in_training_alone(self, make):
        model = make()
        params, state = model.init(jax.random.key(0))
        logits, new_state = model.apply(
            params, state, X, train=True, key=jax.random.key(1)
        )
        self.assertEqual(logits.shape, (4, CLASSES))
        # decay 0.9 from zero: a tenth of the batch's mean
        expected = 0.1 * np.mean(X, axis=0)
        np.testing.assert_allclose(batch_mean(new_state), expected, atol=1e-6)
        self.assertEqual(jax.tree.structure(state), jax.tree.structure(new_state))
        logits, same = model.apply(params, new_state, X, train=False)
        self.assertEqual(logits.shape, (4, CLASSES))
        self.assertIs(same, new_state)

    @parameterized.named_parameters(*BOTH)
    def test_trees_are_plain_dictionaries_of_numbers(self, make):
        params, state = make().init(jax.random.key(0))
        for tree in (params, state):
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                self.assertTrue(jnp.issubdtype(leaf.dtype, jnp.floating), path)
                for key in path:
                    self.assertIsInstance(key, jax.tree_util.DictKey)
                    self.assertIsInstance(key.key, str)
        self.assertLen(jax.tree.leaves(state), 2)  # mean and variance; no random state

    @parameterized.named_parameters(*BOTH)
    def test_dropout_follows_the_key(self, make):
        model = make()
        params, state = model.init(jax.random.key(0))

        def logits(seed, train):
            key = jax.random.key(seed)
            return np.asarray(model.apply(params, state, X, train=train, key=key)[0])

        np.testing.assert_array_equal(logits(1, True), logits(1, True))
        self.assertGreater(np.abs(logits(1, True) - logits(2, True)).max(), 1e-3)
        np.testing.assert_array_equal(logits(1, False), logits(2, False))
        with self.assertRaisesRegex(ModelError, "key"):
            model.apply(params, state, X, train=True)

    @parameterized.named_parameters(*BOTH)
    def test_jit_and_scan_equal_eager(self, make):
        model = make()
        params, state = model.init(jax.random.key(0))
        keys = jax.random.split(jax.random.key(3), 3)

        def step(state, key):
            def loss(params):
                logits, new_state = model.apply(params, state, X, train=True, key=key)
                return (logits**2).sum(), new_state

            (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params)
            return state, (value, grads)

        scanned = jax.jit(lambda state: jax.lax.scan(step, state, keys))(state)
        outs = []
        for key in keys:
            state, out = step(state, key)
            outs.append(out)
        looped = state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
            scanned,
            looped,
        )

    @parameterized.named_parameters(*BOTH)
    def test_a_batch_of_seeds_equals_a_loop(self, make):
        model = make()
        keys = jax.random.split(jax.random.key(0), 3)
        params, states = jax.vmap(model.init)(keys)
        apply = functools.partial(model.apply, train=True)
        logits, _ = jax.vmap(lambda p, s, k: apply(p, s, X, key=k))(
            params, states, keys
        )
        for i, key in enumerate(keys):
            one, state = model.init(key)
            jax.tree.map(
                np.testing.assert_array_equal, one, jax.tree.map(lambda x: x[i], params)
            )
            alone, _ = apply(one, state, X, key=key)
            np.testing.assert_allclose(logits[i], alone, rtol=1e-5, atol=1e-6)
        kernels = params["dense" if "dense" in params else "Dense_0"]["kernel"]
        self.assertGreater(np.abs(kernels[0] - kernels[1]).max(), 1e-3)

    @parameterized.named_parameters(*BOTH)
    def test_pmap_equals_one_device(self, make):
        model = make()
        params, state = model.init(jax.random.key(0))
        shards = jnp.stack([X, X + 1.0])
        apply = functools.partial(model.apply, train=True, key=jax.random.key(1))
        logits, states = jax.pmap(
            apply, in_axes=(None, None, 0), devices=jax.devices()[:2]
        )(params, state, shards)
        for i, shard in enumerate(shards):
            expected, expected_state = apply(params, state, shard)
            np.testing.assert_allclose(logits[i], expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(
                batch_mean(states)[i], batch_mean(expected_state), rtol=1e-5
            )

    def test_nnx_equals_the_module_itself(self):
        model, module = from_nnx(NNXNet), NNXNet(rngs=nnx.Rngs(jax.random.key(5)))
        module.eval()
        params, state = model.init(jax.random.key(5))
        logits, _ = model.apply(params, state, X, train=False)
        np.testing.assert_allclose(logits, module(X), rtol=1e-5, atol=1e-6)

    def test_a_list_of_layers_keeps_its_order(self):
        # as strings, "10" comes before "2"
        model = from_nnx(affine_net)
        params, state = model.init(jax.random.key(0))
        self.assertEqual(params["layers"]["10"]["shift"], 10.0)
        expected = np.asarray(X)
        for i in range(12):
            expected = (expected + i) * (1 + i / 10)
        logits, _ = model.apply(params, state, X, train=False)
        np.testing.assert_allclose(logits, expected, rtol=1e-5)

    def test_linen_equals_the_module_itself(self):
        module = LinenNet()
        model = from_linen(module, (FEATURES,))
        params, state = model.init(jax.random.key(5))
        key = jax.random.key(6)
        logits, new_state = model.apply(params, state, X, train=True, key=key)
        expected, expected_state = module.apply(
            {"params": params, **state},
            X,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        np.testing.assert_array_equal(logits, expected)
        jax.tree.map(np.testing.assert_array_equal, new_state, dict(expected_state))

    @parameterized.named_parameters(
        ("training", "training", True),
        ("is_training", "is_training", True),
        ("deterministic", "deterministic", False),
        ("use_running_average", "use_running_average", False),
    )
    def test_linen_mode_by_other_names(self, argument, in_training):
        source = (
            f"def __call__(self, x, {argument}): return x * (1.0 if {argument} "
            + ("else 2.0)")
        )
        scope: dict = {}
        exec(source, scope)
        net = type("Net", (linen.Module,), {"__call__": scope["__call__"]})
        model = from_linen(net(), (FEATURES,))
        params, state = model.init(jax.random.key(0))
        self.assertEqual((params, state), ({}, {}))
        logits, state = model.apply(params, state, X, train=True)
        np.testing.assert_array_equal(logits, X * (1.0 if in_training else 2.0))
        self.assertEqual(state, {})

    def test_boxes_lists_and_empty_parts_become_plain_dictionaries(self):
        class Net(linen.Module):
            @linen.compact
            def __call__(self, x, train: bool = False):
                def init(key):
                    box = linen.Partitioned(jnp.float32(2), names=())
                    return {"list": [box, {10: jnp.float32(3)}], "none": None, "e": {}}

                tree = self.param("tree", init)
                return x * tree["list"][0] + tree["list"][1][10]

        model = from_linen(Net(), (FEATURES,))
        params, state = model.init(jax.random.key(0))
        self.assertEqual(params, {"tree": {"list": {"0": 2.0, "1": {"10": 3.0}}}})
        logits, state = model.apply(params, state, X, train=True)
        np.testing.assert_allclose(logits, X * 2 + 3, rtol=1e-6)
        self.assertEqual(state, {})

    def test_wrong_trees_are_named(self):
        model = from_nnx(NNXNet)
        params, state = model.init(jax.random.key(0))
        dense = params.pop("dense")
        with self.assertRaisesRegex(ModelError, "without dense.bias, dense.kernel"):
            model.apply(params, state, X, train=False)
        params["head"] = {"kernel": dense["kernel"]}
        with self.assertRaisesRegex(ModelError, "unknown head.kernel"):
            model.apply(params, state, X, train=False)


class SizeTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("small_cnn", "small_cnn", (8, 8, 1), 24_058),
        ("small_cnn_fashion", "small_cnn", (28, 28, 1), 24_058),
        ("fast_cnn", "fast_cnn", (32, 32, 3), 569_642),
        ("resnet18", "resnet18", (32, 32, 3), 11_173_962),
        ("resnet20", "resnet20", (32, 32, 3), 269_722),
        ("resnet20_strided", "resnet20_strided", (32, 32, 3), 269_722),
        ("vgg16_bn", "vgg16_bn", (32, 32, 3), 14_728_266),
    )
    def test_parameters_as_published(self, name, input_shape, expected):
        # build itself checks that 2 images give logits of shape (2, 10), in both modes
        self.assertEqual(count(models.build(name, 10, input_shape)), expected)

    @parameterized.named_parameters(
        ("cifar", 32, 4, 10, 5_362_762),
        ("deit_tiny", 224, 16, 1000, 5_717_416),  # Touvron et al., 5.7 M
    )
    def test_vit_tiny(self, size, patch, num_classes, published):
        width, depth, tokens = 192, 12, (size // patch) ** 2 + 1
        norm = 2 * width
        attention = 4 * width * (width + 1)
        perceptron = 4 * width * (width + 1) + width * (4 * width + 1)
        expected = (
            (patch**2 * 3 + 1) * width  # embedding
            + (1 + tokens) * width  # class token, positions
            + depth * (2 * norm + attention + perceptron)
            + norm
            + (width + 1) * num_classes
        )
        self.assertEqual(expected, published)
        model = from_nnx(
            vit.ViT, num_classes=num_classes, input_shape=(size, size, 3), patch=patch
        )
        self.assertEqual(count(model), published)

    def test_a_strided_stem_halves_the_resolution(self):
        for name, side in (("resnet20", 8), ("resnet20_strided", 4)):
            factory = models.FACTORIES[name]

            def stem(x, factory=factory):
                return factory(10, (8, 8, 1), rngs=nnx.Rngs(0)).stem(x)

            out = jax.eval_shape(stem, jnp.zeros((2, 8, 8, 1)))
            self.assertEqual(out.shape, (2, side, side, 16))

    def test_width_shrinks_a_resnet(self):
        narrow = models.build("resnet18", 10, (32, 32, 3), width=16)
        self.assertEqual(count(narrow), 701_466)

    def test_dense_kernels_of_vit_have_two_axes(self):
        model = models.build("vit_tiny", 10, (8, 8, 1), width=12, depth=1)
        params, _ = jax.eval_shape(model.init, jax.random.key(0))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params["blocks"]):
            self.assertLessEqual(leaf.ndim, 2, jax.tree_util.keystr(path))


class NetworkTest(parameterized.TestCase):
    def test_small_cnn_learns_the_digits(self):
        images, labels = datasets.load_digits(return_X_y=True)
        x = jnp.asarray(images[:1408].reshape(22, 64, 8, 8, 1) / 16.0, jnp.float32)
        y = jnp.asarray(labels[:1408].reshape(22, 64))
        model = models.build("small_cnn", 10, (8, 8, 1))
        params, state = model.init(jax.random.key(0))
        tx = optax.sgd(0.1, momentum=0.9)

        def step(carry, batch):
            params, state, opt_state = carry

            def loss(params):
                logits, new_state = model.apply(params, state, batch[0], train=True)
                losses = optax.softmax_cross_entropy_with_integer_labels
                return losses(logits, batch[1]).mean(), new_state

            grads, state = jax.grad(loss, has_aux=True)(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), state, opt_state), None

        epoch = jax.jit(lambda carry: jax.lax.scan(step, carry, (x, y))[0])
        carry = (params, state, tx.init(params))
        for _ in range(3):
            carry = epoch(carry)
        test = jnp.asarray(images[1408:].reshape(-1, 8, 8, 1) / 16.0, jnp.float32)
        params, state, _ = carry
        logits, _ = model.apply(params, state, test, train=False)
        accuracy = np.mean(np.argmax(logits, axis=-1) == labels[1408:])
        self.assertGreater(accuracy, 0.9)

    def test_shortcut_without_parameters(self):
        block: Any = resnet.Block(2, 4, 2, project=False, rngs=nnx.Rngs(0))
        block.norm2 = jnp.zeros_like  # silences the convolutions
        x = np.random.default_rng(0).uniform(size=(1, 4, 4, 2)).astype(np.float32)
        expected = np.zeros((1, 2, 2, 4), np.float32)
        expected[..., :2] = x[:, ::2, ::2]
        np.testing.assert_array_equal(block(jnp.asarray(x)), expected)


@st.composite
def convolutions(draw):
    """Shapes of images and kernel, and the convolution's options."""
    sides = st.integers(1, 3)
    kernel = (draw(sides), draw(sides), draw(sides), draw(sides))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    pads = st.tuples(st.integers(0, 2), st.integers(0, 2))
    return (
        (2, draw(st.integers(5, 8)), draw(st.integers(5, 8)), kernel[2]),
        kernel,
        draw(st.tuples(sides, sides)),
        draw(st.sampled_from(["SAME", "VALID"]) | st.tuples(pads, pads)),
        dilation,
    )


class ConvolutionTest(parameterized.TestCase):
    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(convolutions())
    def test_patches_equal_lax_in_value_and_gradient(self, case):
        image_shape, kernel_shape, strides, padding, dilation = case
        rng = np.random.default_rng(0)
        x = rng.normal(size=image_shape).astype(np.float32)
        w = rng.normal(size=kernel_shape).astype(np.float32)

        def value_and_gradients(x, w, use_patches):
            def convolve(x, w):
                return conv_general_dilated(
                    x,
                    w,
                    strides,
                    padding,
                    rhs_dilation=dilation,
                    dimension_numbers=NHWC,
                    use_patches=use_patches,
                )

            y, pull = jax.vjp(convolve, x, w)
            return y, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

        @jax.jit
        def both(x, w):
            return value_and_gradients(x, w, True), value_and_gradients(x, w, False)

        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
            *both(x, w),
        )

    def test_closed_form(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(1, 5, 6, 2)).astype(np.float32)
        w = rng.normal(size=(3, 2, 2, 4)).astype(np.float32)
        expected = np.zeros((1, 2, 5, 4))
        for row in range(2):
            for column in range(5):
                window = x[:, 2 * row : 2 * row + 3, column : column + 2]
                expected[:, row, column] = np.einsum("nijc,ijcf->nf", window, w)
        y = patch_convolution(jnp.asarray(x), jnp.asarray(w), (2, 1), "VALID")
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)

    @parameterized.named_parameters(("cpu", "cpu", False), ("gpu", "gpu", True))
    def test_the_backend_picks(self, backend, native):
        x, w = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
        with mock.patch.object(jax, "default_backend", return_value=backend):
            jaxpr = jax.make_jaxpr(
                lambda x, w: conv_general_dilated(
                    x, w, (1, 1), "SAME", dimension_numbers=NHWC
                )
            )(x, w)
        self.assertEqual("conv_general_dilated" in str(jaxpr), native)

    def test_both_flax_layers_take_it(self):
        x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
        arguments: Any = dict(kernel_size=(3, 3), strides=(2, 2), padding="SAME")
        ours = nnx.Conv(
            3,
            4,
            **arguments,
            conv_general_dilated=patch_convolution,
            rngs=nnx.Rngs(0),
        )
        native = nnx.Conv(3, 4, **arguments, rngs=nnx.Rngs(0))
        np.testing.assert_allclose(ours(x), native(x), rtol=1e-5, atol=1e-5)
        layer = linen.Conv(4, **arguments, conv_general_dilated=patch_convolution)
        variables = layer.init(jax.random.key(0), x)
        outs: Any = [
            module.apply(variables, x) for module in (layer, linen.Conv(4, **arguments))
        ]
        np.testing.assert_allclose(*outs, rtol=1e-5, atol=1e-5)

    @parameterized.named_parameters(
        ("groups", dict(feature_group_count=3), (3, 3, 1, 3), "feature_group_count=3"),
        ("image_dilation", dict(lhs_dilation=(2, 2)), (3, 3, 3, 3), "lhs_dilation"),
        (
            "layout",
            dict(dimension_numbers=("NCHW", "OIHW", "NCHW")),
            (3, 6, 3, 3),
            "NCHW",
        ),
        ("rank", {}, (3, 3, 3), "four axes"),
        ("channels", {}, (3, 3, 2, 3), "3 channels"),
    )
    def test_unsupported_is_said(self, options, kernel_shape, message):
        with self.assertRaisesRegex(ValueError, message):
            patch_convolution(
                jnp.ones((1, 6, 6, 3)),
                jnp.ones(kernel_shape),
                (1, 1),
                "SAME",
                **options,
            )


OWN_MODELS = """
from flax import linen, nnx
from tests.experiments.models_test import LinenNet, NNXNet

nnx_class = NNXNet

def nnx_function(num_classes, input_shape, *, rngs):
    return NNXNet(num_classes, input_shape, rngs=rngs)

class Flat(linen.Module):
    num_classes: int
    @linen.compact
    def __call__(self, x):
        return linen.Dense(self.num_classes)(x.reshape(len(x), -1))

def linen_function(num_classes, input_shape):
    return Flat(num_classes)

def wrong_size(num_classes, input_shape):
    return Flat(num_classes + 1)

def wrong_object(num_classes, input_shape):
    return "a model"

def wrong_nnx_object(num_classes, input_shape, rngs):
    return Flat(num_classes)

def forgot_rngs(num_classes, input_shape):
    return NNXNet(num_classes, input_shape, rngs=nnx.Rngs(0))

def raises(num_classes, input_shape):
    raise RuntimeError("no weights here\\nsecond line")

not_callable = 3
"""


class BuildTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        pathlib.Path(folder.name, "own_models.py").write_text(OWN_MODELS)
        pathlib.Path(folder.name, "broken_models.py").write_text(
            "import nowhere_at_all"
        )
        self.enterContext(mock.patch.object(sys, "path", list(sys.path)))
        self.enterContext(mock.patch.dict(sys.modules))
        self.addCleanup(os.chdir, pathlib.Path.cwd())
        os.chdir(folder.name)

    @parameterized.parameters("nnx_class", "nnx_function", "linen_function")
    def test_own_factory(self, name):
        # build has traced it: 2 images give logits of shape (2, 5)
        model = models.build(f"own_models:{name}", 5, (4, 4, 2))
        params, _ = jax.eval_shape(model.init, jax.random.key(0))
        kernels = [leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
        self.assertEqual([shape[1] for shape in kernels], [5])

    @parameterized.named_parameters(
        (
            "unknown",
            "resnet50",
            "small_cnn, fast_cnn, resnet18, resnet20, resnet20_strided, vgg16",
        ),
        ("half", "own_models:", "unknown model 'own_models:'"),
        ("no_module", "nowhere_at_all:net", "No module named 'nowhere_at_all'"),
        ("broken_module", "broken_models:net", "No module named 'nowhere_at_all'"),
        ("no_factory", "own_models:net", "no callable 'net'"),
        ("not_callable", "own_models:not_callable", "no callable 'not_callable'"),
        ("wrong_object", "own_models:wrong_object", "Got str .* flax.linen.Module"),
        ("wrong_nnx", "own_models:wrong_nnx_object", "Got Flat .* flax.nnx.Module"),
        ("no_rngs", "own_models:forgot_rngs", "Got NNXNet .* argument rngs"),
        ("wrong_size", "own_models:wrong_size", r"Got \(2, 6\) .* shape \(2, 5\)"),
        ("raises", "own_models:raises", "RuntimeError .* no weights here"),
    )
    def test_one_line_errors(self, name, message):
        with self.assertRaisesRegex(ModelError, message) as caught:
            models.build(name, 5, (4, 4, 2))
        self.assertLen(str(caught.exception).splitlines(), 1)

    @parameterized.named_parameters(
        ("patches", "vit_tiny", (30, 30, 3), {}, "multiples of the patch"),
        ("axes", "small_cnn", (8, 8), {}, "model small_cnn on images of shape"),
        ("option", "small_cnn", (8, 8, 1), {"depth": 3}, "unexpected keyword"),
    )
    def test_what_does_not_fit(self, name, input_shape, options, message):
        with self.assertRaisesRegex(ModelError, message) as caught:
            models.build(name, 10, input_shape, **options)
        self.assertLen(str(caught.exception).splitlines(), 1)


if __name__ == "__main__":
    absltest.main()
