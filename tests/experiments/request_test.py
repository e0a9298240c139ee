"""Deletion requests as people have them, from the command line."""

import contextlib
import functools
import json
import pathlib
import tempfile
from typing import get_args
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments import data
from experiments.classification import __main__ as classification
from experiments.classification import evaluation
from experiments.classification.methods import METHODS
from experiments.data.splits import shuffled
from experiments.engine import bench, study
from mujax import auditing
from tests import command_line

run = functools.partial(command_line.run, classification.main)


def own_data(path: pathlib.Path, counts: list[int]) -> np.ndarray:
    """An npz of classes of so many training images that a mean tells apart."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(counts)), counts)
    noise = rng.integers(-30, 30, (len(labels), 8, 8, 1))
    images = (40 + 50 * labels[:, None, None, None] + noise).astype(np.uint8)
    np.savez(
        path,
        train_images=images,
        train_labels=labels,
        test_images=images[::3],
        test_labels=labels[::3],
    )
    return labels


class RequestTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.enterContext(contextlib.chdir(self.folder))
        self.labels = own_data(self.folder / "own.npz", [24, 24, 24, 24])

    def write(self, name, indices):
        pathlib.Path(name).write_text("\n".join(map(str, indices)))
        return name

    def flags(self, *flags, out="out", methods="finetune"):
        return [
            *("--dataset", "npz:own.npz", "--width", "4", "--seeds", "1"),
            *("--train.epochs", "1", "--recipe.epochs", "1", "--methods", methods),
            *("--train.batch-size", "32", "--out", out, "--cache", "None"),
            *("--workers", "1", *flags),
        ]

    def start(self, *flags, **options):
        """Runs up to the first training: exit code, what was said, and the runs."""
        with (
            mock.patch.object(bench.Bench, "run_batch") as runs,
            mock.patch.object(bench.report, "write"),
        ):
            code, _, err = run(*self.flags(*flags, **options))
        calls = [call.args[:2] for call in runs.call_args_list]
        return code, err, [(name, seed) for name, seeds in calls for seed in seeds]


class TrainSizeTest(RequestTestCase):
    @parameterized.parameters(
        ("--train-size 0", "--train-size 0: give a number"),
        ("--train-size 97", "97 training images were asked for"),
        ("--train-size 1", "none is of"),
        ("--train-size 40 --scenario indices --forget-indices a.txt", "indices"),
    )
    def test_what_cannot_be_is_a_line(self, flags, words):
        code, out, err = run(*self.flags(*flags.split()))
        self.assertEqual((code, out, err.count("\n")), (2, "", 1))
        self.assertIn(words, err)

    def test_fewer_images_are_learned_from(self):
        code, _, err = run(*self.flags("--train-size", "40"))
        self.assertEqual(code, 0, err)
        report = pathlib.Path("out/report.html").read_text()
        self.assertIn("trained on 40 images of npz:own.npz", report)
        forgotten = pathlib.Path("out/forgotten/seed_0.txt").read_text()
        self.assertLen(forgotten.splitlines(), 1 + 4)


class BeforeTrainingTest(RequestTestCase):
    def test_a_rare_class_is_refused_for_all_seeds_at_once(self):
        self.labels = own_data(self.folder / "own.npz", [60, 60, 38, 2])
        draws = ("--forget-fraction", "0.5", "--seeds", "20")
        code, err, runs = self.start(*draws)
        self.assertEqual((code, runs), (2, []))
        lost = [
            seed
            for seed in range(20)
            if np.isin(
                np.flatnonzero(self.labels == 3),
                np.sort(shuffled(160, seed)[:80]),
            ).all()
        ]
        self.assertNotEmpty(lost[1:])
        first, *others = map(str, lost)
        self.assertIn(f"With seed {first} (and likewise with {', '.join(others)})", err)
        self.assertIn("No training image of 3 would be left", err)
        self.assertEqual(err.count("\n"), 1)
        # The seeds before the first of them, or another draw, are no trouble.
        code, err, runs = self.start(*draws[:2], "--seeds", first)
        self.assertEqual((code, len(runs)), (0, 4 * lost[0]), err)

    @parameterized.parameters((1, ["CUFG forgets in 1 of its 3 stages"]), (3, []))
    def test_stages_follow_the_request_unless_they_were_asked_for(self, count, notes):
        self.write("few.txt", range(count))
        request = ("--scenario", "indices", "--forget-indices", "few.txt")
        code, err, runs = self.start(*request, methods="cufg")
        self.assertEqual((code, len(runs)), (0, 4), err)
        for note in notes:
            self.assertIn(note, err)
        self.assertEqual(err.count("\n"), len(notes))
        code, err, runs = self.start(*request, "--recipe.stages", "4", methods="cufg")
        self.assertEqual((code, runs), (2, []))
        self.assertIn(f"the forget set has {count} images", err)

    def test_methods_without_stages_say_nothing_of_them(self):
        self.write("one.txt", [5])
        request = ("--scenario", "indices", "--forget-indices", "one.txt")
        self.assertEqual(self.start(*request)[:2], (0, ""))

    def test_lists_that_take_a_whole_class_say_what_they_are_tested_on(self):
        wanted = np.flatnonzero(np.isin(self.labels, (1, 2)))
        self.write("a.txt", wanted[:30])
        self.write("b.txt", wanted[20:])
        request = ("--scenario", "indices", "--forget-indices", "a.txt,b.txt")
        code, err, runs = self.start(*request)
        self.assertEqual((code, len(runs)), (0, 4), err)
        self.assertIn("No training image of 1, 2 is retained: the 16 test images", err)

    @parameterized.named_parameters(
        (
            "forgotten_by_no_model",
            ["--forgotten-indices", "a.txt"],
            "give that model as --checkpoint",
        ),
        (
            "no_list",
            ["--forgotten-indices", "x.txt", "--checkpoint", "m"],
            "no file of forgotten indices 'x.txt'",
        ),
        (
            "twice",
            [
                *("--forgotten-indices", "a.txt", "--checkpoint", "m"),
                *("--scenario", "indices", "--forget-indices", "a.txt"),
            ],
            "2 of the training images to forget are forgotten already, 3 among them",
        ),
        ("all_classes", ["--scenario", "class", "--forget-class", "0,1,2,3"], "^.*96"),
        ("no_class", ["--scenario", "class", "--forget-class", "0,9"], "no class '9'"),
        ("attack", ["--attack", "mood"], "mood"),
    )
    def test_is_a_line_and_trains_nothing(self, flags, words):
        self.write("a.txt", [3, 4])
        code, err, runs = self.start(*flags)
        self.assertEqual((code, runs), (2, []))
        self.assertRegex(err, words)
        self.assertEqual(err.count("\n"), 1)

    def test_a_diffusion_model_forgets_one_class(self):
        from experiments.diffusion import __main__ as diffusion

        code, _, err = command_line.run(diffusion.main, "--forget-class", "3,7")
        self.assertEqual(code, 2)
        self.assertIn("--forget-class 3,7: a diffusion model forgets one", err)

    def test_every_attack_is_there(self):
        self.assertCountEqual(get_args(evaluation.Attack), auditing.FEATURES)

    def test_the_attack_is_what_was_asked_for(self):
        rng = np.random.default_rng(0)
        sets = []
        for count in (20, 90, 40):
            probs = rng.dirichlet(np.ones(4), count).astype(np.float32)
            sets.append((probs, rng.integers(0, 4, count)))
        forget, retain, test = sets
        outputs = evaluation.Outputs(forget, retain, test)
        for attack in get_args(evaluation.Attack):
            feature = auditing.FEATURES[attack]
            row = evaluation.measure(outputs, 7, attack)
            wanted = auditing.mean_forget_efficacy(
                *retain, *test, *forget, feature=feature, seed=7
            )
            found = tuple(row[key] for key in ("mia", "mia_error", "mia_draws"))
            self.assertEqual(found, wanted)


@pytest.mark.slow
class WholeRunTest(RequestTestCase):
    def rows(self, out="out"):
        results = json.loads(pathlib.Path(out, "results.json").read_text())
        return {row["method"]: row for row in results["rows"]}

    def test_one_image_is_forgotten_by_every_method(self):
        self.write("one.txt", [5])
        request = ("--scenario", "indices", "--forget-indices", "one.txt")
        code, _, err = run(*self.flags(*request, methods="all"))
        self.assertEqual(code, 0, err)
        rows = self.rows()
        self.assertLen(rows, 3 + len(METHODS))
        for row in rows.values():
            self.assertEqual(row["status"], "ok", row)
            self.assertIn(row["ua"], (0, 100))
            self.assertBetween(row["mia"], 0, 100)
        results = json.loads(pathlib.Path("out/results.json").read_text())
        self.assertLen(results["config"]["adapted"], 1)
        self.assertIn("CUFG forgets in 1", pathlib.Path("out/report.html").read_text())

    def test_several_classes_are_forgotten_and_not_tested_on(self):
        request = ("--scenario", "class", "--forget-class", "1,3")
        code, _, err = run(*self.flags(*request, "--train.epochs", "8"))
        self.assertEqual(code, 0, err)
        self.assertEqual(self.rows()["retrain"]["ua"], 100)
        self.assertGreater(self.rows()["retrain"]["ta"], 50)
        listed = data.read_indices(data.load("npz:own.npz"), "out/forgotten/seed_0.txt")
        np.testing.assert_array_equal(
            listed, np.flatnonzero(np.isin(self.labels, (1, 3)))
        )

    def test_a_second_request_builds_on_the_first(self):
        self.write("first.txt", [3, 30, 60])
        self.write("second.txt", [4, 31])
        indices = ("--scenario", "indices", "--forget-indices")
        code, _, err = run(*self.flags(*indices, "first.txt"))
        self.assertEqual(code, 0, err)
        feeds = {}

        def execute(jobs, *rest):
            feeds.update((job.name, job.feed) for job in jobs)
            return real(jobs, *rest)

        real = study.execute
        given = (
            *("--checkpoint", "out/checkpoints/finetune/seed_0"),
            *("--forgotten-indices", "out/forgotten/seed_0.txt"),
        )
        with mock.patch.object(study, "execute", execute):
            flags = self.flags(*indices, "second.txt", *given, out="again")
            code, _, err = run(*flags)
        self.assertEqual(code, 0, err)
        self.assertCountEqual(feeds, ["retrain", "retrain_again", "finetune"])
        union = [3, 4, 30, 31, 60]
        for feed in feeds.values():
            np.testing.assert_array_equal(np.concatenate(feed.forget), [4, 31])
            np.testing.assert_array_equal(
                feed.retain, np.setdiff1d(np.arange(96), union)
            )
        # It starts from the model that was given; a third request can go on from it.
        first, second = self.rows(), self.rows("again")
        self.assertEqual(second["original"]["ta"], first["finetune"]["ta"])
        own = data.load("npz:own.npz")
        listed = data.read_indices(own, "again/forgotten/seed_0.txt")
        self.assertEqual(listed.tolist(), union)


if __name__ == "__main__":
    absltest.main()
