"""The search of recipes: its spaces, what it keeps, and what it refuses."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
from unittest import mock

import optuna
import pytest
from absl.testing import absltest, parameterized
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from experiments.classification import recipes, search
from experiments.classification.methods import METHODS
from experiments.classification.trials import Trials, finished
from experiments.engine.recipes import changed
from experiments.errors import UserError
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
            recipes.searched([], self.recipes)["random_label"],
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

    @parameterized.named_parameters(
        ("no_folder", "{}/none/j.log", "No such file"),
        ("a_folder", "{}", "Is a directory"),
        ("no_journal", "{}/own.npz", ""),
        ("no_database", "sqlite:///{}/none/t.db", "unable to open"),
        ("no_driver", "magic://me:secret@host/x", "magic"),
    )
    def test_a_storage_that_cannot_be_used_is_refused_in_a_line(self, where, words):
        code, _, err = run(*self.flags, "--storage", where.format(self.folder))
        self.assertEqual((code, err.count("\n")), (2, 1), err)
        self.assertIn("--storage cannot be used", err)
        self.assertIn(words, err)
        self.assertNotIn("secret", err)

    @pytest.mark.slow
    def test_two_processes_share_the_trials_of_a_journal(self):
        journal = str(self.folder / "journal.log")
        flags = [*self.flags, "--trials", "7", "--storage", journal]
        children = []
        for i in range(2):
            given = [*flags, "--out", str(self.folder / f"out{i}")]
            command = [sys.executable, "-m", "experiments.tune", *given]
            env = os.environ | {"JAX_PLATFORMS": "cpu"}
            child = subprocess.Popen(
                command,
                env=env,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            children.append(child)
        for child in children:
            _, err = child.communicate()
            self.assertEqual(child.returncode, 0, err)
        [summary] = optuna.get_all_study_summaries(_journal(journal))
        log = optuna.load_study(
            study_name=summary.study_name, storage=_journal(journal)
        )
        done = [t for t in log.trials if t.state == TrialState.COMPLETE]
        self.assertLen(done, 7)
        self.assertLen({json.dumps(t.params, sort_keys=True) for t in done}, 7)
        found = json.loads(self.recipes.read_text())["random_label"]
        self.assertEqual(found["trials"], 7)
        # Another search does not mix with this one.
        code, _, err = run(*flags, "--max-epochs", "2", "--out", str(self.folder / "2"))
        self.assertEqual((code, err.count("\n")), (2, 1), err)
        self.assertIn("trials of random_label with other data or flags", err)


def _journal(path):
    return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


class TrialsTest(parameterized.TestCase):
    """Several holders of one journal, each in a folder of its own."""

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def holder(self, name, settings=0):
        store = mock.Mock(folder=self.folder / name)
        return Trials(store, str(self.folder / "j.log"), "task", settings)

    def test_all_begin_together_and_no_trial_is_repeated(self):
        count, workers = 9, 4
        barrier, drawn = threading.Barrier(workers), []
        told = []

        def work(i):
            tried = self.holder(str(i))
            log = tried.study("salun")
            first = True

            def objective(trial):
                nonlocal first
                if first:
                    barrier.wait(30)  # all have begun one before any ends
                first = False
                value = trial.suggest_float("x", 0, 1)
                drawn.append(value)
                return value

            told.append(tried.run(log, count, objective))

        threads = [threading.Thread(target=work, args=[i]) for i in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertLen(drawn, count)
        self.assertLen(set(drawn), count)
        log = self.holder("0").study("salun")
        self.assertLen(finished(log), count)
        self.assertIn(True, told)

    def test_what_was_cut_off_is_taken_up_by_its_own_folder_alone(self):
        def cut(trial):
            raise KeyboardInterrupt

        tried = self.holder("a")
        with self.assertRaises(KeyboardInterrupt):
            tried.run(tried.study("salun"), 2, cut)
        other = self.holder("b")
        self.assertFalse(other.run(other.study("salun"), 2, lambda trial: 0.5))
        again = self.holder("a")
        self.assertTrue(again.run(again.study("salun"), 2, lambda trial: 0.5))
        self.assertLen(finished(again.study("salun")), 2)

    def test_other_settings_are_refused(self):
        self.holder("a").study("salun")
        with self.assertRaisesRegex(UserError, "trials of salun with other data"):
            self.holder("b", settings=1).study("salun")


if __name__ == "__main__":
    absltest.main()
