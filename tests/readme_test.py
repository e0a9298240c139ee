"""What the README shows is what the tests run."""

import contextlib
import io
import json
import os
import pathlib
import re
import runpy
import shlex
import shutil
import sys
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized
from flax import nnx

from experiments import data, models
from experiments.classification import __main__ as classification
from experiments.engine import checkpoints
from tests.examples import own_attention, own_model

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    """A page's code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


class ReadmeTest(parameterized.TestCase):
    def test_shows_code_that_runs_as_tests(self):
        def dense(text):
            return "\n".join(line for line in text.splitlines() if line.strip())

        folder = ROOT / "tests" / "examples"
        sources = [dense(path.read_text()) for path in folder.glob("*.py")]
        experiments = (ROOT / "experiments" / "README.md").read_text()
        shown = [*blocks("python"), *blocks("python", experiments)]
        self.assertLen(shown, 4)
        for block in shown:
            self.assertTrue(any(dense(block) in source for source in sources), block)

    def test_audits_own_logits(self):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            runpy.run_path(str(ROOT / "tests/examples/own_logits.py"))
        # Logits two apart: margins differ by 2, with a deviation of about 1.4.
        self.assertBetween(float(said.getvalue()), 0.75, 0.9)

    def test_is_short_and_names_the_commands(self):
        self.assertLessEqual(len(README.splitlines()), 150)
        self.assertIn("python -m experiments.classification", README)

    def test_layers_in_lists_go_over_and_are_taken_back(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, pathlib.Path.cwd())
        os.chdir(folder.name)

        def make(key=0):
            return own_attention.Net(10, (8, 8, 1), rngs=nnx.Rngs(key))

        images, labels = np.zeros((3, 8, 8, 1), np.uint8), np.arange(3)
        own_model.hand_over(make(), (images, labels), (images, labels), [1])
        init = models.build("tests.examples.own_attention:Net", 10, (8, 8, 1)).init
        tree = checkpoints.load_original(pathlib.Path("trained"), init)
        tree["params"] = jax.tree.map(lambda x: x + 1, tree["params"])
        checkpoints.save_checkpoint(pathlib.Path("unlearned"), tree)
        taken, expected = make(1), nnx.state(make(), nnx.Param)
        own_model.take_back(taken, "unlearned")
        chex.assert_trees_all_equal(
            nnx.to_pure_dict(nnx.state(taken, nnx.Param)),
            jax.tree.map(lambda x: x + 1, nnx.to_pure_dict(expected)),
        )

    @parameterized.named_parameters(
        ("as_shown", own_model, "finetune,salun,semu"),
        ("a_list_of_layers_with_attention", own_attention, "salun,semu,ufg,cufg"),
    )
    @pytest.mark.slow
    def test_own_model_and_data_come_back_unlearned(self, own, methods):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, pathlib.Path.cwd())
        self.addCleanup(sys.modules.pop, "own", None)
        self.addCleanup(sys.path.remove, folder.name)
        os.chdir(folder.name)
        shutil.copy(own.__file__, "own.py")
        digits = data.load("digits")
        model = own.Net(10, (8, 8, 1), rngs=nnx.Rngs(0))
        _train(model, digits.train_images / 255, digits.train_labels)
        forget = [1400, 3, 77, *range(200, 260)]
        train = digits.train_images, digits.train_labels
        test = digits.test_images, digits.test_labels
        own_model.hand_over(model, train, test, forget)

        [command] = [c for c in blocks("bash") if "--checkpoint" in c]
        words = shlex.split(command.replace("\\\n", " "))
        self.assertEqual(words[:3], ["python", "-m", "experiments.classification"])
        self.assertEqual(words[words.index("--methods") + 1], "finetune,salun,semu")
        words[words.index("--methods") + 1] = methods
        short = ["--train.epochs", "2", "--recipe.epochs", "1", "--seeds", "1"]
        said = io.StringIO()
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(said),
        ):
            code = classification.main([*words[3:], *short])
        self.assertEqual(code, 0, said.getvalue())

        [out] = [p for p in pathlib.Path("results").iterdir() if p.name != "cache"]
        self.assertIn(str(out), README)
        self.assertTrue((out / "report.html").stat().st_size)
        rows = json.loads((out / "results.json").read_text())["rows"]
        rows = {row["method"]: row for row in rows}
        accuracy = _accuracy(model, *test)
        self.assertGreater(accuracy, 80)
        self.assertAlmostEqual(rows["original"]["ta"], accuracy, places=4)
        kept = np.delete(np.arange(len(train[1])), forget)
        for name in methods.split(","):
            own_model.take_back(model, out / "checkpoints" / name / "seed_0")
            for key, part in (("ta", test), ("ra", (train[0][kept], train[1][kept]))):
                self.assertAlmostEqual(rows[name][key], _accuracy(model, *part), 4)


def _train(model, images, labels):
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, images, labels):
        def loss_fn(model):
            return optax.softmax_cross_entropy_with_integer_labels(
                model(images), labels
            ).mean()

        optimizer.update(model, nnx.grad(loss_fn)(model))

    model.train()
    for _ in range(30):
        step(model, optimizer, jnp.asarray(images, jnp.float32), jnp.asarray(labels))


def _accuracy(model, images, labels) -> float:
    model.eval()
    logits = model(jnp.asarray(images / 255, jnp.float32))
    return 100 * float(np.mean(np.argmax(jax.device_get(logits), 1) == labels))


if __name__ == "__main__":
    absltest.main()
