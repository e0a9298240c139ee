"""Roles of leaves, on what the model libraries make and on what they leave open."""

import dataclasses

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import linen as nn
from flax import nnx
from flax.core import freeze
from flax.traverse_util import flatten_dict

from mujax import roles
from mujax.roles import MatrixAxes

DENSE = MatrixAxes((), (0,), (1,))
TURNED = MatrixAxes((), (1,), (0,))  # Equinox keeps outputs × inputs
STACK = MatrixAxes((0,), (1,), (2,))
HWIO = MatrixAxes((2,), (3,), (0, 1))
OIHW = MatrixAxes((1,), (0,), (2, 3))
KEY = jax.random.key(0)


def shape(*lengths):
    return jax.ShapeDtypeStruct(lengths, jnp.float32)


def layer(kernel, bias=None):
    leaves = {"kernel": shape(*kernel)}
    return leaves if bias is None else leaves | {"bias": shape(*bias)}


def views(tree, **options):
    """Views of the kernels, by name."""
    found = jax.tree.leaves(roles.infer(tree, **options))
    pairs = zip(roles.leaf_names(tree), found, strict=True)
    return {name: role.axes for name, role in pairs if role.axes is not None}


def linen(module, *inputs):
    return jax.eval_shape(lambda: module.init(KEY, *inputs))["params"]


def nnx_params(build):
    return nnx.eval_shape(lambda: nnx.state(build(nnx.Rngs(0)), nnx.Param))


def haiku_params(build, *inputs):
    made = hk.transform_with_state(lambda *x: build()(*x))
    return jax.eval_shape(made.init, KEY, *inputs)[0]


def equinox(build):
    return eqx.filter_eval_shape(build, KEY)


class Scanned(nn.Module):
    """Three blocks of attention, convolution and a dense layer, biases or none."""

    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        use_bias = self.use_bias

        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                x = nn.LayerNorm(use_bias=use_bias)(x)
                x = nn.MultiHeadDotProductAttention(2, use_bias=use_bias)(x)
                x = nn.Conv(8, (3,), use_bias=use_bias)(x)
                return nn.Dense(8, use_bias=use_bias)(x), None

        scan = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return scan(name="blocks")(x, None)[0]


