"""Forget sets by what was hard to learn, and by wrong labels."""

import functools
import json
import pathlib
import tempfile

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments import data
from experiments.classification import __main__ as classification
from experiments.classification import heldout, request
from tests import command_line

run = functools.partial(command_line.run, classification.main)
SMALL = (
    *("--train-size", "120", "--width", "4", "--train.epochs", "2"),
    *("--methods", "finetune", "--finetune.epochs", "1", "--seeds", "2"),
)


class PartsTest(absltest.TestCase):
    def test_a_round_of_parts_leaves_every_image_out_once(self):
        forgotten = np.arange(5, dtype=np.int32)
        digits = data.subset(data.load("digits"), 203)
        task = heldout.HeldOut(classification.Config(width=4), digits, 0, forgotten)
        splits = [task.for_seed(m).split for m in range(2 * heldout.FOLDS)]
        for first in (0, heldout.FOLDS):
            parts = [x.forget for x in splits[first : first + heldout.FOLDS]]
            everything = np.sort(np.concatenate(parts))
            np.testing.assert_array_equal(everything, np.arange(5, 203))
        self.assertFalse(np.array_equal(splits[0].forget, splits[heldout.FOLDS].forget))
        for split in splits:
            self.assertEmpty(np.intersect1d(split.forget, split.retain))
            self.assertLen(split.retain, 198 - len(split.forget))

    def test_wrong_labels_are_on_the_forget_set_alone(self):
        config = classification.Config(scenario="mislabelled", forget_seed=3)
        digits = data.load("digits")
        split = request.make_split(config, digits)
        wrong = request.as_learned(config, digits, split)
        changed = np.flatnonzero(wrong.train_labels != digits.train_labels)
        np.testing.assert_array_equal(changed, split.forget)
        as_random = classification.Config(forget_seed=3)
        other = request.make_split(as_random, digits)
        np.testing.assert_array_equal(split.forget, other.forget)
        self.assertIs(request.as_learned(as_random, digits, other), digits)

    def test_the_lowest_ranks_are_forgotten_and_ties_go_in_order(self):
        digits = data.load("digits")
        rank = np.random.default_rng(0).integers(0, 50, len(digits.train_labels))
        split = data.ranked_split(digits, 0.1, rank.astype(float))
        count = round(0.1 * len(rank))
        wanted = sorted(range(len(rank)), key=lambda i: (rank[i], i))[:count]
        np.testing.assert_array_equal(split.forget, sorted(wanted))

    def test_a_draw_without_recipes_of_its_own_takes_those_of_a_random_one(self):
        as_random = classification.resolve_recipes(classification.Config())
        ours = classification.Config(scenario="memorised")
        self.assertEqual(classification.resolve_recipes(ours), as_random)
        of_classes = classification.Config(scenario="class")
        self.assertNotEqual(classification.resolve_recipes(of_classes), as_random)

    def test_a_share_that_cannot_be_is_refused_before_any_training(self):
        code, said, errors = run("--scenario", "typical", "--forget-fraction", "2")
        self.assertEqual((code, said), (2, ""))
        self.assertIn("--forget-fraction 2: give one between 0 and 1", errors)


@pytest.mark.slow
class ScenarioTest(parameterized.TestCase):
    @parameterized.parameters("memorised", "typical", "mislabelled")
    def test_a_study_forgets_the_same_images_with_every_seed(self, scenario):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        flags = (*SMALL, "--out", str(folder), "--cache", str(folder / "cache"))
        code, _, errors = run("--scenario", scenario, *flags)
        self.assertEqual(code, 0, errors)
        first, second = (
            (folder / f"forgotten/seed_{seed}.txt").read_text() for seed in (0, 1)
        )
        self.assertEqual(first, second)
        rows = json.loads((folder / "results.json").read_text())["rows"]
        ours = {(row["method"], row["seed"]): row for row in rows}
        self.assertLen(ours, 8)
        if scenario == "mislabelled":  # whoever never saw them has the true labels
            self.assertGreater(ours["retrain", 0]["ua"], 70)
        again, _, errors = run("--scenario", scenario, *flags)
        self.assertEqual(again, 0, errors)


if __name__ == "__main__":
    absltest.main()
