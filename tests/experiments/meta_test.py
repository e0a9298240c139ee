"""The audit of audits: what its numbers are, on models made up for it."""

import functools
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from experiments.audit import __main__ as audit
from experiments.audit import kinds, meta, scoring
from experiments.audit.bank import Margins
from experiments.audit.scoring import Asked
from experiments.classification.optimisation import Losses, Optimisation
from tests import command_line

run = functools.partial(command_line.run, audit.main)
MODELS, EXAMPLES = 16, 40


def models(memory: float, seed: int, error: float = 0.0) -> Asked:
    """Normal margins, ``memory`` deviations higher for what was forgotten."""
    rng = np.random.default_rng(seed)
    centre = 3 * np.random.default_rng(99).normal(size=EXAMPLES)
    member = np.zeros((MODELS, EXAMPLES), bool)
    for i in range(0, MODELS, 2):
        member[i, rng.permutation(EXAMPLES)[: EXAMPLES // 2]] = True
        member[i + 1] = ~member[i]
    pool = centre + rng.normal(size=member.shape) + memory * member
    rest = rng.normal(size=(MODELS, 30))
    margins = Margins(pool, rest, rest, member, np.arange(MODELS))
    return Asked(margins, np.full((MODELS, 3), error))


class ScoringTest(parameterized.TestCase):
    def test_faithfulness_is_the_area_of_the_pairs(self):
        rng = np.random.default_rng(0)
        bad, good = rng.integers(0, 9, 30) + 2.0, rng.integers(0, 9, 20) * 1.0
        wanted = np.mean([(b > g) + (b == g) / 2 for b in bad for g in good])
        self.assertAlmostEqual(scoring.faithfulness(bad, good), wanted)
        self.assertEqual(scoring.faithfulness(good + 100, good), 1)

    def test_an_audit_of_noise_is_at_chance_within_its_interval(self):
        inside = 0
        for seed in range(40):
            rng = np.random.default_rng(seed)
            bad, good = [rng.normal(size=20)], [rng.normal(size=20)]
            low, high = scoring.interval(bad, good, draws=200)
            inside += low <= 0.5 <= high
        self.assertBetween(inside, 33, 40)

    @parameterized.parameters(*scoring.CANDIDATES)
    def test_candidates_rise_with_what_is_remembered(self, *candidate):
        candidate = scoring.Candidate(*candidate)
        oracle = models(0.0, 1, error=10.0)
        scores = [
            np.mean(scoring.units(candidate, models(memory, 2, error), oracle))
            for memory, error in ((0.0, 10.0), (2.0, 6.0), (5.0, 0.0))
        ]
        if candidate.label == "KLOM R":  # R is as it was
            np.testing.assert_allclose(scores, scores[0])
        else:
            self.assertEqual(scores, sorted(scores))
            self.assertGreater(scores[2], 3 * scores[0] + 0.3)
        count = len(scoring.units(candidate, oracle, oracle))
        self.assertEqual(count, MODELS // candidate.models)

    def test_agreement_and_threshold_by_their_formulas(self):
        self.assertEqual(scoring.agreement(np.zeros(3), np.zeros(2)), 1)
        self.assertAlmostEqual(scoring.agreement(np.ones(3), 3 * np.ones(2)), 0.5)
        self.assertAlmostEqual(scoring.threshold(np.arange(101.0)), 95)
        self.assertAlmostEqual(scoring.rank_correlation([1, 2, 5], [0, 3, 9]), 1)
        self.assertTrue(np.isnan(scoring.rank_correlation([1, 1], [0, 3])))


class JudgedTest(absltest.TestCase):
    def found(self):
        good = {kinds.AGAIN: 0.0, kinds.OTHERWISE: 0.0, "retrain": 0.0}
        memory = dict.fromkeys(kinds.BAD, 4.0) | good
        return {
            kind: models(strength, seed, error=10 if kind in good else 0)
            for seed, (kind, strength) in enumerate(memory.items())
        }

    def test_what_answers_cannot_show(self):
        doses = {
            share: models(4 * share, 50, error=10 - 10 * share) for share in (0.5,)
        }
        results = meta.judged(self.found(), doses, 10)
        verdict, seen = results["U-LiRA"]
        self.assertEqual((verdict.area, verdict.dose), (1, 1))
        self.assertEqual(seen["original"], 1)
        self.assertEqual(seen[kinds.CONSTANT], 0)  # it has nothing to say
        self.assertEqual(results["KLOM R"][1][kinds.CONSTANT], 1)
        self.assertEqual(results["UA"][1][kinds.WRAPPER], 0)
        self.assertEqual(results["UA"][1]["original"], 1)
        said = meta.advice(results)
        self.assertIn("With one unlearned model, measure Pop (no Retrain)", said)
        self.assertIn("Constant passes", said)
        lines = meta.table(results).splitlines()
        self.assertLen(lines, 2 * (2 + len(scoring.CANDIDATES)) + 1)


class KindsTest(absltest.TestCase):
    def losses(self):
        def loss_fn(params, model_state, batch, key):
            logits = jnp.tanh(batch["x"] @ params["hidden"]) @ params["head"]
            labels = batch["label"]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(losses), (model_state, None)

        no = None
        return Losses(loss_fn, loss_fn, no, no, no, 3)  # pyright: ignore

    def test_bad_kinds_change_what_they_say_they_change(self):
        rng = np.random.default_rng(0)
        params = {
            "hidden": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32),
            "head": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
        }
        x = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
        batch = {"x": x, "label": jnp.arange(6) % 3}
        training = Optimisation(learning_rate=0.1, epochs=4)
        ended = {}
        for name, kind in kinds.KINDS.items():
            recipe = kind.recipe(training)
            method = kind.build(recipe, self.losses(), 3)
            state = method.init(params, (), [batch])
            infos = []
            for _ in range(2):
                state, info = method.step(state, batch)
                infos.append(info)
            loss = float(infos[-1].loss)
            ended[name] = jax.device_get(method.finish(state)[0]), loss
        rounded = ended[kinds.ROUNDED][0]["head"]
        step = np.abs(params["head"]).max() / 127
        np.testing.assert_allclose(rounded, np.round(params["head"] / step) * step)
        noise = ended["noisy"][0]["hidden"] - params["hidden"]
        self.assertBetween(noise.std() / params["hidden"].std(), 0.05, 0.2)
        new = ended["new_head"][0]
        np.testing.assert_array_equal(new["hidden"], params["hidden"])
        self.assertLess(np.abs(new["head"]).max(), np.abs(params["head"]).max())
        loss = self.losses().train(params, (), batch, None)[0]
        self.assertGreater(ended["damaged"][1], loss)  # it ascends
        self.assertLess(ended["hardly_tuned"][1], loss)
        self.assertEqual(kinds.KINDS[kinds.OTHERWISE].recipe(training).epochs, 5)


class CommandTest(absltest.TestCase):
    def test_methods_are_refused(self):
        for flags in (("--methods", "salun"), ("--share", "1/2")):
            code, _, errors = run("--meta", *flags)
            self.assertEqual(code, 2)
            self.assertIn("leave out --methods and --share", errors)
        code, _, errors = run("--meta", "--models", "10")
        self.assertEqual(code, 2)
        self.assertIn("give at least 16", errors)

    @pytest.mark.slow
    def test_leaves_both_tables_and_goes_on(self):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        flags = ["--meta", "--models", "16", "--train-size", "200", "--width", "4"]
        flags += [
            "--train.epochs",
            "3",
            "--panels",
            "mislabelled",
            "--out",
            str(folder),
        ]
        flags += ["--cache", str(folder / "cache")]
        code, said, errors = run(*flags)
        self.assertEqual(code, 0, errors)
        left = folder / "meta-mislabelled"
        kept = json.loads((left / "meta.json").read_text())
        self.assertEqual(list(kept), [c.label for c in scoring.CANDIDATES])
        self.assertIn("| U-LiRA | 8 | 0 |", said)
        self.assertIn("Audit of audits", (left / "report.html").read_text())
        before = (left / "meta.md").read_bytes()
        self.assertEqual(run(*flags)[0], 0)
        self.assertEqual((left / "meta.md").read_bytes(), before)


if __name__ == "__main__":
    absltest.main()