class LinenTest(parameterized.TestCase):
    X, IMAGE = jnp.ones((2, 5, 8)), jnp.ones((2, 8, 8, 4))

    @parameterized.named_parameters(
        ("dense", nn.Dense(3), X, DENSE),
        ("conv", nn.Conv(6, (3, 3)), IMAGE, HWIO),
        ("grouped", nn.Conv(6, (3, 3), feature_group_count=2), IMAGE, HWIO),
        ("depthwise", nn.Conv(4, (3, 3), feature_group_count=4), IMAGE, HWIO),
        (
            "conv_3d",
            nn.Conv(6, (3, 3, 3)),
            jnp.ones((1, 4, 4, 4, 2)),
            MatrixAxes((3,), (4,), (0, 1, 2)),
        ),
        ("transposed", nn.ConvTranspose(6, (3, 3)), IMAGE, HWIO),
        (
            "transposed_kernel",
            nn.ConvTranspose(6, (3, 3), transpose_kernel=True),
            IMAGE,
            MatrixAxes((3,), (2,), (0, 1)),
        ),
        (
            "local",
            nn.ConvLocal(6, (3, 3)),
            IMAGE,
            MatrixAxes((0, 1), (2,), (3,)),
        ),
        (
            "general",
            nn.DenseGeneral((3, 4), axis=(-2, -1)),
            X,
            MatrixAxes((), (0, 1), (2, 3)),
        ),
        ("general_batch", nn.DenseGeneral(4, axis=-1, batch_dims=(0,)), X, STACK),
        ("einsum", nn.Einsum((5, 8, 3), "blc,lcd->bld"), X, STACK),
        ("embed", nn.Embed(10, 6), jnp.ones((2,), int), DENSE),
    )
    def test_one_kernel(self, module, inputs, wanted):
        self.assertEqual(list(views(linen(module, inputs)).values()), [wanted])

    @parameterized.parameters(
        nn.LayerNorm(),
        nn.LayerNorm(reduction_axes=(1, 2, 3), feature_axes=(1, 2, 3)),
        nn.BatchNorm(True),
        nn.GroupNorm(2),
        nn.RMSNorm(),
    )
    def test_norms_have_no_kernel(self, module):
        self.assertEqual(views(linen(module, self.IMAGE)), {})

    @parameterized.product(
        heads=(2, 8), use_bias=(True, False), normalize_qk=(True, False)
    )
    def test_attention_is_one_matrix_a_projection(self, heads, use_bias, normalize_qk):
        # With 8 heads of one entry, embed = heads: the shapes alone could be a stack.
        module = nn.MultiHeadDotProductAttention(
            heads, use_bias=use_bias, normalize_qk=normalize_qk
        )
        into = MatrixAxes((), (0,), (1, 2))
        wanted = {f"{name}/kernel": into for name in ("key", "query", "value")}
        wanted["out/kernel"] = MatrixAxes((), (0, 1), (2,))
        self.assertEqual(views(linen(module, self.X)), wanted)

    def test_attention_with_all_axes_alike(self):
        biased = {k: layer((8, 8, 8), (8, 8)) for k in ("query", "key", "value")}
        found = views(biased | {"out": layer((8, 8, 8), (8,))})
        self.assertEqual(found["query/kernel"], MatrixAxes((), (0,), (1, 2)))
        self.assertEqual(found["out/kernel"], MatrixAxes((), (0, 1), (2,)))

    @parameterized.parameters(True, False)
    def test_scanned_layers_lead_with_the_stack(self, use_bias):
        found = views(linen(Scanned(use_bias), self.X))
        into = MatrixAxes((0,), (1,), (2, 3))
        attention = "blocks/MultiHeadDotProductAttention_0"
        wanted = {f"{attention}/{k}/kernel": into for k in ("key", "query", "value")}
        wanted |= {
            f"{attention}/out/kernel": MatrixAxes((0,), (1, 2), (3,)),
            "blocks/Conv_0/kernel": MatrixAxes((0, 2), (3,), (1,)),
            "blocks/Dense_0/kernel": STACK,
        }
        self.assertEqual(found, wanted)

    @parameterized.parameters(nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell)
    def test_recurrent_cells(self, cell):
        tree = linen(nn.RNN(cell(6)), self.X)
        kernels = [x for x in roles.leaf_names(tree) if x.endswith("kernel")]
        self.assertEqual(views(tree), dict.fromkeys(kernels, DENSE))


class NnxTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("linear", lambda rngs: nnx.Linear(4, 3, rngs=rngs), DENSE),
        ("conv", lambda rngs: nnx.Conv(4, 6, (3, 3), rngs=rngs), HWIO),
        ("transposed", lambda rngs: nnx.ConvTranspose(4, 6, (3, 3), rngs=rngs), HWIO),
        ("embed", lambda rngs: nnx.Embed(9, 4, rngs=rngs), DENSE),
        (
            "general",
            lambda rngs: nnx.LinearGeneral((2, 3), (4, 5), axis=(-2, -1), rngs=rngs),
            MatrixAxes((), (0, 1), (2, 3)),
        ),
        (
            "einsum",
            lambda rngs: nnx.Einsum("nta,hab->nthb", (8, 2, 4), (8, 4), rngs=rngs),
            STACK,
        ),
    )
    def test_one_kernel(self, build, wanted):
        self.assertEqual(list(views(nnx_params(build)).values()), [wanted])

    def test_cells_and_low_rank_factors(self):
        tree = nnx_params(
            lambda rngs: nnx.List(
                [
                    nnx.LSTMCell(4, 6, rngs=rngs),
                    nnx.GRUCell(4, 6, rngs=rngs),
                    nnx.LoRALinear(8, 6, lora_rank=2, rngs=rngs),
                ]
            )
        )
        matrices = [
            name
            for name, leaf in zip(
                roles.leaf_names(tree), jax.tree.leaves(tree), strict=True
            )
            if len(leaf.shape) == 2
        ]
        self.assertEqual(views(tree), dict.fromkeys(matrices, DENSE))

    def test_vmapped_attention_and_its_containers(self):
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(key):
            return nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(key))

        state = nnx.state(make(jax.random.split(KEY, 3)), nnx.Param)
        into = MatrixAxes((0,), (1,), (2, 3))
        wanted = {f"{name}/kernel": into for name in ("key", "query", "value")}
        wanted["out/kernel"] = MatrixAxes((0,), (1, 2), (3,))
        pure = nnx.to_pure_dict(state)
        for tree in (state, pure, freeze(pure), flatten_dict(pure)):
            self.assertEqual(views(tree), wanted)


