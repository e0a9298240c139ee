"""Latent text-to-image models against numbers that other programs computed."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments.models import convolution
from experiments.text_to_image import pipeline, tokenizer
from experiments.text_to_image.weights import name_of
from mujax import diffusion

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tiny_sd"
ABOUT = json.loads((GOLDEN / "versions.json").read_text())
BOTH = ("sd1", "sd2")
CLOSE, PATH = 3e-5, 1e-4  # of the largest entry; the second for what adds up


@functools.cache
def load(name):
    return pipeline.load(GOLDEN / name)


@functools.cache
def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as data:
        return {
            key: value.astype(np.float32) if value.dtype == np.float16 else value
            for key, value in data.items()
        }


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def in_file(path, leaf):
    """A parameter, or its gradient, as the file lays it out."""
    axes = {2: (1, 0), 4: (3, 2, 0, 1)} if path[-1] == "kernel" else {}
    return np.asarray(leaf).transpose(axes.get(leaf.ndim, range(leaf.ndim)))


def by_name(tree):
    paths = jax.tree.leaves_with_path(tree)
    named = ((tuple(key.key for key in path), leaf) for path, leaf in paths)
    return {name_of(path): in_file(path, leaf) for path, leaf in named}


class ParityTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.enter_context(jax.default_matmul_precision("highest"))

    def check(self, found, wanted, tolerance=CLOSE):
        np.testing.assert_allclose(
            found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max()
        )

    @parameterized.parameters(*BOTH)
    def test_tokens(self, name):
        tokens = load(name).tokens(ABOUT["prompts"])
        self.assertEqual(tokens.dtype, np.int32)
        np.testing.assert_array_equal(tokens, golden(name)["tokens"])

    def test_tokens_of_the_real_vocabulary(self):
        """Its pairs that these prompts can meet, with their true numbers."""
        entries = json.loads((GOLDEN / "clip_tokens.json").read_text())
        tokens = tokenizer.load(GOLDEN / "clip", 77, 49408)
        found = tokens([entry["prompt"] for entry in entries])
        np.testing.assert_array_equal(found, [entry["ids"] for entry in entries])

    @parameterized.parameters(*BOTH)
    def test_text(self, name):
        model, wanted = load(name), golden(name)
        states = jax.jit(model.text)(model.params, wanted["tokens"])
        self.check(states, wanted["text_hidden"])
        end = (wanted["tokens"] == 999).argmax(1)  # <|endoftext|>
        self.check(states[np.arange(len(end)), end], wanted["text_pooled"])

    @parameterized.parameters(*BOTH)
    def test_unet(self, name):
        model, wanted = load(name), golden(name)
        arguments = nhwc(wanted["unet_x"]), wanted["unet_t"], wanted["text_hidden"]
        out = jax.jit(model.predict)(model.params, *arguments)
        self.check(nchw(out), wanted["unet_out"])

    @parameterized.parameters(*BOTH)
    def test_autoencoder(self, name):
        model, wanted = load(name), golden(name)
        image = nhwc(wanted["vae_image"])
        mean, logvar = map(nchw, jax.jit(model.encode)(model.params, image))
        self.check(mean, wanted["vae_mean"])
        self.check(logvar, wanted["vae_logvar"])
        drawn = mean + np.exp(logvar / 2) * wanted["vae_noise"]
        self.check(drawn * model.scaling, wanted["vae_latent"])
        for latent, image, tolerance in (
            (wanted["vae_latent"], wanted["vae_decoded"], CLOSE),
            # The picture of the last latents is kept in half precision.
            (wanted["ddim_path"][-1:], wanted["ddim_image"][None], 1e-3),
        ):
            latent = nhwc(latent) / model.scaling
            decoded = jax.jit(model.decode)(model.params, latent)
            self.check(nchw(decoded), image, tolerance)

    @parameterized.product(name=BOTH, method=("ddim", "plms"))
    def test_samplers(self, name, method):
        model, wanted = load(name), golden(name)
        kept = "ddim" if method == "ddim" else "pndm"
        seen = []

        class Recorded(type(model)):
            def predict(self, params, x, t, context):
                jax.debug.callback(lambda *a: seen.append(a), x, t[0], ordered=True)
                return super().predict(params, x, t, context)

        recorded = object.__new__(Recorded)
        recorded.__dict__.update(model.__dict__)
        draw = functools.partial(recorded.draw, steps=5, guidance=7.5, method=method)
        null, context, _ = wanted["text_hidden"][:, None]
        arguments = model.params, context, null, nhwc(wanted["start"])
        latents = jax.jit(draw)(*arguments)
        jax.effects_barrier()
        inputs, times = zip(*seen[::2], strict=True)  # both conditions see the same
        np.testing.assert_array_equal(times, wanted[f"{kept}_times"])
        path = nchw(np.concatenate([*inputs[1:], latents]))
        if method == "plms":  # the call that goes back still sees the first step's end
            np.testing.assert_array_equal(inputs[0], arguments[-1])
        self.check(path, wanted[f"{kept}_path"], PATH)

    @parameterized.parameters(*BOTH)
    def test_schedule(self, name):
        wanted = golden(name)["alphas_cumprod"]
        np.testing.assert_allclose(
            load(name).schedule.alphas_cumprod, wanted, rtol=1e-4
        )

    @parameterized.parameters(*BOTH)
    @pytest.mark.slow
    def test_losses_and_gradients(self, name):
        model, wanted = load(name), golden(name)
        x0, noise, x_t = (nhwc(wanted[f"loss_{key}"]) for key in ("x0", "noise", "x_t"))
        t, spots = jnp.asarray(wanted["loss_t"]), wanted["resteer_spots"]
        aim = noise
        if model.prediction == "v_prediction":
            aim = diffusion.velocity(model.schedule, x0, t, noise)
        noised = diffusion.add_noise(model.schedule, x0, t, noise)
        self.check(noised, np.asarray(x_t))
        null = wanted["text_hidden"][:1]
        contexts = [wanted["loss_c_forget"], wanted["loss_c_target"], null]
        forget, target, null = (jnp.repeat(c, 2, axis=0) for c in contexts)

        def losses(unet):
            params = {"unet": unet}
            own, maps = model.predict_with_maps(params, x_t, t, forget)
            other = model.predict(params, x_t, t, target)
            none = model.predict(params, x_t, t, null)

            def mean_square(error):
                return jnp.mean(jnp.square(error))

            def erased(strength):
                away = none - strength * (own - none)
                return mean_square(own - jax.lax.stop_gradient(away))

            attention = [jnp.sum(jnp.square(a[..., spots])) for a in maps]
            return {
                "train": mean_square(own - aim),
                "match": mean_square(own - jax.lax.stop_gradient(other)),
                "guided": mean_square(8.5 * own - 7.5 * none - aim),
                "esd": erased(1.0),
                "esd_eta3": erased(3.0),
                "resteer": jnp.sqrt(sum(attention)),
            }

        @jax.jit
        def one(unet, weights):  # compiled once for all six
            def weighted(unet):
                found = losses(unet)
                return sum(weights[key] * found[key] for key in found), found

            return jax.grad(weighted, has_aux=True)(unet)

        names = ("train", "match", "guided", "esd", "esd_eta3", "resteer")
        for loss in names:
            weights = {key: jnp.float32(key == loss) for key in names}
            grads, found = one(model.params["unet"], weights)
            self.check(found[loss], wanted[f"loss.{loss}"])
            grads = by_name(grads)
            norms = [np.linalg.norm(grads[key]) for key in wanted["grad_names"]]
            self.assertLen(grads, len(norms))
            self.check(norms, wanted[f"grad_norm.{loss}"], PATH)
            for key in wanted:
                if key.startswith(f"grad.{loss}."):
                    found_grad = grads[key.removeprefix(f"grad.{loss}.")]
                    self.check(found_grad, wanted[key], PATH)

    @parameterized.named_parameters(
        ("bfloat16", dict(dtype=jnp.bfloat16), 0.03),
        ("patches", dict(convolve=convolution.patch_convolution), CLOSE),
        ("remat", dict(remat=True), CLOSE),
    )
    def test_other_ways_to_compute_the_same(self, options, tolerance):
        model, wanted = load("sd2"), golden("sd2")
        other = pipeline.load(GOLDEN / "sd2", **options)
        arguments = nhwc(wanted["unet_x"]), wanted["unet_t"], wanted["text_hidden"]
        out = jax.jit(other.predict)(model.params, *arguments)
        self.assertEqual(out.dtype, jnp.float32)
        self.check(nchw(out), wanted["unet_out"], tolerance)
        self.assertFalse(np.array_equal(nchw(out), wanted["unet_out"]))

    @pytest.mark.slow
    def test_remat_has_the_same_gradient(self):
        wanted, grads = golden("sd2"), []
        for remat in (False, True):
            model = pipeline.load(GOLDEN / "sd2", remat=remat)

            def loss(params, model=model):
                arguments = nhwc(wanted["unet_x"]), wanted["unet_t"]
                out = model.predict(params, *arguments, wanted["text_hidden"])
                return jnp.mean(jnp.square(out))

            grads.append(by_name(jax.jit(jax.grad(loss))(model.params)["unet"]))
        for name, grad in grads[0].items():
            self.check(grads[1][name], grad)

    @pytest.mark.slow
    def test_random_parameters_are_those_of_a_key(self):
        model = load("sd2")
        init = jax.jit(model.init)
        first, again, other = (init(jax.random.key(seed)) for seed in (0, 0, 1))
        self.assertEqual(
            jax.tree.map(jnp.shape, first), jax.tree.map(jnp.shape, model.params)
        )
        jax.tree.map(np.testing.assert_array_equal, first, again)
        kernels = first["unet"]["mid_block"]["resnets"]
        self.assertFalse(
            np.array_equal(
                kernels["0"]["conv1"]["kernel"], kernels["1"]["conv1"]["kernel"]
            )
        )
        kernels = (tree["unet"]["conv_in"]["kernel"] for tree in (first, other))
        self.assertFalse(np.array_equal(*kernels))

    @parameterized.parameters(*BOTH)
    def test_closed_form_edits(self, name):
        """UCE of every attn2.to_k and to_v, by its definition on these trees."""
        model, wanted = load(name), golden(name)
        prompts = [ABOUT["forget"], ABOUT["target"], ABOUT["prompts"][2]]
        tokens = model.tokens(prompts)
        states = np.asarray(jax.jit(model.text)(model.params, tokens), np.float64)
        last = (tokens == 999).argmax(1) - 1  # the last before <|endoftext|>
        f, c, k = states[np.arange(3), last]
        for key, state in (("forget", f), ("target", c), ("keep", k)):
            self.check(state, wanted[f"uce_{key}"])
        below = np.eye(len(f)) / 2 + np.outer(f, f) + np.outer(k, k)
        edited = 0
        for key, kernel in by_name(model.params["unet"]).items():
            if ".attn2.to_k." in key or ".attn2.to_v." in key:
                w = np.asarray(kernel, np.float64)
                above = w / 2 + w @ (np.outer(c, f) + np.outer(k, k))
                self.check(above @ np.linalg.inv(below), wanted[f"uce.{key}"], PATH)
                edited += 1
        self.assertEqual(edited, sum(key.startswith("uce.") for key in wanted))


if __name__ == "__main__":
    absltest.main()
