"""Folders of pipelines: what is read, what is written, and what is refused."""

import json
import pathlib
import shutil
import sys
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from absl.testing import absltest, parameterized

from experiments.models.border import ModelError
from experiments.text_to_image import pipeline

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tiny_sd"
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def read(path):
    """Tensors and metadata of a file."""
    with safetensors.safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def bits(tensors):
    return {name: (str(x.dtype), x.shape, x.tobytes()) for name, x in tensors.items()}


class FilesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        self.place = pathlib.Path(made.name)

    def copy(self, name="sd2"):
        """A pipeline of one's own to change."""
        folder = self.place / "own"
        shutil.copytree(GOLDEN / name, folder)
        return folder

    def change(self, file, change):
        """Rewrites the tensors of a file."""
        tensors, metadata = read(file)
        safetensors.numpy.save_file(change(tensors), file, metadata)

    def edit(self, file, **settings):
        """Rewrites settings of a file; None takes one out."""
        content = json.loads(file.read_text()) | settings
        content = {key: value for key, value in content.items() if value is not ...}
        file.write_text(json.dumps(content))

    def check_round_trip(self, folder):
        """Saving what was loaded gives every file back, byte for byte."""
        model = pipeline.load(folder)
        out = self.place / "out"
        model.save(out, model.params)
        files = {x.relative_to(folder) for x in folder.rglob("*") if x.is_file()}
        saved = {x.relative_to(out) for x in out.rglob("*") if x.is_file()}
        self.assertEqual(files, saved)
        for path in files:
            before, after = folder / path, out / path
            if path.suffix == ".safetensors":
                (wanted, about), (found, now) = read(before), read(after)
                self.assertEqual(bits(wanted), bits(found), path)
                self.assertEqual(about or {"format": "pt"}, now)
            else:
                self.assertEqual(before.read_bytes(), after.read_bytes(), path)
        return model

    @parameterized.parameters("sd1", "sd2")
    def test_save_of_load_is_the_same(self, name):
        folder = GOLDEN / name
        self.check_round_trip(folder)
        for file in (UNET, VAE, TEXT):
            before, after = folder / file, self.place / "out" / file
            self.assertEqual(before.read_bytes(), after.read_bytes())

    @parameterized.parameters(np.float32, np.float16, ml_dtypes.bfloat16)
    def test_every_dtype_keeps_its_bytes(self, dtype):
        folder = self.copy()

        def change(tensors):
            rng = np.random.default_rng(0)
            return {
                k: rng.normal(size=x.shape).astype(dtype) for k, x in tensors.items()
            }

        for file in (UNET, TEXT):
            self.change(folder / file, change)
        model = self.check_round_trip(folder)
        tensors, _ = read(folder / UNET)
        self.assertEqual(
            {str(x.dtype) for x in tensors.values()}, {np.dtype(dtype).name}
        )
        kernel = model.params["unet"]["conv_in"]["kernel"]
        self.assertEqual(kernel.dtype, jnp.float32)
        np.testing.assert_array_equal(
            kernel[2, 0, 3, 5], tensors["conv_in.weight"].astype("f")[5, 3, 2, 0]
        )

    def test_shards(self):
        folder = self.copy()
        tensors, metadata = read(folder / UNET)
        (folder / UNET).unlink()
        places, stem, file = {}, "diffusion_pytorch_model", ""
        for i, names in enumerate((list(tensors)[::2], list(tensors)[1::2])):
            file = f"{stem}-0000{i + 1}-of-00002.safetensors"
            part = {name: tensors[name] for name in names}
            safetensors.numpy.save_file(part, folder / "unet" / file, metadata)
            places |= dict.fromkeys(names, file)
        index = folder / "unet" / f"{stem}.safetensors.index.json"
        total = sum(x.nbytes for x in tensors.values())
        about = {"metadata": {"total_size": total}, "weight_map": places}
        index.write_text(json.dumps(about, indent=2) + "\n")
        model = self.check_round_trip(folder)
        whole = pipeline.load(GOLDEN / "sd2").params
        jax.tree.map(np.testing.assert_array_equal, model.params, whole)
        model.save(self.place / "wide", model.params, dtype=np.float32)
        content = json.loads((self.place / "wide/unet" / index.name).read_text())
        self.assertEqual(content["metadata"]["total_size"], 2 * total)
        (folder / "unet" / file).unlink()
        with self.assertRaisesRegex(ModelError, "00002-of-00002.*not beside it"):
            pipeline.load(folder)

    def test_old_names_and_buffers(self):
        folder = self.copy()
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

        def rename(tensors):
            for new, name in old.items():
                tensors = {
                    k.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): x
                    for k, x in tensors.items()
                }
            return tensors

        self.change(folder / VAE, rename)
        self.assertIn(
            "decoder.mid_block.attentions.0.query.bias", read(folder / VAE)[0]
        )
        ids = {"text_model.embeddings.position_ids": np.arange(77)[None]}
        self.change(folder / TEXT, lambda tensors: tensors | ids)
        model = self.check_round_trip(folder)
        whole = pipeline.load(GOLDEN / "sd2").params
        jax.tree.map(np.testing.assert_array_equal, model.params, whole)

    def test_other_weights_stay_behind_and_the_rest_comes_along(self):
        """No file of the new folder may still hold what was to be forgotten."""
        folder = self.copy()
        for name in ("unet/diffusion_pytorch_model.bin", "v1.ckpt", "v1.safetensors"):
            (folder / name).write_bytes(b"old")
        shutil.copy(
            folder / UNET, folder / "unet/diffusion_pytorch_model.fp16.safetensors"
        )
        (folder / "unet/x.safetensors.index.json").write_text("{}")
        (folder / "README.md").write_text("a card")
        (folder / "feature_extractor").mkdir()
        (folder / "feature_extractor/preprocessor_config.json").write_text("{}")
        (folder / "checkpoint-500").mkdir()
        (folder / "checkpoint-500/model.safetensors").write_bytes(b"old")
        model = pipeline.load(folder)
        model.save(self.place / "out", model.params)
        found = {p for p in (self.place / "out").rglob("*") if p.is_file()}
        wanted = {x for x in (GOLDEN / "sd2").rglob("*") if x.is_file()}
        kept = {str(x.relative_to(GOLDEN / "sd2")) for x in wanted}
        kept |= {"README.md", "feature_extractor/preprocessor_config.json"}
        self.assertEqual({str(x.relative_to(self.place / "out")) for x in found}, kept)

    def test_what_moves_is_what_was_moved(self):
        model = pipeline.load(GOLDEN / "sd2")
        params = jax.tree.map(lambda x: x, model.params)
        kernel = params["unet"]["conv_in"]["kernel"]
        params["unet"]["conv_in"]["kernel"] = kernel.at[0, 1, 2, 3].set(0.5)
        model.save(self.place / "out", params)
        (before, _), (after, _) = (
            read(GOLDEN / "sd2" / UNET),
            read(self.place / "out" / UNET),
        )
        moved = {k for k in before if before[k].tobytes() != after[k].tobytes()}
        self.assertEqual(moved, {"conv_in.weight"})
        changed = np.argwhere(before["conv_in.weight"] != after["conv_in.weight"])
        np.testing.assert_array_equal(changed, [[3, 2, 0, 1]])
        again = pipeline.load(self.place / "out").params
        jax.tree.map(np.testing.assert_array_equal, again, params)
        # A change below half precision is lost there, and kept where it is asked for.
        params["unet"]["conv_in"]["kernel"] = kernel * (1 + 1e-5)
        model.save(self.place / "exact", params, dtype=np.float32)
        exact = pipeline.load(self.place / "exact").params
        jax.tree.map(np.testing.assert_array_equal, exact, params)

    @parameterized.named_parameters(
        ("nan", np.nan, "conv_in.weight is not finite"),
        ("beyond_half", 1e5, "conv_in.weight is beyond what float16 holds; save with"),
    )
    def test_does_not_write_what_draws_nothing(self, value, message):
        model = pipeline.load(GOLDEN / "sd2")
        params = jax.tree.map(lambda x: x, model.params)
        kernel = params["unet"]["conv_in"]["kernel"]
        params["unet"]["conv_in"]["kernel"] = kernel.at[0, 0, 0, 0].set(value)
        self.refuses(message, model.save, self.place / "out", params)
        self.assertEmpty(list(self.place.iterdir()))

    def test_save_refuses_other_trees_and_places(self):
        model = pipeline.load(GOLDEN / "sd2")
        out = self.place / "out"
        params = dict(model.params)
        self.refuses("is there already", model.save, self.place, params)
        self.refuses("Got trees unet; give", model.save, out, {"unet": params["unet"]})
        fewer = {k: v for k, v in params["unet"].items() if k != "conv_in"}
        self.refuses("conv_in.bias", model.save, out, params | {"unet": fewer})
        turned = jax.tree.map(lambda x: x.T, params["vae"])
        self.refuses("shape", model.save, out, params | {"vae": turned})
        self.refuses("float8", model.save, out, params, dtype=jnp.float8_e4m3fn)

    def refuses(self, message, function, *arguments, **options):
        with self.assertRaisesRegex(ModelError, message) as caught:
            function(*arguments, **options)
        self.assertNotIn("\n", str(caught.exception))

    @parameterized.named_parameters(
        (
            "missing",
            lambda x: {k: v for k, v in x.items() if "conv_out" not in k},
            "lacks conv_out.bias, conv_out.weight and has nothing",
        ),
        (
            "unexpected",
            lambda x: x | {"extra.weight": np.zeros(3, np.float16)},
            "lacks nothing and has extra.weight",
        ),
        (
            "shape",
            lambda x: x | {"conv_in.weight": np.zeros((8, 9, 3, 3), np.float16)},
            r"conv_in.weight of shape \(8, 9, 3, 3\), wanted \(8, 4, 3, 3\)",
        ),
        (
            "dtype",
            lambda x: x | {"conv_in.bias": np.zeros(8, np.int8)},
            "conv_in.bias in I8, wanted one of F32, F16, BF16",
        ),
        (
            "nan",
            lambda x: x | {"conv_in.bias": np.full(8, np.nan, np.float16)},
            "conv_in.bias with a value that is not finite",
        ),
    )
    def test_refuses_tensors(self, change, message):
        folder = self.copy()
        self.change(folder / UNET, change)
        self.refuses(message, pipeline.load, folder)

    @parameterized.named_parameters(
        ("xl", "model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "XL"),
        (
            "refiner",
            "unet/config.json",
            {"addition_embed_type": "text_time"},
            "text_ti",
        ),
        ("classes", "unet/config.json", {"num_class_embeds": 1000}, "num_class_embeds"),
        ("unknown", "unet/config.json", {"new_thing": 3}, "new_thing = 3"),
        ("block", "unet/config.json", {"up_block_types": ["X", "UpBlock2D"]}, "among"),
        (
            "no_width",
            "unet/config.json",
            {"block_out_channels": ...},
            "has no block_out",
        ),
        ("groups", "unet/config.json", {"norm_num_groups": 3}, "norm_num_groups=3"),
        (
            "heads",
            "unet/config.json",
            {"attention_head_dim": [3, 4]},
            "3 attention head",
        ),
        ("inpaint", "unet/config.json", {"in_channels": 9}, "takes 9 channels"),
        ("context", "unet/config.json", {"cross_attention_dim": 32}, "32 entries"),
        ("shift", "vae/config.json", {"shift_factor": 0.1}, "shift_factor = 0.1"),
        ("relu", "text_encoder/config.json", {"hidden_act": "relu"}, "'relu'"),
        ("t5", "text_encoder/config.json", {"model_type": "t5"}, "'t5'"),
        (
            "x0",
            "scheduler/scheduler_config.json",
            {"prediction_type": "sample"},
            "sampl",
        ),
        (
            "zero_snr",
            "scheduler/scheduler_config.json",
            {"rescale_betas_zero_snr": True},
            "rescale_betas_zero_snr = True",
        ),
        ("words", "unet/config.json", {"block_out_channels": "wide"}, "heads"),
        ("text", "vae/config.json", {"layers_per_block": "two"}, "gives no network"),
        ("betas", "scheduler/scheduler_config.json", {"beta_end": "x"}, "no schedule"),
        ("pad", "tokenizer/special_tokens_map.json", {"pad_token": "<pad>"}, "'<pad>'"),
        ("fewer", "text_encoder/config.json", {"vocab_size": 900}, "knows 900"),
    )
    def test_refuses_settings(self, file, settings, message):
        folder = self.copy()
        self.edit(folder / file, **settings)
        self.refuses(message, pipeline.load, folder)

    @parameterized.parameters(
        "model_index.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
        UNET,
        TEXT,
        "tokenizer/merges.txt",
    )
    def test_refuses_what_is_missing_or_damaged(self, file):
        folder = self.copy()
        (folder / file).write_bytes(b"\xff\xfe broken")
        name = pathlib.Path(file).parent.name or file
        self.refuses(name, pipeline.load, folder)
        (folder / file).unlink()
        self.refuses(name, pipeline.load, folder)

    def test_refuses_pickles_with_the_line_that_converts(self):
        folder = self.copy()
        (folder / TEXT).rename(folder / "text_encoder/pytorch_model.bin")
        message = r"a pickle.*torch\.load\('.*pytorch_model\.bin'.*model\.safetensors'"
        self.refuses(message, pipeline.load, folder)

    def test_refuses_places(self):
        self.refuses("diffusers layout", pipeline.load, self.place / "absent")
        (self.place / "file").write_text("")
        self.refuses("diffusers layout", pipeline.load, self.place / "file")

    @parameterized.parameters("tokenizers", "safetensors")
    def test_a_missing_package_is_a_line(self, package):
        with mock.patch.dict(sys.modules, {package: None}):
            self.refuses(
                rf"package {package}: pip install", pipeline.load, GOLDEN / "sd1"
            )

    def test_functions_refuse_in_a_line(self):
        model = pipeline.load(GOLDEN / "sd2")
        params = model.params
        self.refuses("list of prompts", model.tokens, "a cat")
        context = jnp.zeros((2, 77, 24))
        t, x = jnp.zeros(2, int), jnp.zeros((2, 8, 8, 4))
        self.refuses("without 'unet'", model.predict, {}, x, t, context)
        odd = jnp.zeros((2, 7, 8, 4))
        self.refuses("multiples of 2", model.predict, params, odd, t, context)
        self.refuses("multiples of 8", model.encode, params, jnp.zeros((1, 60, 64, 3)))
        fewer = {"unet": {k: v for k, v in params["unet"].items() if k != "conv_in"}}
        self.refuses("lack conv_in.bias", model.predict, fewer, x, t, context)
        start, null = x[:1], context[:1]
        self.refuses("2 prompts", model.draw, params, context, null, start, steps=2)
        self.refuses(
            "'euler'", model.draw, params, null, null, start, steps=2, method="euler"
        )
        for steps in (0, 1000):
            with self.assertRaisesRegex(ValueError, "give 1 to 999"):
                model.draw(params, null, null, start, steps=steps)


class TokenizerTest(parameterized.TestCase):
    def test_long_prompts_are_cut_and_marked(self):
        tokens = pipeline.load(GOLDEN / "sd1").tokens(["a " * 200, "a"])
        self.assertEqual(tokens.shape, (2, 77))
        np.testing.assert_array_equal(tokens[:, 0], [998, 998])
        np.testing.assert_array_equal(
            tokens[0, [1, 75, 76]], [*tokens[1, 1:2]] * 2 + [999]
        )

    def test_one_file_holds_the_same_vocabulary(self):
        with tempfile.TemporaryDirectory() as made:
            folder = pathlib.Path(made) / "own"
            shutil.copytree(GOLDEN / "sd1", folder)
            inside = folder / "tokenizer"
            vocabulary = json.loads((inside / "vocab.json").read_text())
            lines = (inside / "merges.txt").read_text().splitlines()[1:]
            for merges in (lines, [line.split() for line in lines]):
                model = {"vocab": vocabulary, "merges": merges}
                (inside / "tokenizer.json").write_text(json.dumps({"model": model}))
                (inside / "vocab.json").unlink(missing_ok=True)
                (inside / "merges.txt").unlink(missing_ok=True)
                found = pipeline.load(folder).tokens(["a photo of a cat", ""])
                wanted = pipeline.load(GOLDEN / "sd1").tokens(["a photo of a cat", ""])
                np.testing.assert_array_equal(found, wanted)


if __name__ == "__main__":
    absltest.main()
