"""Benchmarks: that all runs, what is made of times, and that both sides do the same."""

import json
import pathlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments.benchmarks import __main__ as benchmarks
from experiments.benchmarks import measuring, reference, results
from experiments.benchmarks.measuring import OURS, THEIRS, Row, Timing
from experiments.models import build
from mujax import saliency, subspace
from tests import command_line


def temporary_folder(case: absltest.TestCase) -> pathlib.Path:
    return pathlib.Path(case.enterContext(tempfile.TemporaryDirectory()))


def once(seconds: float) -> Timing:
    return Timing(seconds, seconds, seconds, 1)


class CommandTest(parameterized.TestCase):
    @pytest.mark.slow
    def test_quick_runs_every_case_without_torch(self):
        out = temporary_folder(self)
        with mock.patch.object(reference, "available", lambda: False):
            code, printed, _ = command_line.run(
                benchmarks.main, "--quick", "--out", str(out)
            )
        self.assertEqual(code, 0)
        self.assertIn("pip install 'mujax[bench]'", printed)
        [path] = out.glob("*.json")
        rows = json.loads(path.read_text())["rows"]
        self.assertEqual({row["case"] for row in rows}, set(benchmarks.KNOWN))
        for row in rows:
            self.assertEqual(list(row["timings"]), [OURS], row)
            self.assertGreater(row["timings"][OURS]["median"], 0)
        page = (out / results.PAGE).read_text()
        for row in rows:
            self.assertIn(f"| {row['case']} | {row['what']} |", page)
        self.assertTrue(path.with_suffix(".png").exists())

    def test_an_unknown_case_is_refused_in_a_line(self):
        code, printed, said = command_line.run(benchmarks.main, "--cases", "mask,all")
        self.assertEqual((code, printed, said.count("\n")), (2, "", 1))
        self.assertIn("--cases 'mask,all': there is no case all", said)

    def test_a_case_that_fails_is_a_row_and_the_next_is_run(self):
        def fails(scale):
            yield Row("mask", "half", {OURS: once(1.0)})
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nand more")

        def works(scale):
            yield Row("bases", "all", {OURS: once(1.0)})

        out = temporary_folder(self)
        with mock.patch.dict(benchmarks.KNOWN, mask=fails, bases=works):
            code, _, _ = command_line.run(
                benchmarks.main, "--cases", "mask,bases", "--out", str(out)
            )
        self.assertEqual(code, 0)
        [path] = out.glob("*.json")
        rows = json.loads(path.read_text())["rows"]
        self.assertEqual(
            [row["what"] for row in rows], ["half", "did not finish", "all"]
        )
        note = "failed: RuntimeError: RESOURCE_EXHAUSTED: out of memory"
        self.assertEqual(rows[1]["note"], note)


class MeasuringTest(absltest.TestCase):
    def test_contenders_run_in_turns_after_a_round_that_does_not_count(self):
        ran = []
        runs = {name: lambda name=name: ran.append(name) for name in "ab"}
        timings = measuring.in_turns(runs, measuring.Effort(3, 3))
        self.assertEqual("".join(ran), "abababab")
        self.assertEqual([t.times for t in timings.values()], [3, 3])

    def test_turns_end_at_the_most_and_are_at_the_least(self):
        runs = {"a": lambda: None}
        for effort, times in (
            (measuring.Effort(2, 9, 0.0), 2),
            (measuring.Effort(2, 9, 1e9), 9),
        ):
            self.assertEqual(measuring.in_turns(runs, effort)["a"].times, times)

    def test_ratio_is_theirs_over_ours(self):
        both = Row("a", "b", {OURS: once(0.5), THEIRS: once(2.0)})
        self.assertEqual(both.ratio, 4.0)
        self.assertIsNone(Row("a", "b", {OURS: once(0.5)}).ratio)


class ResultsTest(absltest.TestCase):
    def write(self, folder, name, *rows, version="1", command="c"):
        machine = results.Machine(name, {"jax": version})
        results.write(folder, machine, command, rows)
        return (folder / results.PAGE).read_text()

    def test_a_run_replaces_its_own_cases_and_keeps_the_rest(self):
        folder = temporary_folder(self)
        mask = Row("mask", "old mask", {OURS: once(1.0), THEIRS: once(2.0)})
        bases = Row("bases", "old bases", {OURS: once(1.0)})
        self.write(folder, "Card A", mask, bases)
        self.write(folder, "Card B", mask)
        page = self.write(folder, "Card A", Row("mask", "new mask"), command="d")
        first, second = page.split("## ")[1:]
        self.assertIn("old bases", first)
        self.assertIn("new mask", first)
        self.assertNotIn("old mask", first)
        self.assertIn("`c` and `d`", first)
        self.assertIn("| mask | old mask | **2.00** | 1,000 (1,000–1,000) |", second)

    def test_rows_of_other_versions_are_not_kept(self):
        folder = temporary_folder(self)
        self.write(folder, "Card", Row("mask", "old mask"))
        page = self.write(folder, "Card", Row("bases", "new"), version="2")
        self.assertNotIn("old mask", page)
        self.assertIn("jax 2, by `c`.", page)


