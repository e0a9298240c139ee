"""Stable Diffusion at full size, by shapes alone: counts, roles, memory, lowering."""

import collections
import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import optax
import pytest
from absl.testing import absltest, parameterized
from jax import export

from experiments import text_to_image
from experiments.text_to_image import sizes
from experiments.text_to_image.pipeline import Networks
from mujax import diffusion, roles, saliency, subspace, transforms

BOTH = {"1": sizes.SD1, "2": sizes.SD2}
README = pathlib.Path(text_to_image.__file__).parent / "README.md"


@functools.cache
def networks(version, **options):
    return Networks(BOTH[version], **options)


class SizesTest(parameterized.TestCase):
    @parameterized.parameters(
        ("1", 859_520_964, 686, 123_060_480, 196),
        ("2", 865_910_724, 686, 340_387_840, 372),
    )
    def test_counts_are_the_published_ones(self, version, unet, in_unet, text, in_text):
        shapes = networks(version).shapes
        found = {
            name: (sizes.count(tree), len(jax.tree.leaves(tree)))
            for name, tree in shapes.items()
        }
        wanted = {"unet": (unet, in_unet), "text_encoder": (text, in_text)}
        self.assertEqual(found, wanted | {"vae": (83_653_863, 248)})

    @parameterized.parameters("1", "2")
    def test_every_kernel_is_read_as_what_it_is(self, version):
        shapes = networks(version).shapes
        found = roles.infer(shapes)
        seen = collections.Counter()
        names = roles.leaf_names(shapes)
        pairs = zip(names, jax.tree.leaves(found), strict=True)
        for (name, role), leaf in zip(pairs, jax.tree.leaves(shapes), strict=True):
            last = name.split("/")[-1]
            if last in ("bias", "scale"):
                self.assertIsNone(role.axes, name)
                continue
            dense = roles.MatrixAxes(batch=(), rows=(0,), columns=(1,))
            window = roles.MatrixAxes(batch=(2,), rows=(3,), columns=(0, 1))
            self.assertEqual(role.axes, dense if leaf.ndim == 2 else window, name)
            seen[name.split("/")[0], leaf.ndim] += 1
        # 16 transformers of 10 dense kernels, 22 steps into blocks and 2 at the start;
        # 22 blocks of two convolutions, 14 shortcuts, 6 samplers, first and last.
        projections = 32
        kernels = {
            ("unet", 2): 16 * 10 + 24 + projections * (version == "2"),
            ("unet", 4): 22 * 2 + 14 + 6 + 2 + projections * (version == "1"),
        }
        self.assertEqual({key: seen[key] for key in kernels}, kernels)

    @parameterized.parameters("1", "2")
    def test_memory_is_what_the_readme_says(self, version):
        table = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in README.read_text().splitlines()
            if line.startswith(f"| {version}.x")
        ]
        rows = sizes.memory(networks(version).shapes["unet"])
        wanted = [
            [f"{version}.x", f"{name}", f"{row['move']:,}"]
            + [
                f"{row[part] / 1e9:.2f}" if row[part] else "–"
                for part in (
                    "weights", "original", "bases", "gradient", "adam", "mask", "total"
                )
            ]
            for name, row in rows.items()
        ]  # fmt: skip
        self.assertEqual(table, wanted)

    def test_cores_are_counted_by_their_definition(self):
        shapes = networks("1").shapes["unet"]
        rows, rank = sizes.memory(shapes, rank=4)["cores"], 4
        cores = bases = 0
        for leaf in jax.tree.leaves(shapes):
            if leaf.ndim == 2:
                batch, m, n = 1, *leaf.shape
            elif leaf.ndim == 4:
                batch, m, n = leaf.shape[2], leaf.shape[3], math.prod(leaf.shape[:2])
            else:
                continue
            r = min(rank, m, n)
            cores, bases = cores + batch * r * r, bases + batch * r * (m + n)
        self.assertEqual((rows["move"], rows["bases"]), (cores, 4 * bases))


class LoweringTest(parameterized.TestCase):
    """What an accelerator will run, lowered here; nothing is computed."""

    def check(self, function, *arguments):
        for platform in ("tpu", "cuda"):
            exported = export.export(jax.jit(function), platforms=[platform])
            exported = exported(*jax.eval_shape(lambda: arguments))
            wanted = jax.tree.leaves(jax.eval_shape(function, *arguments))
            self.assertEqual(
                [(x.shape, x.dtype) for x in exported.out_avals],
                [(x.shape, x.dtype) for x in wanted],
            )
        return exported.mlir_module()

    def setUp(self):
        super().setUp()
        shape = jax.ShapeDtypeStruct
        self.images = shape((8, 64, 64, 4), jnp.float32)
        self.model = {
            version: networks(version, dtype=jnp.bfloat16, remat=True)
            for version in BOTH
        }
        self.context = {
            "1": shape((8, 77, 768), jnp.float32),
            "2": shape((8, 77, 1024), jnp.float32),
        }
        self.key = jax.eval_shape(lambda: jax.random.key(0))

    def loss(self, version):
        model = self.model[version]

        def guided_loss(params, batch):
            x0, context, key = batch
            null = jnp.zeros_like(context[0])
            return diffusion.noise_loss(
                diffusion.guided(model.predict, 7.5, null), params, model.schedule, x0,
                context, key, pixel_reduction=jnp.mean,
                timesteps=diffusion.uniform_timesteps,
                target=diffusion.velocity if version == "2" else diffusion.true_noise,
            )  # fmt: skip

        return guided_loss

    @parameterized.parameters("1", "2")
    @pytest.mark.slow
    def test_step(self, version):
        model = self.model[version]
        optimizer = optax.adam(1e-5)

        def step(params, state, mask, images, context, target, key):
            def loss(params):
                shared = model.predict, params, model.schedule, images, context
                return diffusion.match_loss(
                    *shared, target, key, pixel_reduction=jnp.mean,
                    timesteps=diffusion.uniform_timesteps,
                )  # fmt: skip

            masked = optax.chain(optimizer, transforms.mask_updates(mask))
            updates, state = masked.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        params = {"unet": model.shapes["unet"]}
        mask = jax.eval_shape(lambda p: jax.tree.map(lambda x: x > 0, p), params)

        def start(params, mask):
            return optax.chain(optimizer, transforms.mask_updates(mask)).init(params)

        state = jax.eval_shape(start, params, mask)
        context = self.context[version]
        arguments = params, state, mask, self.images, context, context, self.key
        module = self.check(step, *arguments)
        self.assertIn("bf16", module)
        self.assertIn("optimization_barrier", module)  # what remat computes again

    @parameterized.parameters("1", "2")
    @pytest.mark.slow
    def test_mask_and_bases(self, version):
        loss = self.loss(version)
        params = {"unet": self.model[version].shapes["unet"]}
        batch = self.images, self.context[version], self.key

        def mask(params, batch):
            scores = saliency.gradient_saliency(loss, params, [batch])
            return saliency.top_fraction_mask(scores, 0.5)

        def bases(params, batch):
            return subspace.svd_bases(jax.grad(loss)(params, batch), 0.95)

        self.check(mask, params, batch)
        self.check(bases, params, batch)

    @parameterized.product(version=("1", "2"), method=("ddim", "plms"))
    @pytest.mark.slow
    def test_sampler(self, version, method):
        model, context = self.model[version], self.context[version]

        def pictures(params, context, null, start):
            latents = model.draw(params, context, null, start, steps=50, method=method)
            return model.decode(params, latents / model.scaling)

        self.check(pictures, model.shapes, context, context, self.images)


if __name__ == "__main__":
    absltest.main()
