"""Trained models in and out: every form is read, checked by leaf, and given back."""

import contextlib
import functools
import io
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import zipfile
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import safetensors.numpy
from absl.testing import absltest, parameterized
from flax import linen, nnx, serialization, traverse_util
from flax.training import train_state
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments import export, models
from experiments.engine import checkpoints
from experiments.engine.checkpoints import StoreError, load_original, save_checkpoint
from experiments.models.border import from_linen, from_nnx
from tests import command_line
from tests.examples import forms

ADAM = optax.adam(1e-3)
GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "torch.npz"


class LinenNet(linen.Module):
    """BatchNorm and two dense layers, one of them in a box."""

    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.BatchNorm(use_running_average=not train, name="norm")(x)
        init = linen.with_partitioning(linen.initializers.ones, (None, "model"))
        x = linen.Dense(3, kernel_init=init)(x)
        return linen.Dense(2)(x)


class NNXNet(nnx.Module):
    """A list of layers, attention, whose ``value`` is no box, and dropout."""

    def __init__(self, *, rngs):
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(11)])
        self.attention = nnx.MultiHeadAttention(2, 4, dropout_rate=0.1, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.dropout(self.norm(self.attention(x[:, None], decode=False)[:, 0]))


class TrainState(train_state.TrainState):
    batch_stats: Any = None


def boxed():
    return LinenNet().init(jax.random.key(0), jnp.ones((1, 4)))


def variables():
    return linen.meta.unbox(boxed())


def state(params, **others):
    return TrainState.create(apply_fn=None, params=params, tx=ADAM, **others)


def module_state():
    return nnx.state(NNXNet(rngs=nnx.Rngs(0)))


def pure(tree):
    return nnx.to_pure_dict(tree)


def split_parts():
    _, params, stats, rest = nnx.split(
        NNXNet(rngs=nnx.Rngs(0)), nnx.Param, nnx.BatchStat, ...
    )
    return {"params": params, "batch_stats": stats, "rest": rest}


def without_streams():
    return pure(nnx.split(NNXNet(rngs=nnx.Rngs(0)), nnx.RngState, ...)[2])


LINEN, NNX = from_linen(LinenNet(), (4,)), from_nnx(NNXNet)
ORBAX = (forms.save_orbax, forms.load_orbax)
MSGPACK = (forms.save_msgpack, forms.load_msgpack)
NPZ = (forms.save_npz, lambda path, _: forms.load_npz(path))
SAFETENSORS = (forms.save_safetensors, lambda path, _: forms.load_safetensors(path))


def save_slashes(path, tree):
    with path.open("wb") as file:
        leaves: Any = traverse_util.flatten_dict(tree, sep="/")
        np.savez(file, **leaves)


def load_slashes(path, _):
    return traverse_util.unflatten_dict(dict(np.load(path)), sep="/")


def added(tree):
    """One more in every float of the model, none in the optimiser's."""

    def add(path, leaf):
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return leaf + 1 if floating and "opt_state" not in str(path) else leaf

    return jax.tree.map_with_path(add, tree)


FORMS = (
    ("linen_variables", LINEN, variables, ORBAX),
    ("linen_boxed", LINEN, boxed, ORBAX),
    ("linen_msgpack", LINEN, variables, MSGPACK),
    ("linen_boxed_msgpack", LINEN, boxed, MSGPACK),
    ("linen_npz", LINEN, variables, NPZ),
    ("linen_npz_slashes", LINEN, variables, (save_slashes, load_slashes)),
    ("linen_safetensors", LINEN, variables, SAFETENSORS),
    ("train_state", LINEN, lambda: state(**variables()), ORBAX),
    ("train_state_msgpack", LINEN, lambda: state(**variables()), MSGPACK),
    ("train_state_boxed", LINEN, lambda: state(**boxed()), ORBAX),
    ("train_state_of_variables", LINEN, lambda: state(variables()), ORBAX),
    (
        "beside_others",
        LINEN,
        lambda: {"model": variables(), "opt_state": variables(), "epoch": jnp.int32(3)},
        ORBAX,
    ),
    ("nnx_state", NNX, module_state, ORBAX),
    ("nnx_pure", NNX, lambda: pure(module_state()), ORBAX),
    ("nnx_parts", NNX, split_parts, ORBAX),
    (
        "nnx_pure_parts",
        NNX,
        lambda: {k: pure(v) for k, v in split_parts().items()},
        ORBAX,
    ),
    ("nnx_tuple", NNX, lambda: tuple(split_parts().values()), ORBAX),
    ("nnx_npz", NNX, without_streams, NPZ),
    ("nnx_safetensors", NNX, without_streams, SAFETENSORS),
)


class FolderTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def load(self, path, model):
        """The original, and what was said."""
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            original = load_original(path, getattr(model, "init", model))
        return original, said.getvalue()


class FormTest(FolderTest):
    @parameterized.named_parameters(*FORMS)
    def test_goes_in_and_comes_back_unlearned(self, model, make, form):
        save, load = form
        path, out = self.folder / "trained", self.folder / "unlearned"
        if save in (forms.save_npz, save_slashes):
            path, out = path.with_suffix(".npz"), out.with_suffix(".npz")
        save(path, make())
        original, _ = self.load(path, model)
        expected = dict(zip(("params", "model_state"), wanted(model), strict=True))
        chex.assert_trees_all_equal(original, expected)
        save_checkpoint(self.folder / "study", added(original))
        code, _, said = command_line.run(
            export.main,
            *("--unlearned", str(self.folder / "study"), "--like", str(path)),
            *("--out", str(out)),
        )
        self.assertEqual(code, 0, said)
        back, hoped = load(out, make()), added(make())
        if isinstance(back, dict):  # what is flat in a file has strings for indices
            back, hoped = nnx.restore_int_paths(back), nnx.restore_int_paths(hoped)
        chex.assert_trees_all_equal(back, hoped)

    def test_a_manager_gives_its_latest_step_or_the_one_that_is_named(self):
        first = variables()
        with ocp.CheckpointManager(self.folder / "manager") as manager:
            manager.save(9, args=ocp.args.StandardSave(first))
            manager.save(10, args=ocp.args.StandardSave(added(first)))
        for name, hoped in (
            ("manager", added(first)),
            ("manager/10", added(first)),
            ("manager/9", first),
            ("manager/9/default", first),
        ):
            original, _ = self.load(self.folder / name, LINEN)
            chex.assert_trees_all_equal(original["params"], hoped["params"])

    def test_a_step_of_several_items_is_one_tree(self):
        tree = variables()
        with ocp.CheckpointManager(self.folder / "manager") as manager:
            items = {name: ocp.args.StandardSave(part) for name, part in tree.items()}
            about = ocp.args.JsonSave({"epoch": 3})
            manager.save(3, args=ocp.args.Composite(**items, about=about))
        original, _ = self.load(self.folder / "manager", LINEN)
        chex.assert_trees_all_equal(original["params"], tree["params"])

    def test_what_eight_devices_wrote_is_read_on_one(self):
        mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
        kernel = jnp.arange(16.0).reshape(8, 2)
        kernel = jax.device_put(kernel, NamedSharding(mesh, P("x")))
        forms.save_orbax(self.folder / "sharded", {"params": {"kernel": kernel}})
        script = (
            "import sys, pathlib, jax.numpy as jnp\n"
            "from experiments.engine.checkpoints import load_original\n"
            "init = lambda key: ({'kernel': jnp.zeros((8, 2))}, {})\n"
            "original = load_original(pathlib.Path(sys.argv[1]), init)\n"
            "print(original['params']['kernel'].sum())"
        )
        one = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        done = subprocess.run(
            [sys.executable, "-c", script, str(self.folder / "sharded")],
            env=one | {"JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        self.assertEqual((done.stdout, done.stderr), ("120.0\n", ""))

    def test_another_size_of_float_becomes_the_model_s_and_is_said(self):
        for dtype in (jnp.bfloat16, np.float16, np.float64):
            tree = jax.tree.map(
                lambda x, dtype=dtype: np.asarray(x, dtype), variables()
            )
            forms.save_msgpack(self.folder / "trained", tree)
            original, said = self.load(self.folder / "trained", LINEN)
            for leaf in jax.tree.leaves(original):
                self.assertEqual(leaf.dtype, np.float32)
            self.assertIn(f"8 leaves from {np.dtype(dtype)} to float32", said)

    def test_says_what_it_left_out_and_an_unusual_place(self):
        forms.save_orbax(self.folder / "state", state(**variables()))
        _, said = self.load(self.folder / "state", LINEN)
        self.assertRegex(
            said, r"^From --checkpoint \S+: left out: opt_state, step\.\n$"
        )
        forms.save_orbax(self.folder / "other", {"old": variables()["params"]})
        shapes = jax.eval_shape(LINEN.init, jax.random.key(0))
        _, said = self.load(self.folder / "other", lambda key: (shapes[0], {}))
        self.assertIn("the parameters are those at old", said)
        forms.save_orbax(self.folder / "plain", variables())
        self.assertEqual(self.load(self.folder / "plain", LINEN)[1], "")

    def test_a_study_s_own_state_of_any_kind(self):
        tree = {
            "params": {"w": jnp.ones((2, 3), jnp.complex64), "10": {"b": jnp.ones(2)}},
            "model_state": {
                "key": jax.random.key(3),
                "keys": jax.random.split(jax.random.key(3, impl="rbg"), 2),
                "half": jnp.ones((), jnp.bfloat16),
                "count": jnp.uint32(3),
                "flag": jnp.array(True),
                "nothing": jnp.zeros((0, 2)),
            },
        }
        save_checkpoint(self.folder / "study", tree)
        chex.assert_trees_all_equal(
            checkpoints.load_checkpoint(self.folder / "study"), tree
        )
        original, said = self.load(
            self.folder / "study", lambda key: (tree["params"], tree["model_state"])
        )
        chex.assert_trees_all_equal(original, tree)
        self.assertEqual(said, "")


def wanted(model):
    """Parameters and model state of the values that the forms above hold."""
    if model is LINEN:
        tree = variables()
        return tree.pop("params"), tree
    parts = [
        nnx.state(NNXNet(rngs=nnx.Rngs(0)), kind) for kind in (nnx.Param, nnx.BatchStat)
    ]
    return tuple(strings(pure(part)) for part in parts)


def strings(tree):
    """The tree with string keys."""
    if not isinstance(tree, dict):
        return tree
    return {str(key): strings(value) for key, value in tree.items()}


class RefusalTest(FolderTest):
    def assert_refused(self, path, words, model=LINEN):
        with self.assertRaisesRegex(StoreError, words) as caught:
            self.load(path, model)
        self.assertNotIn("\n", str(caught.exception))

    @parameterized.named_parameters(
        ("missing", lambda t: t["params"]["Dense_0"].pop("bias"),
         r"params\.Dense_0\.bias is missing in it and float32 \(3,\) in the model"),
        ("no_statistics", lambda t: t.pop("batch_stats"),
         r"model_state\.batch_stats\.norm\.mean is missing in it .* \(1 more leaves"),
        ("shape", lambda t: t["params"]["Dense_1"].update(bias=np.ones(3, np.float32)),
         r"params\.Dense_1\.bias is float32 \(3,\) in it and float32 \(2,\) in the"),
        ("kind", lambda t: t["params"]["Dense_1"].update(bias=np.ones(2, np.int32)),
         r"params\.Dense_1\.bias is int32 \(2,\) in it and float32"),
        ("complex", lambda t: t["params"]["Dense_1"].update(bias=np.ones(2, "c8")),
         r"params\.Dense_1\.bias is complex64 \(2,\) in it"),
        ("strange", lambda t: t["params"].update(other=np.ones(2)),
         r"params\.other is float64 \(2,\) in it and absent in the model"),
        ("strange_statistics", lambda t: t["batch_stats"].update(more=np.ones(2)),
         r"batch_stats\.more is float64 \(2,\) in it and absent in the model"),
        ("not_finite",
         lambda t: t["params"]["Dense_1"].update(bias=np.array([1, np.nan], "f")),
         r"params\.Dense_1\.bias has values that are not finite"),
        ("too_large",
         lambda t: t["params"]["Dense_1"].update(bias=np.array([1, 1e99])),
         r"params\.Dense_1\.bias holds 1e\+99 as float64, .* too large for .* float32"),
        ("twice", lambda t: t.update(a=t["params"], b=t.pop("params")),
         r"holds the parameters at a and at b; keep those .* under 'params'"),
        ("other", lambda t: [t.clear(), t.update(x={"y": np.ones(2)})],
         r"it holds x\.y, the model has model_state.* and 5 more"),
    )  # fmt: skip
    def test_a_leaf_that_does_not_fit_is_named(self, spoil, words):
        tree = jax.tree.map(np.asarray, variables())
        spoil(tree)
        forms.save_msgpack(self.folder / "trained", tree)
        self.assert_refused(self.folder / "trained", words)

    def test_what_is_no_checkpoint_is_told(self):
        pickled = pickle.dumps({"a": np.ones(2)})
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as torch:
            torch.writestr("archive/data.pkl", pickled)
        objects, array = io.BytesIO(), io.BytesIO()
        np.savez(objects, a=np.array([{}], object))
        np.save(array, np.ones(2))
        halves = io.BytesIO()
        np.savez(halves, a=np.asarray(jnp.ones(2, jnp.bfloat16)))
        header = (2**40).to_bytes(8, "little") + b"{"
        for name, content, words in (
            ("a.pth", archive.getvalue(), r"a pickle of PyTorch.*save_file"),
            ("a.pkl", pickled, r"is a pickle, which can run any code.*a\.safetensors"),
            ("a.bin", pickle.dumps({"a": 1}, protocol=0), r"an old pickle"),
            ("a.npz", objects.getvalue(), r"a is an array of Python objects"),
            ("h.npz", halves.getvalue(), r"npz cannot tell bfloat16"),
            ("a.npy", array.getvalue(), r"is one array \(npy\)"),
            ("a.h5", b"\x89HDF\r\n\x1a\n", r"is an HDF5 file"),
            ("a.txt", b"hello", r"is of no known format\. Give an Orbax folder"),
            ("empty", b"", r"is empty"),
            ("a.safetensors", header, r"looks like safetensors but cannot be read"),
            ("cut", forms_bytes()[:50], r"looks like msgpack but cannot be read"),
        ):
            with self.subTest(name):
                (self.folder / name).write_bytes(content)
                self.assert_refused(self.folder / name, words)
        self.assert_refused(self.folder / "gone", r"gone cannot be read: No such file")
        (self.folder / "hub").mkdir()
        (self.folder / "hub" / "model.safetensors").touch()
        self.assert_refused(
            self.folder / "hub",
            r"no Orbax checkpoint: it holds model\.s.* such as .*hub/m",
        )
        with ocp.CheckpointManager(
            self.folder / "named",
            options=ocp.CheckpointManagerOptions(step_prefix="run"),
        ) as manager:
            manager.save(7, args=ocp.args.StandardSave(variables()))
        self.assert_refused(
            self.folder / "named", r"holds run_7\. .*such as .*/run_7\."
        )
        # the seeds of a study are no steps of one training
        for seed in ("seed_0", "seed_1"):
            forms.save_orbax(self.folder / "salun" / seed, variables())
        self.assert_refused(self.folder / "salun", r"at seed_0\.params and at seed_1\.")

    def test_a_pickle_is_never_read(self):
        class Trap:
            def __reduce__(self):
                return (pathlib.Path.touch, (trap,))

        trap = self.folder / "trap"
        for protocol in range(6):
            path = self.folder / "model.pt"
            path.write_bytes(pickle.dumps({"a": Trap()}, protocol=protocol))
            with self.assertRaises(StoreError):
                self.load(path, LINEN)
        self.assertFalse(trap.exists())

    def test_a_wrong_byte_is_noticed(self):
        save_checkpoint(self.folder / "study", {"params": {"w": jnp.arange(999.0)}})
        notes = self.folder / "study" / "_CHECKPOINT_METADATA"
        kept = json.loads(notes.read_text())
        kept["custom_metadata"]["crc32"] += 1
        notes.write_text(json.dumps(kept))
        self.assert_refused(self.folder / "study", "its checksum is another")

    def test_export_says_what_is_wrong(self):
        forms.save_orbax(self.folder / "trained", variables())
        forms.save_orbax(self.folder / "study", {"params": {}, "model_state": {}})
        there = str(self.folder / "trained")
        for unlearned, like, out, words in (
            ("gone", there, "new", "gone"),
            ("trained", there, "new", "is not of a study"),
            ("study", str(self.folder / "gone"), "new", "gone cannot be read"),
            ("study", there, "trained", "is there already"),
        ):
            code, _, said = command_line.run(
                export.main,
                *("--unlearned", str(self.folder / unlearned), "--like", like),
                *("--out", str(self.folder / out)),
            )
            self.assertEqual((code, said.count("\n")), (2, 1), said)
            self.assertIn(words, said)


def forms_bytes():
    return serialization.to_bytes(variables())


class TorchTest(FolderTest):
    """Weights of PyTorch, whose logits are in ``golden/torch.npz``.

    Made once with PyTorch 2.13: the networks at a tiny width (2 for ResNet-18 and VGG,
    3 for ResNet-20, 12 for two blocks of ViT with patches of 4), with torchvision's
    modules and names (``fc``, ``downsample``; ``class_token``, ``encoder.layers``), the
    CIFAR ResNet's ``linear`` and timm's ViT (``cls_token``, ``attn.qkv``). Weights and
    statistics are random and rounded to float16, ``model.eval()`` gave the logits of
    two random images.
    """

    @parameterized.named_parameters(
        ("resnet18", "resnet18", "resnet18", {"width": 2}),
        ("resnet20", "resnet20", "resnet20", {"width": 3}),
        ("vgg16_bn", "vgg16_bn", "vgg16_bn", {"width": 2}),
        ("vit_timm", "vit_timm", "vit_tiny", {"width": 12, "depth": 2}),
        ("vit_torchvision", "vit_torchvision", "vit_tiny", {"width": 12, "depth": 2}),
    )
    def test_logits_equal_and_the_state_dict_comes_back(self, name, model, options):
        kept, images, logits = golden(name)
        net = models.build(model, 10, images.shape[1:], **options)
        wrapped = {f"module.{key}": leaf for key, leaf in kept.items()}
        safetensors.numpy.save_file(wrapped, self.folder / "parallel.safetensors")
        safetensors.numpy.save_file(kept, self.folder / "trained.safetensors")
        original, said = self.load(self.folder / "trained.safetensors", net)
        self.assertEqual(said, "")
        apply = jax.jit(functools.partial(net.apply, train=False))
        out, _ = apply(original["params"], original["model_state"], images)
        np.testing.assert_allclose(out, logits, atol=1e-4)
        same, _ = self.load(self.folder / "parallel.safetensors", net)
        chex.assert_trees_all_equal(same, original)

        save_checkpoint(self.folder / "study", added(original))
        checkpoints.hand_back(
            self.folder / "study",
            self.folder / "trained.safetensors",
            self.folder / "new.safetensors",
        )
        back = safetensors.numpy.load_file(self.folder / "new.safetensors")
        chex.assert_trees_all_equal(back, added(kept))

    def test_other_networks_are_refused_by_name(self):
        kept, images, _ = golden("resnet20")
        net = models.build("resnet20", 10, images.shape[1:], width=3)
        for change, words in (
            ({"conv1.weight": np.ones((3, 3, 7, 7), np.float32)},
             r"params\.stem\.kernel is float32 \(3, 3, 7, 7\) \(conv1\.weight\) in it"),
            ({"fc.weight": kept["linear.weight"]}, r"fc\.weight and linear\.weight"),
            ({"extra.weight": np.ones((2, 2), np.float32)},
             r"PyTorch's, and extra\.weight \(2, 2\) has no place"),
        ):  # fmt: skip
            safetensors.numpy.save_file(kept | change, self.folder / "a.safetensors")
            with self.assertRaisesRegex(StoreError, words):
                self.load(self.folder / "a.safetensors", net)


def golden(name):
    """State dict, images and logits of one network."""
    with np.load(GOLDEN) as file:
        kept = {
            key.removeprefix(f"{name}/"): file[key]
            for key in file.files
            if key.startswith(f"{name}/")
        }
    kept = {
        key: leaf.astype(np.float32) if leaf.dtype == np.float16 else leaf
        for key, leaf in kept.items()
    }
    return kept, kept.pop("images"), kept.pop("logits")


if __name__ == "__main__":
    absltest.main()
