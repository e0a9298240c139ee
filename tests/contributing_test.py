"""What CONTRIBUTING.md works out is code that runs."""

import pathlib
import re
import sys
import textwrap
import types
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from experiments.classification import __main__ as classification
from experiments.classification import recipes
from experiments.classification.methods import METHODS, ufg
from experiments.classification.optimisation import Losses
from experiments.engine import cli, flags
from mujax import correction, methods, transforms

TEXT = (pathlib.Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
BLOCKS = [textwrap.dedent(x) for x in re.findall(r"```python\n(.*?)```", TEXT, re.S)]


def loss(w, model_state, batch, key):
    return jnp.mean(batch["weight"] * (batch["x"] @ w)), (model_state, None)


class ContributingTest(absltest.TestCase):
    def follow(self, place: types.ModuleType, code: str, like: types.ModuleType):
        """Runs code under the imports of a module like it; its names go to a place."""
        module = types.ModuleType("followed")
        self.enterContext(mock.patch.dict(sys.modules, {"followed": module}))
        vars(module).update(
            {k: v for k, v in vars(like).items() if k[:2] != "__"}, __name__="followed"
        )
        known = set(vars(module))
        exec(code, vars(module))
        for name in set(vars(module)) - known:
            value = getattr(module, name)
            patch = mock.patch.object(place, name, value, create=True)
            self.enterContext(patch)
        return module

    def test_a_transform_a_method_and_its_side_of_an_experiment(self):
        agree, face, method, side, _ = BLOCKS
        self.follow(correction, agree, correction)
        kept = vars(correction)["agree"](jnp.array([1.0, 2.0]), jnp.array([3.0, -1.0]))
        np.testing.assert_array_equal(kept, [1, 0])
        self.follow(transforms, face, transforms)
        self.follow(methods, method, sys.modules["mujax.methods.cufg"])
        entry = self.follow(types.ModuleType("list"), side, ufg)

        # A line in the list: flags, help, recipes, and a method that steps.
        table = {**METHODS, "agreement": entry}
        self.enterContext(mock.patch.object(recipes, "METHODS", table))
        self.enterContext(mock.patch.object(classification.Config, "METHODS", table))
        words = ["--methods", "agreement", "--agreement.sharp", "True"]
        config = flags.parse(classification.Config, "prog", words)
        self.assertEqual(cli.chosen(config), ["agreement"])
        recipe = classification.resolve_recipes(config)["agreement"]
        self.assertTrue(recipe.sharp)
        unread: Any = [None] * 4
        made = entry.build(recipe, Losses(loss, loss, *unread), 2)
        forget = {"x": jnp.array([[1.0, 0.0, -1.0]]), "weight": jnp.ones(1)}
        retain = {"x": jnp.array([[-1.0, 1.0, -1.0]]), "weight": jnp.ones(1)}
        state = made.init(jnp.zeros(3), (), [forget])
        state, _ = made.step(state, retain, forget_batch=forget, key=jax.random.key(0))
        # Retain and (ascending) forgetting gradients agree in the first entry alone.
        moved = np.flatnonzero(made.finish(state)[0])
        np.testing.assert_array_equal(moved, [0])


if __name__ == "__main__":
    absltest.main()
