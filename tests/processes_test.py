"""Two processes of two devices: README's own loop gives what one process gives.

A child of this file runs each process; both must come to the numbers of one process.
"""

import os
import pathlib
import socket
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mujax import correction, curriculum, gradients, methods, saliency, transforms

SPECS = {"up": P(None, "model"), "down": P("model", None)}


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


PARAMS = {"up": normal(0, 4, 6), "down": normal(1, 6, 3)}
BATCHES = [{"x": normal(2 + i, 8, 4), "y": normal(5 + i, 8, 3)} for i in range(2)]


def loss_fn(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["up"])
    return jnp.mean((hidden @ params["down"] - batch["y"]) ** 2)


def full_loss(params, model_state, batch, key):
    del key
    return loss_fn(params, batch), (model_state, None)


def own_loop(params, batches):
    """Scores, a mask, and steps whose chain is built inside of jit."""
    scores = saliency.gradient_saliency(loss_fn, params, batches)
    mask = saliency.top_fraction_mask(scores, 0.5)

    def chain(mask):
        return optax.chain(
            transforms.correct_updates(threshold=-0.5, forget_weight=0.5),
            optax.adamw(0.05),
            transforms.mask_updates(mask),
        )

    @jax.jit
    def step(mask, params, opt_state, retain, forget):
        grads = jax.grad(loss_fn)(params, retain)
        forget_grads = jax.grad(lambda p, b: -loss_fn(p, b))(params, forget)
        updates, opt_state = chain(mask).update(
            grads, opt_state, params, forget_grads=forget_grads
        )
        return optax.apply_updates(params, updates), opt_state

    moved, opt_state = params, jax.jit(lambda m, p: chain(m).init(p))(mask, params)
    for _ in range(2):
        moved, opt_state = step(mask, moved, opt_state, batches[0], batches[1])
    return {"scores": scores, "mask": mask, "moved": moved}


def functions(params, batches):
    """Each public function that computes from arrays no process holds whole."""
    other = gradients.mean_gradient(loss_fn, params, batches)
    norms = curriculum.gradient_norm(loss_fn, params, batches[0], batch_size=4)
    return {
        "absolute": saliency.absolute_saliency(loss_fn, params, batches),
        "fisher": saliency.fisher_saliency(loss_fn, params, batches),
        "forgetting": correction.forgetting_gradient(loss_fn, params, batches),
        "random": saliency.random_mask(jax.random.key(0), params, 0.5),
        "nothing": saliency.top_fraction_mask(params, 0.0),
        "density": saliency.density(saliency.threshold_mask(params, 0.1)),
        "correct": correction.correct(params, other, threshold=-1.0, forget_weight=0.5),
        "norms": norms,
        "alignment": curriculum.gradient_alignment(loss_fn, params, batches[0], other),
        "stages": curriculum.assign_stages(norms, 3),
        "parts": curriculum.stage_indices(norms, 3),
    }


def two_steps(make):
    def run(params, batches):
        method = make(full_loss, optax.adamw(0.05))
        state = method.init(params, (), batches)
        step = jax.jit(method.step, donate_argnums=0)
        state, _ = step(state, batches[0], forget_batch=batches[1])
        state, info = step(state, batches[0], forget_batch=batches[1])
        return {"params": method.finish(state)[0], "loss": info.loss}

    return run


RUNS = {
    "own_loop": own_loop,
    "functions": functions,
    "salun": two_steps(methods.salun),
    "semu": two_steps(lambda *a: methods.semu(*a, energy=0.8)),
    "ufg": two_steps(lambda *a: methods.ufg(*a, threshold=-0.5, microbatch_size=4)),
}


def not_finite(params, batches):
    """The name of the leaf whose score overflows, as the error has it."""
    broken = [{**batches[0], "x": batches[0]["x"] * jnp.inf}]
    try:
        saliency.gradient_saliency(loss_fn, params, broken)
    except ValueError as error:
        return str(error)
    return "nothing was said"


def closed_over(params, batches):
    """What is said of a mask that jit closes over."""
    mask = saliency.threshold_mask(params, 0.1)
    tx = optax.chain(optax.sgd(0.1), transforms.mask_updates(mask))
    try:
        jax.jit(tx.update)(params, tx.init(params), params)
    except RuntimeError as error:
        return str(error)
    return "nothing was said"


@pytest.mark.slow
class ProcessesTest(parameterized.TestCase):
    """The children compute all at once; each test looks at a part of it."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "tests.processes_test", folder, str(port)]
        children = [
            subprocess.Popen(
                [*command, str(number)],
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(2)
        ]
        try:
            said = [child.communicate(timeout=300)[0] for child in children]
        finally:
            for child in children:
                child.kill()
        if any(child.returncode for child in children):
            raise RuntimeError("\n".join(said))
        cls.found = [
            np.load(pathlib.Path(folder) / f"{number}.npz") for number in range(2)
        ]

    @parameterized.named_parameters((name, name) for name in RUNS)
    def test_the_same_numbers(self, name):
        wanted = named(RUNS[name](PARAMS, BATCHES), name)
        for found in self.found:
            self.assertContainsSubset(wanted, found)
            for key, value in wanted.items():
                self.assertEqual(found[key].dtype, value.dtype, key)
                exact = not jnp.issubdtype(value.dtype, jnp.inexact)
                bound = 0 if exact else 2e-5
                np.testing.assert_allclose(
                    found[key], value, rtol=bound, atol=bound, err_msg=key
                )

    def test_scores_and_masks_lie_as_the_parameters(self):
        for found in self.found:
            for name in ("own_loop.scores", "own_loop.mask", "functions.random"):
                self.assertEqual(str(found[f"{name}.up.spec"]), str(SPECS["up"]))

    def test_errors_name_the_leaf_and_the_cure(self):
        for found in self.found:
            self.assertIn("the gradient of params['down']", str(found["not_finite"]))
            self.assertIn("the mask as an argument", str(found["closed_over"]))


def named(tree, name):
    """Leaves as NumPy arrays, by their paths."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {key_of(name, path): np.asarray(leaf) for path, leaf in pairs}


def key_of(name, path):
    """The name of a leaf in the file."""
    return f"{name}.{jax.tree_util.keystr(path, simple=True, separator='.')}"


def child(folder, port, number):
    """Computes everything as one of two processes, and writes what it sees."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number))
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=2 * (AxisType.Auto,))

    def place(value, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(value.shape, sharding, value.__getitem__)

    params = {name: place(value, SPECS[name]) for name, value in PARAMS.items()}
    batches = jax.tree.map(lambda x: place(x, P("data")), BATCHES)
    replicate = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))
    found = {}
    for name, run in RUNS.items():
        result = run(params, batches)
        for path, leaf in jax.tree_util.tree_leaves_with_path(result):
            key = key_of(name, path)
            if isinstance(leaf, jax.Array):
                found[f"{key}.spec"] = str(leaf.sharding.spec)  # pyright: ignore[reportAttributeAccessIssue]
                leaf = replicate(leaf)
            found[key] = np.asarray(leaf)
    found["not_finite"] = not_finite(params, batches)
    found["closed_over"] = closed_over(params, batches)
    np.savez(pathlib.Path(folder) / f"{number}.npz", **found)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        child(*sys.argv[1:])
    else:
        absltest.main()