class HaikuTest(parameterized.TestCase):
    X, IMAGE = jnp.ones((2, 5, 8)), jnp.ones((2, 8, 8, 4))

    @parameterized.named_parameters(
        ("linear", lambda: hk.Linear(3), X, [DENSE]),
        ("conv_1d", lambda: hk.Conv1D(6, 3), X, [MatrixAxes((1,), (2,), (0,))]),
        (
            "conv_1d_transposed",
            lambda: hk.Conv1DTranspose(6, 3),
            X,
            [MatrixAxes((2,), (1,), (0,))],
        ),
        ("conv", lambda: hk.Conv2D(6, 3), IMAGE, [HWIO]),
        ("channels_first", lambda: hk.Conv2D(6, 3, data_format="NCHW"), IMAGE, [HWIO]),
        (
            "transposed",
            lambda: hk.Conv2DTranspose(6, 3),
            IMAGE,
            [MatrixAxes((3,), (2,), (0, 1))],
        ),
        ("depthwise", lambda: hk.DepthwiseConv2D(2, 3), IMAGE, [HWIO]),
        ("pointwise", lambda: hk.Conv2D(6, 1, with_bias=False), IMAGE, [HWIO]),
        ("embed", lambda: hk.Embed(9, 4), jnp.ones((2,), int), [DENSE]),
        ("mlp", lambda: hk.nets.MLP([3, 4]), X, [DENSE] * 2),
        ("layer_norm", lambda: hk.LayerNorm(-1, True, True), X, []),
        ("bias", lambda: hk.Bias(bias_dims=[-2, -1]), X, []),
    )
    def test_kernels(self, build, inputs, wanted):
        tree = haiku_params(build, inputs)
        self.assertEqual(list(views(tree).values()), wanted)

    def test_norm_beside_pointwise_convolution(self):
        # Both lead with axes of length one, which are no stack.
        def net():
            norm = hk.BatchNorm(True, True, 0.9)
            return lambda x: norm(hk.Conv2D(6, 1, with_bias=False)(x), True)

        self.assertEqual(list(views(haiku_params(net, self.IMAGE)).values()), [HWIO])

    def test_attention_and_cells(self):
        attention = haiku_params(
            lambda: (
                lambda x: hk.MultiHeadAttention(
                    2, 4, w_init=hk.initializers.Constant(0)
                )(x, x, x)
            ),
            self.X,
        )
        self.assertEqual(list(views(attention).values()), [DENSE] * 4)
        gru = haiku_params(lambda: hk.GRU(6), self.X[:, 0], jnp.ones((2, 6)))
        self.assertEqual(views(gru), {"gru/w_h": DENSE, "gru/w_i": DENSE})

    @parameterized.parameters(True, False)
    def test_stack(self, with_bias):
        def net():
            return hk.layer_stack(3)(lambda x: hk.Linear(8, with_bias=with_bias)(x))

        self.assertEqual(list(views(haiku_params(net, self.X)).values()), [STACK])


class EquinoxTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("linear", lambda k: eqx.nn.Linear(4, 6, key=k), [TURNED]),
        ("scalar", lambda k: eqx.nn.Linear("scalar", 6, key=k), [TURNED]),
        (
            "conv_1d",
            lambda k: eqx.nn.Conv1d(4, 6, 3, key=k),
            [MatrixAxes((1,), (0,), (2,))],
        ),
        ("conv", lambda k: eqx.nn.Conv2d(4, 6, 3, key=k), [OIHW]),
        ("bare_conv", lambda k: eqx.nn.Conv2d(4, 6, 3, use_bias=False, key=k), [OIHW]),
        ("grouped", lambda k: eqx.nn.Conv2d(4, 6, 3, groups=2, key=k), [OIHW]),
        (
            "conv_3d",
            lambda k: eqx.nn.Conv3d(4, 6, 3, key=k),
            [MatrixAxes((1,), (0,), (2, 3, 4))],
        ),
        ("transposed", lambda k: eqx.nn.ConvTranspose2d(4, 6, 3, key=k), [OIHW]),
        ("layer_norm", lambda k: eqx.nn.LayerNorm((4, 5, 6)), []),
        ("group_norm", lambda k: eqx.nn.GroupNorm(2, 4), []),
        ("lstm", lambda k: eqx.nn.LSTMCell(4, 6, key=k), [TURNED] * 2),
        ("attention", lambda k: eqx.nn.MultiheadAttention(2, 8, key=k), [TURNED] * 4),
        ("mlp", lambda k: eqx.nn.MLP(4, 5, 6, 2, key=k), [TURNED] * 3),
    )
    def test_kernels(self, build, wanted):
        self.assertEqual(list(views(equinox(build)).values()), wanted)

    def test_embedding_is_entries_by_features(self):
        tree = equinox(lambda k: {"embed": eqx.nn.Embedding(9, 4, key=k)})
        self.assertEqual(
            roles.infer(tree)["embed"].weight, roles.Role("embedding", DENSE)
        )

    @parameterized.parameters(True, False)
    def test_vmapped_stack(self, use_bias):
        def build(key):
            return {
                "linear": eqx.nn.Linear(4, 6, use_bias=use_bias, key=key),
                "conv": eqx.nn.Conv2d(4, 6, 3, use_bias=use_bias, key=key),
                "norm": eqx.nn.RMSNorm(4, use_bias=False),
            }

        stack = eqx.filter_eval_shape(
            eqx.filter_vmap(build), jax.ShapeDtypeStruct((3,), KEY.dtype)
        )
        wanted = {
            "conv/weight": MatrixAxes((0, 2), (1,), (3, 4)),
            "linear/weight": MatrixAxes((0,), (2,), (1,)),
        }
        self.assertEqual(views(stack), wanted)


