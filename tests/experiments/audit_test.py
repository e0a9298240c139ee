"""The bank of models behind an audit, and what the audits are given of it."""

import contextlib
import functools
import itertools
import json
import pathlib
import tempfile
from typing import Any

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments import data
from experiments.audit import __main__ as audit
from experiments.audit import audits, pictures, pool
from experiments.audit.bank import Margins
from experiments.reporting.summary import summarise
from tests import command_line
from tests.experiments.request_test import own_data

run = functools.partial(command_line.run, audit.main)


class PoolTest(parameterized.TestCase):
    def draw(self, panel: pool.Panel = "random", share=0.1, seed=0):
        dataset = data.load("digits")
        certainty = np.random.default_rng(0).normal(size=len(dataset.train_labels))
        return pool.draw(dataset, panel, share, "3", seed, certainty)

    @parameterized.product(panel=pool.PANELS, seed=(0, 5))
    def test_every_example_is_in_one_model_of_each_pair(self, panel, seed):
        drawn = self.draw(panel, seed=seed)
        member = drawn.member(range(8))
        self.assertEqual(member.shape, (8, len(drawn.pool)))
        np.testing.assert_array_equal(member[0::2], ~member[1::2])
        np.testing.assert_array_equal(member.sum(1), len(drawn.pool) // 2)
        for one, other in itertools.combinations(member[0::2], 2):
            self.assertFalse(np.array_equal(one, other))
        # A larger bank begins with a smaller one.
        np.testing.assert_array_equal(drawn.member(range(4)), member[:4])

    @parameterized.parameters(*pool.PANELS)
    def test_parts_share_nothing_and_leave_nothing_out(self, panel):
        drawn = self.draw(panel)
        split, member = drawn.split(3), drawn.member([3])[0]
        np.testing.assert_array_equal(split.forget, drawn.pool[member])
        np.testing.assert_array_equal(split.forgotten, drawn.pool[~member])
        parts = np.concatenate([split.forget, split.forgotten, split.retain])
        total = len(drawn.dataset.train_labels)
        self.assertEqual(len(np.unique(parts)), len(parts))
        self.assertLessEqual(total - len(parts), 1)  # a class may have an odd one
        self.assertEqual(len(split.forget), len(split.forgotten))

    def test_wrong_labels_are_wrong_and_of_every_class(self):
        drawn, true = self.draw("mislabelled"), data.load("digits").train_labels
        given = drawn.dataset.train_labels
        changed = np.flatnonzero(given != true)
        np.testing.assert_array_equal(changed, drawn.pool)
        counts = np.bincount((given - true)[changed] % 10, minlength=10)
        self.assertEqual(counts[0], 0)
        self.assertGreater(counts[1:].min(), 10)  # 288 over nine: 32 each, σ = 5.3
        self.assertLess(counts[1:].max(), 54)

    def test_the_class_is_gone_from_what_is_retained(self):
        drawn = self.draw("class")
        labels = drawn.dataset.train_labels
        self.assertEqual(set(labels[drawn.pool]), {3})
        self.assertNotIn(3, labels[drawn.retain])
        self.assertNotIn(3, drawn.dataset.test_labels[drawn.test])

    def test_hard_and_easy_examples_are_the_ends_of_the_ranking(self):
        dataset, total = data.load("digits"), len(data.load("digits").train_labels)
        certainty = np.arange(total)[::-1]
        hard, easy = (
            pool.draw(dataset, panel, 0.05, "", 0, certainty)
            for panel in ("memorised", "typical")
        )
        count = 2 * round(0.05 * total)
        np.testing.assert_array_equal(hard.pool, np.arange(total - count, total))
        np.testing.assert_array_equal(easy.pool, np.arange(count))

    def test_a_pool_that_takes_all_is_refused(self):
        with self.assertRaisesRegex(pool.PoolError, "wanted at least 4"):
            self.draw(share=0.0005)


def margins(member, memory, seed=0, retain=20, shifted=0.0):
    """Normal margins, ``memory`` deviations higher for what was forgotten."""
    rng = np.random.default_rng(seed)
    models, examples = member.shape
    centre = 3 * rng.normal(size=examples)
    return Margins(
        centre + rng.normal(size=member.shape) + memory * member,
        shifted + rng.normal(size=(models, retain)),
        rng.normal(size=(models, 30)),
        member,
        np.arange(models),
    )


def bank(memory=0.0, models=32, examples=200, **options):
    """A method's bank and Retrain's, of one centre for each example."""
    half = np.arange(examples) % 2 == 0
    rng = np.random.default_rng(7)
    pairs = [rng.permutation(half) for _ in range(models // 2)]
    member = np.stack([x for half in pairs for x in (half, ~half)])
    ours = margins(member, memory, **options)
    oracle = ours._replace(
        pool=ours.pool.mean(0)
        - memory / 2
        + np.random.default_rng(1).normal(size=member.shape),
        retain=np.random.default_rng(2).normal(size=ours.retain.shape),
    )
    return ours, oracle


def estimates(ours, oracle) -> dict[str, Any]:
    return {
        audit.column.key: audits.estimate(audit, ours, oracle)
        for audit in audits.AUDITS
    }


class AuditsTest(parameterized.TestCase):
    def test_each_column_has_as_many_forgetting_models(self):
        ours, _ = bank(models=8, examples=6)
        found = audits.forgotten(ours)
        for i in range(6):
            np.testing.assert_array_equal(found[:, i], ours.pool[ours.member[:, i], i])
        both = np.concatenate([found, audits.never(ours)])
        np.testing.assert_allclose(np.sort(both, 0), np.sort(ours.pool, 0))

    def test_what_was_forgotten_scores_chance(self):
        found = estimates(*bank(memory=0.0))
        # 6,400 scores: the area's deviation is 0.9 with refitting; nine tenths of it.
        self.assertBetween(found["ratio"].mean, 47.0, 53.0)
        self.assertBetween(found["population"].mean, 49, 51)
        self.assertBetween(found["shift"].mean, -0.1, 0.1)
        self.assertLess(found["klom"].mean, 0.12)
        self.assertBetween(found["ratio"].half_width, 0.3, 6)

    def test_what_was_not_is_caught_as_theory_says(self):
        found = estimates(*bank(memory=1.0))
        # Area of two normals a deviation apart: 76.0; divergence: 1 / 2.
        self.assertBetween(found["ratio"].mean, 72, 78)
        self.assertBetween(found["shift"].mean, 0.85, 1.15)
        self.assertBetween(found["klom"].mean, 0.45, 0.75)
        self.assertLess(found["population"].mean, 62)  # one threshold for all is weak

    def test_overdone_forgetting_has_a_sign_and_is_caught(self):
        found = estimates(*bank(memory=-1.0))
        self.assertLess(found["shift"].mean, -0.85)
        self.assertGreater(found["ratio"].mean, 72)
        self.assertLess(found["population"].mean, 50)

    def test_damage_beside_is_seen_on_what_is_retained(self):
        ours, oracle = bank(shifted=-1.0)
        self.assertGreater(estimates(ours, oracle)["klom_retain"].mean, 0.4)

    def test_no_rate_where_too_few_are_accused(self):
        found = estimates(*bank(models=8, examples=100))  # 400 · 1 % = 4 accused
        self.assertIsNone(found["ratio_tpr"].mean)
        self.assertIsNotNone(estimates(*bank())["ratio_tpr"].mean)

    @parameterized.parameters([()], [("retrain",)])
    def test_a_bank_that_has_too_few_models_yet_has_no_numbers(self, done):
        _, oracle = bank(models=8, examples=6)
        rows = [
            {"method": name, "seed": 0, "ua": 1.0, "ra": 1.0, "ta": 1.0, "gap": 0.0}
            for name in ("retrain", "salun")
        ]
        banks = dict.fromkeys(done, oracle)
        table = audits.audited(summarise(rows, ()), banks)
        for entry in table.methods:
            self.assertIsNone(entry.values["klom"].mean)
        for figure in pictures.figures(table, banks):
            figure.draw()

    def test_the_table_has_the_floor_and_no_distance_of_retrain_to_itself(self):
        ours, oracle = bank()
        names = ("original", "retrain", "retrain_again")
        rows = [
            {"method": name, "seed": seed, "ua": 1.0, "ra": 1.0, "ta": 1.0, "gap": 0.0}
            for seed in range(4)
            for name in names
        ]
        banks = {"original": ours, "retrain": oracle, "retrain_again": ours}
        table = audits.audited(summarise(rows, ()), banks)
        [_, retrain, again] = table.methods
        self.assertIsNone(retrain.values["klom"].mean)
        self.assertIsNotNone(retrain.values["ratio"].mean)
        self.assertEqual(table.noise_floor, again.values["klom"])


def _pool_of(folder, total):
    """Which training images the models of a folder forget, as bools."""
    found = np.zeros(total, bool)
    for path in pathlib.Path(folder, "forgotten").glob("*.txt"):
        lines = path.read_text().splitlines()
        found[[int(line) for line in lines if not line.startswith("#")]] = True
    return found


@pytest.mark.slow
class CommandTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.enterContext(contextlib.chdir(folder.name))
        own_data(pathlib.Path("own.npz"), [40, 40, 40])

    def flags(self, *flags, models=8):
        return [
            *("--dataset", "npz:own.npz", "--width", "4", "--models", str(models)),
            *(
                "--train.epochs",
                "2",
                "--train.batch-size",
                "32",
                "--recipe.epochs",
                "1",
            ),
            *("--methods", "finetune,salun,cufg", "--out", "out", "--cache", "None"),
            *flags,
        ]

    def test_both_panels_leave_a_bank_and_a_report(self):
        code, out, err = run(*self.flags())
        self.assertEqual(code, 0, err)
        for panel in ("mislabelled", "random"):
            folder = pathlib.Path("out") / panel
            self.assertTrue((folder / "report.html").exists())
            for name in ("roc", "margins", "klom", "two_audits"):
                self.assertTrue((folder / "plots" / f"{name}.png").exists())
            with np.load(folder / "bank" / "salun.npz") as kept:
                self.assertEqual(kept["pool"].shape, (8, 24))
                self.assertEqual(kept["member"].sum(), 4 * 24)
            rows = json.loads((folder / "results.json").read_text())["rows"]
            self.assertLen(rows, 8 * 6)
            # Only originals are kept: methods start from them.
            kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
            self.assertEqual(kept, ["original"])
        self.assertIn("U-LiRA", out)

    def test_shares_make_the_table_of_one_process(self):
        flags = self.flags("--panels", "random")
        for share in ("1/2", "2/2"):
            self.assertEqual(run(*flags, "--share", share)[0], 0)
        self.assertEqual(run(*flags)[0], 0)
        shared = json.loads(pathlib.Path("out/random/results.json").read_text())
        self.assertEqual(run(*flags, "--out", "whole")[0], 0)
        whole = json.loads(pathlib.Path("whole/random/results.json").read_text())
        for one, other in zip(shared["rows"], whole["rows"], strict=True):
            del one["seconds"], other["seconds"]
            self.assertEqual(one, other)
        # More models go on with those that are there.
        self.assertEqual(run(*self.flags("--panels", "random", models=10))[0], 0)

    def test_what_is_hard_to_tell_unseen_is_ranked_first(self):
        with np.load("own.npz") as old:
            arrays = dict(old)
        wrong = np.arange(0, 120, 10)
        arrays["train_labels"][wrong] = (arrays["train_labels"][wrong] + 1) % 3
        np.savez("own.npz", **arrays)
        flags = self.flags("--panels", "memorised,typical", "--train.epochs", "20")
        code, _, err = run(*flags, "--methods", "finetune")
        self.assertEqual(code, 0, err)
        pools = [
            set(np.flatnonzero(_pool_of(f"out/{panel}", 120)))
            for panel in ("memorised", "typical")
        ]
        # 12 wrong labels among 24 hard examples, and hardly one among as many easy.
        self.assertGreaterEqual(len(pools[0] & set(wrong)), 9)
        self.assertLessEqual(len(pools[1] & set(wrong)), 1)
        self.assertEmpty(pools[0] & pools[1])

    @parameterized.parameters(
        ("--models 7", "--models 7: give an even number"),
        ("--panels easy", "choose from mislabelled, random, class, memorised"),
        ("--share 3/2", "--share '3/2': give i/n"),
        ("--forget-fraction 0.6", "0.5"),
        ("--panels class --forget-class 9", "9"),
    )
    def test_bad_flags_are_a_line(self, flags, said):
        code, out, err = run(*self.flags(*flags.split()))
        self.assertEqual((code, out, err.count("\n")), (2, "", 1))
        self.assertIn(said, err)


if __name__ == "__main__":
    absltest.main()