class ReferenceTest(parameterized.TestCase):
    """PyTorch's side does what ours does."""

    def setUp(self):
        super().setUp()
        pytest.importorskip("torch")
        rng = np.random.default_rng(0)
        shapes = {"a": (3, 3, 4, 8), "b": (8, 10), "c": (10,)}
        self.tree = {
            name: jnp.asarray(rng.standard_normal(shape), jnp.float32)
            for name, shape in shapes.items()
        }

    @parameterized.parameters(0.0, 0.3, 0.5, 1.0)
    def test_masks_are_ours(self, fraction):
        scores = jax.tree.map(jnp.abs, self.tree)
        wanted = reference.tensors(
            jax.tree.leaves(saliency.top_fraction_mask(scores, fraction))
        )
        ways = [reference.mask_by_sorting]
        ways += [reference.mask_by_kth_value] if fraction < 1 else []
        for way in ways:
            found = way(reference.tensors(jax.tree.leaves(scores)), fraction)
            for one, other in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(one, other)

    @parameterized.parameters(0.5, 0.9, 1.0)
    def test_bases_span_what_ours_span(self, energy):
        kernels = {name: self.tree[name] for name in "ab"}
        ours = subspace.svd_bases(kernels, energy).values()
        theirs = reference.bases(reference.tensors(list(kernels.values())), energy)
        for basis, (left, right), kernel in zip(ours, theirs, "ab", strict=True):
            if kernel == "b":  # PyTorch has dense kernels the other way round
                left, right = right, left
            for one, other in ((basis.left, left), (basis.right, right)):
                one, other = np.asarray(one), np.asarray(other)
                np.testing.assert_allclose(
                    one @ one.swapaxes(1, 2), other @ other.swapaxes(1, 2), atol=1e-4
                )

    def test_low_rank_finds_a_matrix_of_low_rank(self):
        rng = np.random.default_rng(0)
        matrix = rng.standard_normal((40, 3)) @ rng.standard_normal((3, 30))
        left, right = (
            np.asarray(x)
            for x in reference.low_rank_basis(
                reference.tensors([matrix.astype(np.float32).T])[0], 3
            )
        )
        inside = left @ left.T @ matrix @ right @ right.T
        np.testing.assert_allclose(inside, matrix, atol=1e-4)

    def test_networks_agree(self):
        ours = build("resnet18", 10, (32, 32, 3), width=4)
        params, model_state = ours.init(jax.random.key(0))
        theirs = reference.resnet18(4)
        weights = reference.tensors(list(in_torch_order(params)))
        for own, weight in zip(theirs.parameters(), weights, strict=True):
            own.data.copy_(weight)
        x = np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)
        wanted, _ = ours.apply(params, model_state, jnp.asarray(x), train=True)
        [turned] = reference.tensors([x.transpose(1, 2, 3, 0)])  # to NCHW
        found = theirs(turned).detach().numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-3)

    def test_a_step_moves_the_loss_down(self):
        rng = np.random.default_rng(0)
        images = rng.standard_normal((4, 32, 32, 3), np.float32)
        step = reference.training_step(4, images, np.arange(4), half=False)
        losses = [step() for _ in range(10)]
        self.assertLess(losses[-1], losses[0])


def in_torch_order(params):
    """Leaves of our ResNet-18 from input to output, as PyTorch's names run."""

    def convolution(kernel, norm):
        return [kernel["kernel"], norm["scale"], norm["bias"]]

    yield from convolution(params["stem"], params["norm"])
    blocks = params["blocks"]["layers"]
    for number in sorted(blocks, key=int):
        block = blocks[number]
        yield from convolution(block["conv1"], block["norm1"])
        yield from convolution(block["conv2"], block["norm2"])
        if "shortcut" in block:
            layers = block["shortcut"]["layers"]
            yield from convolution(layers["0"], layers["1"])
    yield from (params["dense"]["kernel"], params["dense"]["bias"])


if __name__ == "__main__":
    absltest.main()