class RuleTest(parameterized.TestCase):
    """What names, shapes and neighbours say of trees by hand."""

    @parameterized.named_parameters(
        ("stack_with_biases", layer((12, 64, 64), (12, 64)), STACK),
        ("capitals", {"W": shape(12, 8, 8), "b": shape(12, 8)}, STACK),
        ("experts", {"experts": {"w1": shape(4, 8, 16)}}, STACK),
        ("named_dense", {"Dense_0": layer((12, 8, 8))}, STACK),
        ("named_conv", {"conv": layer((5, 6, 8))}, MatrixAxes((1,), (2,), (0,))),
        ("asymmetric", {"conv": layer((1, 7, 4, 8))}, HWIO),
        ("bare_matrix", shape(4, 5), DENSE),
        ("bare_hwio", shape(3, 3, 16, 32), HWIO),
        ("bare_oihw", shape(32, 16, 3, 3), OIHW),
        ("plain_names", {"b": shape(4, 4)}, DENSE),
        ("statistics_in_a_name", {"w_mean": shape(8, 2)}, DENSE),
        ("tokens_in_a_name", {"latent_to_hidden": shape(8, 2)}, DENSE),
        (
            "joint_heads",
            {"qkv": layer((8, 3, 2, 4))},
            MatrixAxes((), (0,), (1, 2, 3)),
        ),
    )
    def test_kernel(self, tree, wanted):
        self.assertEqual(list(views(tree).values()), [wanted])

    @parameterized.parameters(
        ({"cls_token": shape(1, 1, 8)},),
        ({"pos_embedding": shape(1, 17, 8)},),
        ({"positions": shape(17, 8)},),
        ({"probe": shape(1, 1, 8)},),
        ({"layer_scale": shape(12, 8)},),
        ({"relative_position_bias_table": shape(169, 3)},),
        ({"relative_attention_bias": {"embedding": shape(32, 8)}},),
        ({"temperature": shape()},),
    )
    def test_no_kernel(self, tree):
        self.assertEqual(views(tree), {})

    @parameterized.named_parameters(
        ("unknown_name", {"foo": shape(12, 17, 8)}, "leaf foo of shape"),
        ("leading_one", {"foo": shape(1, 17, 8)}, "leaf foo of shape"),
        ("bare_array", {"w": shape(12, 64, 64)}, r"overrides=\{'w': MatrixAxes"),
        ("bare_four", {"w": shape(12, 64, 4, 16)}, "leaf w of shape"),
        ("no_name", shape(12, 64, 64), "leaf at the root"),
        (
            "conv_1d_or_heads",
            {"layers": [layer((3, 4, 8), (8,))]},
            "layers/0/kernel.*convolution.*or dense",
        ),
        ("heads_named_dense", {"dense": layer((2, 4, 8), (8,))}, "dense/kernel"),
        ("stack_or_heads", {"x": layer((8, 8, 8), (8, 8))}, "x/kernel"),
        ("layers_or_window", {"conv": layer((12, 3, 3, 8, 8))}, "conv/kernel"),
        ("low_rank_heads", {"q": {"lora_b": shape(2, 4, 4)}}, "q/lora_b"),
        (
            "stacked_vector_or_matrix",
            {"blocks": {"a": {"foo": shape(3, 8)}, "b": layer((3, 8, 8), (3, 8))}},
            "blocks/a/foo.*a stack of vectors",
        ),
        ("several", {"foo": shape(2, 3, 4), "goo": shape(2, 3, 4)}, "1 more leaf"),
    )
    def test_open_leaf_is_an_error(self, tree, message):
        with self.assertRaisesRegex(ValueError, message):
            roles.infer(tree)

    def test_scan_within_a_scan(self):
        inner = {"Dense_0": layer((2, 3, 4, 4), (2, 3, 4)), "up": layer((2, 3, 4, 8))}
        found = views({"outer": {"inner": inner, "Dense_0": layer((2, 4, 4), (2, 4))}})
        self.assertEqual(found["outer/inner/up/kernel"], MatrixAxes((0, 1), (2,), (3,)))
        self.assertEqual(found["outer/Dense_0/kernel"], STACK)

    def test_scanned_decoder_without_biases(self):
        blocks = {
            "norm": {"scale": shape(6, 16)},
            "attention": {
                "query": layer((6, 16, 4, 4)),
                "key": layer((6, 16, 2, 4)),
                "out": layer((6, 4, 4, 16)),
            },
            "gate": layer((6, 16, 32)),
            "moe": {"router": layer((6, 16, 4)), "w1": shape(6, 4, 16, 32)},
        }
        tree = {"blocks": blocks, "norm": {"scale": shape(16)}, "head": layer((16, 9))}
        wanted = {
            "blocks/attention/key/kernel": MatrixAxes((0,), (1,), (2, 3)),
            "blocks/attention/out/kernel": MatrixAxes((0,), (1, 2), (3,)),
            "blocks/attention/query/kernel": MatrixAxes((0,), (1,), (2, 3)),
            "blocks/gate/kernel": STACK,
            "blocks/moe/router/kernel": STACK,
            "blocks/moe/w1": MatrixAxes((0, 1), (2,), (3,)),
            "head/kernel": DENSE,
        }
        self.assertEqual(views(tree), wanted)

    def test_flat_heads_of_a_stack_are_no_split_heads(self):
        fused = {"query": layer((6, 8, 8)), "out": layer((6, 8, 8))}
        self.assertEqual(set(views(fused).values()), {STACK})

    def test_overrides(self):
        tree = {"foo": shape(2, 3, 4), "a": [layer((3, 3)), layer((3, 3))]}
        heads = MatrixAxes((0,), (2,), (1,))
        found = roles.infer(tree, {"foo": heads, "a/1/*": None})
        self.assertEqual(found["foo"], roles.Role("given", heads))
        self.assertEqual(found["a"][0]["kernel"], roles.Role("dense", DENSE))
        self.assertEqual(found["a"][1]["kernel"], roles.Role("given", None))
        first = views(tree, overrides={"foo": None, "*": heads})
        self.assertNotIn("foo", first)
        with self.assertRaisesRegex(ValueError, r"'b/\*' fits no leaf.*a/0/kernel"):
            roles.infer(tree, {"b/*": None})

    def test_names_are_the_same_in_all_containers(self):
        @jax.tree_util.register_dataclass
        @dataclasses.dataclass
        class Layer:
            kernel: object
            bias: object

        class Net(nnx.Module):
            def __init__(self):
                self.first = nnx.List([nnx.Linear(4, 4, rngs=nnx.Rngs(0))])

        def boxed(leaf):
            return nn.Partitioned(leaf, names=(None,) * leaf.ndim)

        net = {"kernel": np.ones((4, 4)), "bias": np.ones(4)}
        for tree in (
            {"first": [net]},
            {"first": {0: net}},
            {"first": {"0": net}},
            {"first/0": net},
            {"first": [Layer(**net)]},
            {"first.0.kernel": net["kernel"], "first.0.bias": net["bias"]},
            nnx.state(Net()),
            nnx.to_pure_dict(nnx.state(Net())),
            {"first": [jax.tree.map(boxed, net)]},
        ):
            names = {"first/0/bias", "first/0/kernel"}
            self.assertEqual(set(roles.leaf_names(tree)), names)
            self.assertEqual(views(tree), {"first/0/kernel": DENSE})


if __name__ == "__main__":
    absltest.main()
