"""The search of recipes: its spaces, what it keeps, and what it refuses."""

import functools
import json
import pathlib
import tempfile
from unittest import mock

import optuna
import pytest
from absl.testing import absltest, parameterized

from experiments.classification import recipes, search
from experiments.classification.methods import METHODS
from experiments.engine.recipes import changed
from tests import command_line
from tests.experiments.classification_test import tiny_npz

run = functools.partial(command_line.run, search.main)


class SpaceTest(parameterized.TestCase):
    @parameterized.parameters(*METHODS)
    def test_what_a_space_draws_is_a_recipe_within_the_epochs(self, name):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        drawn = [METHODS[name].suggest(study.ask(), 6) for _ in range(40)]
        default = METHODS[name].Recipe()
        for numbers in drawn:
            recipe = changed(default, {name: numbers}, name)  # refuses what cannot be
            self.assertBetween(recipe.epochs, 1, 2 if name == "cufg" else 6)
        for field in drawn[0]:  # nothing is searched that cannot differ
            self.assertGreater(len({numbers[field] for numbers in drawn}), 1, field)

    def test_a_number_that_a_flag_gives_is_not_searched(self):
        benches = mock.Mock()
        config = search.Config(changes={"recipe": {"epochs": 7, "density": 0.125}})
        objective = search._objective("salun", benches, [0], config)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        with mock.patch.object(search, "_mean_gap", return_value=0.0) as gap:
            objective(study.ask())
        recipe = gap.call_args.args[-1]
        self.assertEqual((recipe.epochs, recipe.density), (7, 0.125))
        self.assertNotEqual(recipe.learning_rate, METHODS["salun"].Recipe.learning_rate)


class SearchTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.recipes = self.folder / "recipes.json"
        self.flags = [
            *("--dataset", tiny_npz(self.folder / "own.npz")),
            *("--methods", "random_label", "--forget-fraction", "0.25"),
            *("--seeds", "1", "--final-seeds", "1", "--finalists", "2"),
            *("--max-epochs", "1", "--train.epochs", "2"),
            *("--out", str(self.folder / "out")),
            *("--cache", str(self.folder / "cache")),
            *("--recipes", str(self.recipes)),
        ]

    @pytest.mark.slow
    def test_keeps_the_finalist_that_further_seeds_prefer_and_extends(self):
        def trials():
            storage = f"sqlite:///{self.folder}/out/trials.db"
            log = optuna.load_study(study_name="random_label", storage=storage)
            further = {
                trial.number: gap
                for trial in log.trials
                for note, gap in log.user_attrs.items()
                if f"trial {trial.number} on seeds 1001" in note
            }
            return log.trials, further

        code, _, err = run(*self.flags, "--trials", "3")
        self.assertEqual(code, 0, err)
        text = self.recipes.read_text()
        found = json.loads(text)["random_label"]
        done, further = trials()
        self.assertLen(done, 3)
        finalists = sorted(range(3), key=lambda i: done[i].value or 0.0)[:2]
        self.assertCountEqual(further, finalists)
        self.assertLen({*further.values()}, 2)  # so that it matters which is taken
        best = min(further, key=lambda i: further[i])
        self.assertEqual(
            found,
            {
                "recipe": done[best].user_attrs["recipe"],
                "validation_gap": further[best],
                "trials": 3,
            },
        )
        self.assertEqual(
            recipes.searched("", self.recipes)["random_label"],
            METHODS["random_label"].Recipe(**found["recipe"]),
        )
        # Only baselines leave rows: the trials are no results.
        rows = json.loads((self.folder / "out" / "results.json").read_text())["rows"]
        self.assertEqual({row["seed"] for row in rows}, {1000, 1001})
        self.assertNotIn("random_label", {row["method"] for row in rows})

        code, _, err = run(*self.flags, "--trials", "3")
        self.assertEqual((code, self.recipes.read_text()), (0, text), err)
        self.assertLen(trials()[0], 3)
        code, _, err = run(*self.flags, "--trials", "4")
        self.assertEqual(code, 0, err)
        self.assertLen(trials()[0], 4)
        found = json.loads(self.recipes.read_text())["random_label"]
        self.assertEqual(found["trials"], 4)

    @parameterized.parameters(
        (("--trials", "0"), "--trials 0: give at least 1"),
        (("--checkpoint", "trained"), "trains originals of its own"),
        (("--scenario", "indices"), "once a validation set is split off"),
        (("--recipes", "no/such/folder.json"), "no folder no/such for the recipes"),
        (("--validation-fraction", "1.5"), "1.5"),
        (("--methods", "magic"), "magic"),
    )
    def test_refuses_in_a_line(self, flags, message):
        code, _, err = run(*self.flags, *flags)
        self.assertEqual(code, 2)
        self.assertIn(message, err)
        self.assertLessEqual(err.count("\n"), 2)
        self.assertFalse(self.recipes.exists())


if __name__ == "__main__":
    absltest.main()
