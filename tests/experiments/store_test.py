"""The folder of a study: nothing finished is lost, nothing wrong is read."""

import json
import pathlib
import tempfile
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from experiments.engine import checkpoints
from experiments.engine.checkpoints import StoreError
from experiments.engine.store import Store

ROW = {"method": "salun", "seed": 1, "status": "ok", "ua": 3.5}


class StoreTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name) / "study"

    def open(self, **config) -> Store:
        return Store(self.folder, {"seeds": 2} | config, extendable=("seeds",))

    def test_a_finished_run_is_there_again(self):
        tree = {"params": {"w": jnp.arange(3.0)}, "model_state": {}}
        with self.open() as kept:
            self.assertIsNone(kept.row("salun", 1))
            kept.finish(ROW, {"loss": np.arange(4.0)}, tree)
        with self.open() as again:
            self.assertEqual(again.row("salun", 1), ROW)
            np.testing.assert_array_equal(
                again.record("salun", 1)["loss"], np.arange(4.0)
            )
            chex.assert_trees_all_equal(again.checkpoint("salun", 1), tree)
        results = json.loads((self.folder / "results.json").read_text())
        self.assertEqual(results["config"], {"seeds": 2})
        self.assertIn("jax", results["environment"])

    def test_progress_is_kept_until_the_run_is_finished(self):
        others = jax.random.key(3), jnp.ones((), jnp.complex64), jnp.zeros((0, 2))
        state = (jnp.arange(2, dtype=jnp.bfloat16), {"b": jnp.int32(3)}, None, others)
        with self.open() as kept:
            for epoch in (1, 2):
                kept.save_progress("salun", 1, epoch, state, {"seconds": 1.5})
            found = kept.load_progress("salun", 1, lambda: state)
            assert found is not None
            chex.assert_trees_all_equal(found[0], state)
            self.assertEqual(found[1], {"seconds": 1.5, "epoch": 2})
            self.assertIsNone(kept.load_progress("salun", 0, lambda: state))
            kept.finish(ROW, {}, None)
            self.assertIsNone(kept.load_progress("salun", 1, lambda: state))

    def test_a_kill_between_checkpoint_and_notes_leaves_the_older_progress(self):
        state = jnp.arange(3)
        with self.open() as kept:
            kept.save_progress("salun", 1, 1, state, {})
            with (
                mock.patch.object(Store, "_save", side_effect=KeyboardInterrupt),
                self.assertRaises(KeyboardInterrupt),
            ):
                kept.save_progress("salun", 1, 2, state + 1, {})
            found = kept.load_progress("salun", 1, lambda: state)
            assert found is not None
            self.assertEqual(found[1]["epoch"], 1)
            np.testing.assert_array_equal(found[0], state)

    def test_a_damaged_progress_is_begun_anew(self):
        with self.open() as kept:
            kept.save_progress("salun", 1, 1, jnp.arange(3), {})
            for path in self.folder.glob("progress/*/epoch_1/**/*"):
                if path.is_file():
                    path.write_bytes(path.read_bytes()[:3])
            self.assertIsNone(kept.load_progress("salun", 1, lambda: jnp.arange(3)))

    def test_what_a_kill_left_is_removed_and_nothing_else(self):
        with self.open() as kept:
            kept.finish(ROW, {}, {"w": jnp.arange(3)})
            kept.save_progress("semu", 1, 2, jnp.arange(3), {})
        files = sorted(self.folder.rglob("*"))
        mine = self.folder / ".notes.tmp"
        mine.touch()
        for name in (
            ".results.json.7.tmp",
            ".report.html.7.tmp",
            "plots/.gap.png.7.tmp",
            "records/.semu-1.npz.7.tmp",
            "checkpoints/semu/seed_1.orbax-checkpoint-tmp/d",
            "progress/salun-1/epoch_2/d",  # its row was written just before the kill
        ):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).touch()
        with self.open():
            pass
        found = {path for path in self.folder.rglob("*") if path.is_file()}
        self.assertEqual(found, {mine, *(path for path in files if path.is_file())})

    def test_no_row_makes_it_remove_a_folder_elsewhere(self):
        for name in ("x-1", "progress"):
            (self.folder / name).mkdir(parents=True)
        rows = json.dumps({"rows": [ROW | {"method": "../x"}]})
        (self.folder / "results.json").write_text(rows)
        with self.open():
            self.assertTrue((self.folder / "x-1").is_dir())

    def test_refuses_a_busy_folder(self):
        with self.open(), self.assertRaisesRegex(StoreError, "Another run is busy"):
            self.open()
        self.open().__exit__()

    def test_refuses_another_configuration_and_names_what_differs(self):
        with self.open(model="c", density=0.5):
            pass  # nothing was kept, so nothing is held to it
        with self.open(model="a", density=0.5) as kept:
            kept.finish(ROW, {}, None)
        with self.assertRaisesRegex(StoreError, r"model='a' there, 'b' now\)"):
            self.open(model="b", density=0.5)
        with self.open(model="a", density=0.5, seeds=9):
            pass

    def test_names_fields_of_groups_and_not_all_of_many(self):
        recipes = {f"m{i}": {"density": 0.5, "epochs": 3} for i in range(9)}
        with self.open(recipes=recipes) as kept:
            kept.finish(ROW, {}, None)
        other = {name: recipe | {"density": 0.1} for name, recipe in recipes.items()}
        with self.assertRaisesRegex(
            StoreError, r"m0\.density=0.5 there, 0.1 now; .*; 5 m"
        ):
            self.open(recipes=other)

    @parameterized.parameters("results.json", "config.json")
    def test_refuses_a_damaged_file_and_leaves_it(self, name):
        with self.open() as kept:
            kept.finish(ROW, {}, None)
        path = self.folder / name
        path.write_text('{"rows": [')
        with self.assertRaisesRegex(StoreError, f"{name} cannot be read"):
            self.open()
        self.assertEqual(path.read_text(), '{"rows": [')

    def test_refuses_results_without_rows(self):
        with self.open():
            pass
        (self.folder / "results.json").write_text('{"rows": [{"seed": 1}]}')
        with self.assertRaisesRegex(StoreError, "no list of rows"):
            self.open()

    def test_refuses_a_folder_that_cannot_be(self):
        self.folder.write_text("a file")
        with self.assertRaisesRegex(StoreError, "Cannot write"):
            self.open()

    def test_a_missing_or_damaged_checkpoint_is_one_line(self):
        with self.assertRaisesRegex(ValueError, "not a readable checkpoint"):
            checkpoints.load_checkpoint(self.folder / "nothing")


if __name__ == "__main__":
    absltest.main()
