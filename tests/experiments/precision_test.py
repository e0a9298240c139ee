"""bfloat16 computes, float32 keeps."""

import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from jax.extend.core import jaxprs_in_params

from experiments import models
from experiments.classification import __main__ as classification
from experiments.diffusion.unet import unet_for
from experiments.models.precision import computing_in
from tests.command_line import run

NAMES = ("small_cnn", "resnet20", "vit_tiny", "unet")
SHAPE = (8, 8, 1)


def model_and_input(name):
    key = jax.random.key(1)
    x = jax.random.normal(key, (4, *SHAPE))
    if name == "unet":
        unet = models.from_nnx(unet_for, num_classes=3, input_shape=SHAPE, width=8)
        t = jnp.array([0.0, 1.0, 257.0, 999.0])
        return unet, (x, t, jnp.array([0, 1, 2, 3]))
    size = 32 if name == "resnet20" else 8
    x = jax.image.resize(x, (4, size, size, 1), "nearest")
    return models.build(name, 3, x.shape[1:]), x


def products(jaxpr):
    """Types of the operands of all matrix products and convolutions."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield from (var.aval.dtype for var in equation.invars)
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


class PrecisionTest(parameterized.TestCase):
    @parameterized.parameters(*NAMES)
    def test_layers_compute_in_bfloat16_and_gradients_stay_float32(self, name):
        model, x = model_and_input(name)
        params, state = model.init(jax.random.key(0))
        low = computing_in(model, "bfloat16")

        def loss(params):
            out, moved = low.apply(params, state, x, train=True, key=jax.random.key(2))
            self.assertEqual(out.dtype, jnp.float32)
            return jnp.mean(out**2), moved

        grads, moved = jax.eval_shape(jax.grad(loss, has_aux=True), params)
        for leaf in jax.tree.leaves((grads, moved)):
            self.assertEqual(leaf.dtype, jnp.float32)
        types = list(products(jax.make_jaxpr(loss)(params).jaxpr))
        self.assertNotEmpty(types)
        self.assertEqual(set(types), {jnp.dtype(jnp.bfloat16)})

    @parameterized.parameters(*NAMES)
    @pytest.mark.slow
    def test_outputs_are_float32s_within_its_rounding(self, name):
        model, x = model_and_input(name)
        params, state = model.init(jax.random.key(0))
        wanted, _ = model.apply(params, state, x, train=False)
        found, kept = computing_in(model, "bfloat16").apply(
            params, state, x, train=False
        )
        self.assertFalse(np.array_equal(found, wanted) and name != "unet")
        scale = np.abs(wanted).max() + 1e-6
        np.testing.assert_allclose(found, wanted, atol=0.05 * scale)
        jax.tree.map(np.testing.assert_array_equal, kept, state)

    def test_float32_is_the_model_itself(self):
        model, _ = model_and_input("small_cnn")
        self.assertIs(computing_in(model, "float32"), model)


@pytest.mark.slow
class StudyTest(absltest.TestCase):
    def test_a_study_in_bfloat16_is_as_good(self):
        rows = {}
        with tempfile.TemporaryDirectory() as folder:
            for precision in ("float32", "bfloat16"):
                out = pathlib.Path(folder) / precision
                flags = f"--precision {precision} --seeds 1 --methods salun"
                flags += f" --out {out} --cache None --train.epochs 6 --workers 1"
                flags += " --recipe.epochs 2"
                code = run(classification.main, *flags.split())[0]
                self.assertEqual(code, 0)
                results = json.loads((out / "results.json").read_text())
                self.assertEqual(results["environment"]["precision"], precision)
                rows[precision] = results["rows"]
        for one, other in zip(*rows.values(), strict=True):
            for column in ("ra", "ta"):
                self.assertAlmostEqual(one[column], other[column], delta=2.0)


if __name__ == "__main__":
    absltest.main()
