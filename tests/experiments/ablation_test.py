"""The ablation: its statistics, its combinations, and what it says of them."""

import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from absl.testing import absltest, parameterized

from experiments.ablation import __main__ as ablation
from experiments.ablation import cells, effects, findings
from experiments.ablation.task import Ablation
from experiments.classification import recipes
from experiments.classification.methods import (
    cufg,
    random_mask,
    salun,
    semu,
    smallest_mask,
    ufg,
)
from experiments.classification.optimisation import Losses
from experiments.classification.task import Classification
from experiments.engine import programs
from mujax import transforms
from mujax.wrappers import TwoGradients
from tests import command_line

run = functools.partial(command_line.run, ablation.main)
FACTORS = {"x": ["a", "b", "c"], "y": ["d", "e"], "z": ["f", "g", "h"]}
GRID = list(itertools.product(*FACTORS.values()))


def draw(seeds=8, noise=1.0, seed=0, planted=None):
    """Numbers of each seed and cell, with an offset that all cells of a seed share."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(seeds, 1)) + noise * rng.normal(size=(seeds, len(GRID)))
    for levels, size in (planted or {}).items():
        values += size * np.array([set(levels) <= set(cell) for cell in GRID])
    return values


def by_levels(found):
    return {tuple(effect.levels.values()): effect for effect in found}


def by_treatment(values):
    """Effects by another coding: dummies, whose predictions are averaged."""

    def columns(cell):
        chosen = [
            [level == own for level in FACTORS[f][1:]]
            for f, own in zip(FACTORS, cell, strict=True)
        ]
        pairs = [np.outer(p, q).ravel() for p, q in itertools.combinations(chosen, 2)]
        return np.concatenate([[1.0], *chosen, *pairs])

    design = np.array([columns(cell) for cell in GRID])
    known = np.isfinite(values)
    predicted = design @ np.linalg.lstsq(design[known], values[known])[0]
    table = {cell: value for cell, value in zip(GRID, predicted, strict=True)}

    def mean(**levels):
        at = [
            cell
            for cell in GRID
            if all(cell[list(FACTORS).index(f)] == level for f, level in levels.items())
        ]
        return np.mean([table[cell] for cell in at])

    found = {}
    for f, levels in FACTORS.items():
        for level in levels[1:]:
            found[(level,)] = mean(**{f: level}) - mean(**{f: levels[0]})
    for f, g in itertools.combinations(FACTORS, 2):
        for p, q in itertools.product(FACTORS[f][1:], FACTORS[g][1:]):
            p0, q0 = FACTORS[f][0], FACTORS[g][0]
            found[p, q] = (
                mean(**{f: p, g: q})
                - mean(**{f: p, g: q0})
                - mean(**{f: p0, g: q})
                + mean(**{f: p0, g: q0})
            )
    return found


class EffectsTest(parameterized.TestCase):
    @parameterized.parameters(0, 3)
    def test_equals_least_squares_in_another_coding(self, missing):
        values = draw()
        for row in values[:missing]:
            row[np.random.default_rng(1).choice(len(GRID), 3, replace=False)] = np.nan
        found = by_levels(effects.estimate(values, GRID, FACTORS))
        wanted = [by_treatment(row) for row in values]
        self.assertEqual(found.keys(), wanted[0].keys())
        for levels, effect in found.items():
            each = np.array([row[levels] for row in wanted])
            np.testing.assert_allclose(effect.mean, each.mean(), atol=1e-9)
            error = each.std(ddof=1) / len(each) ** 0.5
            quantile = scipy.stats.t.isf(0.025 / len(found), len(each) - 1)
            np.testing.assert_allclose(effect.half_width, quantile * error, rtol=1e-6)

    def test_a_whole_study_has_differences_of_means(self):
        values = draw()
        found = by_levels(effects.estimate(values, GRID, FACTORS))
        cube = values.reshape(-1, 3, 2, 3).mean(0)
        np.testing.assert_allclose(
            found[("c",)].mean, cube[2].mean() - cube[0].mean(), atol=1e-9
        )
        face = cube.mean(1)
        wanted = face[1, 2] - face[1, 0] - face[0, 2] + face[0, 0]
        np.testing.assert_allclose(found["b", "h"].mean, wanted, atol=1e-9)

    def test_p_values_are_holms(self):
        values = draw(planted={"b": 1.0})
        found = effects.estimate(values, GRID, FACTORS)
        plain = {}
        for effect in found:
            levels = tuple(effect.levels.values())
            each = [by_treatment(row)[levels] for row in values]
            plain[levels] = scipy.stats.ttest_1samp(each, 0)[1]
        # The definition: a step's p-value is rejected at α if all before it are.
        for effect in found:
            p = plain[tuple(effect.levels.values())]
            before = sorted(q for q in plain.values() if q <= p)
            stepped = [(len(plain) - i) * q for i, q in enumerate(before)]
            self.assertAlmostEqual(effect.p_value, min(1, max(stepped)), places=6)

    def test_nothing_is_found_where_there_is_nothing_and_power_where_there_is(self):
        wrong = found = exact = 0
        for seed in range(200):
            null = effects.estimate(draw(10, seed=seed), GRID, FACTORS)
            wrong += any(effect.clear for effect in null)
            planted = {("b",): 1.5, ("e", "h"): -4.0}
            real = by_levels(
                effects.estimate(draw(10, seed=seed, planted=planted), GRID, FACTORS)
            )
            # The pair adds to the main effects of its levels, but not to that of b.
            found += real[("b",)].clear and real["e", "h"].clear
            exact += abs(real[("b",)].mean - 1.5) < real[("b",)].half_width
        # Binomial with 200 draws at 5 %: 18 or more happens once in a hundred times.
        self.assertLessEqual(wrong, 18)
        self.assertGreater(found, 150)
        self.assertGreater(exact, 190)

    def test_says_what_it_cannot_tell(self):
        with self.assertRaisesRegex(ValueError, "1 seeds, wanted two"):
            effects.estimate(draw(1), GRID, FACTORS)
        values = draw()
        values[2, [cell[0] == "c" for cell in GRID]] = np.nan
        with self.assertRaisesRegex(ValueError, "12 of 18 cells"):
            effects.estimate(values, GRID, FACTORS)
        with self.assertRaisesRegex(ValueError, "no factor of two levels"):
            effects.estimate(np.ones((3, 1)), [("a",)], {"x": ["a"]})

    def test_better_is_beyond_the_interval_of_every_other(self):
        rng = np.random.default_rng(0)
        values = rng.normal(size=(10, 1)) + 0.1 * rng.normal(size=(10, 6))
        values[:, 4:] += 5.0
        values[:, 5] -= 2.0
        values[:, 0] += 0.2
        values[3, 2] = np.nan
        found = effects.beats_all(values, [0, 1, 2, 3], [4, 5])
        self.assertCountEqual([better.cell for better in found], [0, 1, 2, 3])
        for better in found:
            paired = values[:, better.cell] - values[:, 5]  # the nearer of the two
            paired = paired[np.isfinite(paired)]
            self.assertAlmostEqual(better.mean, paired.mean())
            half = scipy.stats.t.isf(0.025 / 4, len(paired) - 1) * scipy.stats.sem(
                paired
            )
            self.assertAlmostEqual(better.half_width, half)
        self.assertEmpty(effects.beats_all(values, [4, 5], [0, 1]))
        self.assertEmpty(effects.beats_all(values, [0], [4, 1]))  # not better than all

    def test_chance_makes_none_better(self):
        wrong = sum(
            bool(effects.beats_all(draw(10, seed=seed), range(15), [15, 16, 17]))
            for seed in range(200)
        )
        self.assertLessEqual(wrong, 18)


def outputs(params, images):
    hidden = jnp.tanh(images @ params["first"]["kernel"])
    return hidden @ params["last"]["kernel"] + params["last"]["bias"]


def loss_fn(params, model_state, batch, key):
    losses = optax.softmax_cross_entropy_with_integer_labels(
        outputs(params, batch["image"]), batch["label"]
    )
    return jnp.mean(batch["weight"] * losses), (model_state, None)


LOSSES = Losses(loss_fn, loss_fn, None, None, None, 3)  # pyright: ignore


def batch(seed, count=8):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.normal(size=(count, 5)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 3, count)),
        "weight": jnp.ones(count),
    }


def model():
    rng = np.random.default_rng(9)

    def weights(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "first": {"kernel": weights(5, 4)},
        "last": {"kernel": weights(4, 3), "bias": weights(3)},
    }


def after(method, steps=3):
    """Parameters after some steps, and what was trained."""
    state = method.init(model(), (), [batch(100)])
    beside = batch(100) if method.data_use.companion else None
    for i in range(steps):
        state, _ = method.step(state, batch(i), forget_batch=beside)
    return method.finish(state)[0], state


def numbers(**changes):
    """Recipes of all cells for these few weights."""
    searched = {
        name: m.Recipe()
        for name, m in {"salun": salun, "semu": semu, "cufg": cufg}.items()
    }
    found = cells.numbers(searched)
    return {
        name: dataclasses.replace(
            recipe,
            learning_rate=0.02,
            **{k: v for k, v in changes.items() if hasattr(recipe, k)},
        )
        for name, recipe in found.items()
    }


class CellsTest(parameterized.TestCase):
    def test_cross_every_level_of_every_factor(self):
        self.assertLen(cells.CELLS, 4 * 3 * 2 * 4)
        labels = [cell.NOTE.label for cell in cells.CELLS.values()]
        self.assertLen(set(labels), len(labels))
        self.assertContainsSubset(cells.PUBLISHED, cells.CELLS)

    @parameterized.parameters(
        ("salient_none_full_none", salun),
        ("random_none_full_none", random_mask),
        ("smallest_none_full_none", smallest_mask),
        ("none_none_cores_none", semu),
        ("none_corrector_full_none", ufg),
        ("none_corrector_full_easy", cufg),
    )
    def test_methods_of_papers_are_cells(self, name, method):
        recipe = numbers(threshold=-1.0)[name]
        own = {
            k: v
            for k, v in dataclasses.asdict(recipe).items()
            if hasattr(method.Recipe(), k)
        }
        ours = cells.CELLS[name].build(recipe, LOSSES, 3)
        theirs = method.build(method.Recipe(**own), LOSSES, 3)
        jax.tree.map(np.testing.assert_array_equal, after(ours)[0], after(theirs)[0])
        self.assertEqual(ours.data_use.passes, theirs.data_use.passes)
        self.assertEqual(ours.data_use.stages, theirs.data_use.stages)
        self.assertEqual(ours.data_use.companion, theirs.data_use.companion)
        self.assertFalse(
            np.array_equal(after(ours)[0]["last"]["kernel"], model()["last"]["kernel"])
        )

    @parameterized.parameters(
        ("salient", "none", "full"),
        ("random", "corrector", "full"),
        ("salient", "corrector", "cores"),
        ("smallest", "projection", "cores"),
    )
    def test_frozen_weights_stay_bit_identical(self, mask, corrector, space):
        cell = cells.Cell(mask, corrector, space, "none")
        recipe = numbers(threshold=-1.0)[cell.name]
        moved, _ = after(cell.build(recipe, LOSSES, 3))
        control = cells.Cell(mask, "none", "full", "none")
        method = control.build(numbers()[control.name], LOSSES, 3)
        kept = method.init(model(), (), [batch(100)]).mask

        def check(mask, now, before):
            np.testing.assert_array_equal(now[~mask], before[~mask])
            return not np.array_equal(now, before)

        changed = jax.tree.map(check, kept, moved, model())
        self.assertTrue(any(jax.tree.leaves(changed)))

    @parameterized.parameters("corrector", "projection")
    def test_in_cores_both_gradients_are_projected(self, corrector):
        """Steps on cores are steps on weights whose gradients are projected."""
        cell = cells.Cell("none", corrector, "cores", "none")
        recipe = numbers(threshold=-0.2, weight_decay=0.0, energy=0.99)[cell.name]
        method = cell.build(recipe, LOSSES, 3)
        ours, state = after(method)
        rule = {
            "corrector": lambda: transforms.correct_updates(
                lambda t: (
                    recipe.threshold - recipe.threshold_fall * jnp.floor_divide(t, 30)
                ),
                lambda t: (
                    recipe.forget_weight * recipe.forget_decay ** jnp.floor_divide(t, 3)
                ),
            ),
            "projection": lambda: transforms.project_conflicting_updates(
                lambda t: (
                    recipe.forget_weight * recipe.forget_decay ** jnp.floor_divide(t, 3)
                )
            ),
        }[corrector]()
        tx = optax.chain(
            transforms.project_updates(state.fixed.bases, freeze_rest=True),
            rule,
            optax.sgd(recipe.learning_rate, momentum=recipe.momentum),
        )
        params = model()
        opt_state = tx.init(params)

        def grads(params, batch):
            return jax.grad(lambda p: loss_fn(p, (), batch, None)[0])(params)

        for i in range(3):
            forget = jax.tree.map(jnp.negative, grads(params, batch(100)))
            both = TwoGradients(grads(params, batch(i)), forget)
            updates, opt_state = tx.update(both, opt_state, params)
            params = optax.apply_updates(params, updates)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-4), ours, params
        )

    def test_numbers_are_shared_and_runs_as_long_with_a_curriculum(self):
        found = cells.numbers(recipes.searched(["digits_500-small_cnn-random-0.1"]))
        for name, recipe in found.items():
            cell = cells.CELLS[name]
            plain = dataclasses.replace(cell, mask="none", order="none").name
            shared = dataclasses.asdict(found[plain])
            own = dataclasses.asdict(recipe)
            stages = own.get("stages", 1)
            self.assertEqual(own.pop("epochs") * stages, shared.pop("epochs"), name)
            self.assertEqual({k: own[k] for k in shared}, shared)
            self.assertEqual("density" in own, cell.mask != "none")
            self.assertEqual("difficulty" in own, cell.order in ("easy", "hard"))
        salun_cell = found["salient_none_full_none"]
        searched = recipes.searched(["digits_500-small_cnn-random-0.1"])
        self.assertEqual(salun_cell.density, searched["salun"].density)
        self.assertEqual(salun_cell.learning_rate, searched["salun"].learning_rate)
        self.assertEqual(
            found["none_corrector_full_easy"].threshold, searched["cufg"].threshold
        )

    def test_what_cannot_be_or_is_another_is_named_with_a_reason(self):
        names = list(cells.CELLS)
        self.assertEmpty(cells.left_out(names, numbers(), 50))
        few = cells.left_out(names, numbers(), 2)
        self.assertLen(few, 72)
        self.assertIn("3 stages for 2", few["none_none_full_easy"])
        one = cells.left_out(names, numbers(stages=1), 50)
        self.assertLen(one, 72)
        self.assertIn("none_none_full_none", one["none_none_full_hard"])
        whole = cells.left_out(names, numbers(density=1.0), 50)
        self.assertLen(whole, 72)
        self.assertIn("none_none_cores_hard", whole["random_none_cores_hard"])

    def test_hard_is_easy_in_reverse_and_random_looks_at_nothing(self):
        parts = np.array([3]), np.array([4]), np.array([5])
        task = object.__new__(Ablation)
        asked = []

        def stages(self, original, recipe, seed):
            asked.append(recipe.difficulty)
            return parts

        with mock.patch.object(Classification, "stages", stages):
            easy, hard, random = (
                task.stages(None, numbers()[f"none_none_full_{order}"], 0)
                for order in ("easy", "hard", "random")
            )
        self.assertEqual((easy, hard, random), (parts, parts[::-1], parts))
        self.assertEqual(asked, ["confidence", "confidence", "random"])


def rows(gaps, lost=()):
    """Rows of every cell over six seeds, with noise that is small against one."""
    rng = np.random.default_rng(0)
    return [
        {"method": name, "seed": seed, "status": "ok", "ua": rng.normal()}
        | {"gap": gaps.get(name, 5.0) + seed + 0.01 * rng.normal()}
        if (name, seed) not in lost
        else {"method": name, "seed": seed, "status": "diverged"}
        for seed in range(6)
        for name in cells.CELLS
    ]


class FindingsTest(parameterized.TestCase):
    def test_says_plainly_that_none_is_better(self):
        papers = dict.fromkeys(findings.PAPERS, 2.0)
        text = " ".join(findings.verdict(findings.gather(rows(papers))))
        self.assertIn("No combination is better than each of SalUn (4.5", text)
        self.assertIn("corrected for 91 combinations", text)

    def test_names_those_that_are(self):
        better = "salient_corrector_full_hard"
        gaps = {name: 4.0 for name in findings.PAPERS} | {better: 2.0}
        text = " ".join(findings.verdict(findings.gather(rows(gaps))))
        self.assertIn("Better than each of SalUn", text)
        label = cells.CELLS[better].NOTE.label
        self.assertIn(f"corrected for 91 combinations: {label} (4.49), nearest", text)
        self.assertNotIn("No combination", text)
        # Better than two of the three is not enough.
        gaps["none_none_cores_none"] = 2.0
        text = " ".join(findings.verdict(findings.gather(rows(gaps))))
        self.assertIn("No combination is better", text)

    def test_diverged_runs_are_named_and_no_numbers(self):
        lost = {("random_projection_full_hard", 2)}
        found = findings.gather(rows({}, lost))
        self.assertEqual(np.isnan(found.gaps).sum(), 1)
        self.assertLen(found.effects, 9 + 29)
        text = " ".join(findings.verdict(found))
        self.assertIn("on all: random_projection_full_hard (1).", text)
        # What it has on other seeds, where it may have come close, does not count.
        close = findings.gather(rows({"random_projection_full_hard": 90.0}, lost))
        self.assertEqual(close.effects, found.effects)

    def test_only_whole_seeds_count_and_equal_cells_are_named(self):
        all_rows = rows({})
        cut = [
            row
            for row in all_rows
            if (row["method"], row["seed"]) != ("none_none_full_none", 5)
        ]
        self.assertLen(findings.gather(cut).gaps, 5)
        for row in all_rows:
            if row["method"] in ("none_none_full_easy", "none_none_full_hard"):
                row["ua"] = row["seed"]
        text = " ".join(findings.verdict(findings.gather(all_rows)))
        same = "none_none_full_easy = none_none_full_hard."
        self.assertIn(f"The same numbers on all seeds: {same}", text)

    def test_with_one_seed_there_are_cells_and_no_effects(self):
        found = findings.gather([row for row in rows({}) if row["seed"] == 0])
        text = " ".join(findings.verdict(found))
        self.assertIn("There are no effects", text)
        self.assertIn("1 whole seeds", text)
        self.assertEqual(findings.table(found), found.why)


class CommandTest(parameterized.TestCase):
    @parameterized.parameters(
        (("--masks", "magnitude"), "there is no mask magnitude. Choose from none"),
        (("--orders", ""), "there is no order in it"),
        (("--orders", "easy", "--recipe.stages", "400"), "No combination is left"),
        (("--none-none-full-none.density", "0.5"), "--none-none-full-none"),
        (
            ("--correctors", "none", "--none-corrector-full-none.threshold", "0"),
            "among",
        ),
    )
    def test_refuses_in_a_line(self, arguments, said):
        code, out, err = run(*arguments)
        self.assertEqual((code, out), (2, ""))
        self.assertIn(said, err)
        self.assertNotIn("Traceback", err)

    @pytest.mark.slow
    def test_a_small_study_resumes_and_reports(self):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            small = (
                "--seeds",
                "2",
                "--train-size",
                "200",
                "--out",
                "study",
                "--train.epochs",
                "4",
                "--recipe.epochs",
                "1",
                "--spaces",
                "full",
                "--correctors",
                "corrector",
            )
            code, _, err = run(*small, "--masks", "none", "--orders", "easy,hard")
            self.assertEqual(code, 0, err)
            before = programs.count()
            code, _, err = run(
                *small, "--masks", "none", "--orders", "easy,hard,random"
            )
            self.assertEqual(code, 0, err)
            self.assertEqual(programs.count(), before)  # another order, the same step
            first = json.loads(pathlib.Path("study/results.json").read_text())["rows"]
            code, _, err = run(*small, "--masks", "none,random", "--orders", "all")
            self.assertEqual(code, 0, err)
            results = json.loads(pathlib.Path("study/results.json").read_text())
            kept = [row for row in results["rows"] if row in first]
            self.assertEqual(kept, first)  # nothing was computed again
            self.assertLen(results["rows"], 2 * (3 + 8))
            page = pathlib.Path("study/report.html").read_text()
            self.assertIn(
                "8 of 96 combinations of parts have run on 2 whole seeds", page
            )
            self.assertIn("random mask × hard to easy", page)
            for plot in ("cells", "effects", "interactions"):
                self.assertTrue(pathlib.Path(f"study/plots/{plot}.png").exists())


if __name__ == "__main__":
    absltest.main()
