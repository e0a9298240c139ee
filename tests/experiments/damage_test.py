"""Folders that something else has damaged, and disks that are full."""

import contextlib
import errno
import io
import json
import pathlib
import shutil
import tempfile
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl.testing import absltest, parameterized

from experiments.classification import __main__ as classification
from experiments.engine import bench, checkpoints, store, study
from experiments.reporting import report

pytestmark = pytest.mark.slow
FLAGS = (
    *("--model", "tests.experiments.kill_test:Tiny", "--train.epochs", "1"),
    *("--recipe.epochs", "1", "--seeds", "1", "--cache", "None"),
)
FULL = OSError(errno.ENOSPC, "No space left on device")


class DamageTest(parameterized.TestCase):
    whole: pathlib.Path

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.whole = pathlib.Path(folder.name) / "whole"
        code, _, err = run(cls.whole)
        assert code == 0, err

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.out = pathlib.Path(folder.name) / "out"
        shutil.copytree(self.whole, self.out)

    def refused(self, code, pattern, *flags, out=None):
        """Runs; the exit code, a line or two, and no row lost."""
        before = self.rows()
        got, printed, err = run(out or self.out, *flags)
        self.assertEqual(got, code, err)
        said = [line for line in err.splitlines() if ", seed 0: UA" not in line]
        self.assertBetween(len(said), 1, 2, err)
        self.assertRegex(said[0], rf"^experiments\.classification: .*{pattern}")
        self.assertLess(len(err), 1000)
        self.assertNotIn("Traceback", err + printed)
        if before is not None:
            self.assertEqual((self.rows() or [])[: len(before)], before)

    def rows(self):
        """The rows, or None where the file is no longer results."""
        try:
            rows = json.loads((self.out / "results.json").read_text())["rows"]
            return rows if isinstance(rows, list) else None
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def drop_row(self, method):
        """Removes a row by hand, as the messages say."""
        path = self.out / "results.json"
        results = json.loads(path.read_text())
        results["rows"] = [row for row in results["rows"] if row["method"] != method]
        path.write_text(json.dumps(results))

    def assert_whole(self):
        """The study is as if nothing had happened to it."""
        with mock.patch.object(bench.report, "write"):
            code, _, err = run(self.out)
        self.assertEqual(code, 0, err)
        self.assertCountEqual(timeless(self.rows()), timeless(rows_of(self.whole)))
        for name in ("retrain", "retrain_again", "original", "finetune"):
            path = pathlib.Path("checkpoints", name, "seed_0")
            jax.tree.map(
                np.testing.assert_array_equal,
                checkpoints.load_checkpoint(self.out / path),
                checkpoints.load_checkpoint(self.whole / path),
            )

    @parameterized.named_parameters(
        ("gone", lambda path: shutil.rmtree(path)),
        ("empty", lambda path: spoil(path, lambda raw: b"")),
        ("truncated", lambda path: spoil(path, lambda raw: raw[: len(raw) // 2])),
        ("garbage", lambda path: spoil(path, lambda raw: b"\x93PNG" * 99)),
        ("a_file", lambda path: (shutil.rmtree(path), path.write_text("?"))),
        ("one_wrong_byte", lambda path: spoil(path, flip, largest=True)),
    )
    def test_an_original_that_cannot_be_read_names_its_path_and_a_way_out(self, damage):
        self.drop_row("finetune")
        damage(self.out / "checkpoints" / "original" / "seed_0")
        self.refused(
            2, r"original/seed_0 is not a .*remove the row of original, seed 0"
        )

    def test_the_way_out_brings_the_same_original(self):
        self.drop_row("finetune")
        shutil.rmtree(self.out / "checkpoints" / "original")
        self.drop_row("original")
        self.assert_whole()

    def test_methods_that_are_finished_do_not_need_the_original(self):
        shutil.rmtree(self.out / "checkpoints")
        with mock.patch.object(study, "execute", side_effect=AssertionError):
            self.assertEqual(run(self.out)[0], 0)

    @parameterized.named_parameters(
        ("empty", lambda path: path.write_bytes(b"")),
        ("truncated", lambda path: path.write_bytes(path.read_bytes()[:300])),
        ("garbage", lambda path: path.write_bytes(b"PK\3\4" * 99)),
        ("objects", lambda path: np.savez(path, loss=np.array([{}]))),
    )
    def test_a_record_that_cannot_be_read(self, damage):
        path = self.out / "records" / "finetune-0.npz"
        damage(path)
        page = (self.out / "report.html").read_bytes()
        self.refused(2, r"records/finetune-0\.npz cannot be read.*remove the row of")
        self.assertEqual((self.out / "report.html").read_bytes(), page)

    def test_rows_alone_are_a_table(self):
        for part in ("records", "checkpoints"):
            shutil.rmtree(self.out / part)
        with mock.patch.object(study, "execute", side_effect=AssertionError):
            code, out, err = run(self.out)
        self.assertEqual(code, 0, err)
        self.assertIn("FT", out)

    @parameterized.parameters(
        ("results.json", b"", "cannot be read"),
        ("results.json", b'{"rows": [{"method": "salun"', "cannot be read"),
        ("results.json", b"\xff\xfe\x00", "cannot be read"),
        ("results.json", b"[" * 100_000, "cannot be read"),
        ("results.json", b"[]", "holds a list"),
        ("results.json", b"null", "holds a NoneType"),
        ("results.json", b"{}", "no list of rows"),
        ("results.json", b'{"rows": {}}', "no list of rows"),
        ("results.json", b'{"rows": [7]}', "no list of rows"),
        ("results.json", b'{"rows": [{"method": "a", "seed": 0}]}', "no list of rows"),
        ("config.json", b'{"seeds"', "cannot be read"),
        ("config.json", b"[]", "holds a list"),
    )
    def test_json_that_is_not_a_study(self, name, content, words):
        path = self.out / name
        path.write_bytes(content)
        self.refused(2, f"{name} .*{words}.*away")
        self.assertEqual(path.read_bytes(), content)

    def test_without_its_configuration_the_folder_is_still_of_its_study(self):
        (self.out / "config.json").unlink()
        self.refused(2, "another configuration", "--recipe.momentum", "0.25")

    def test_progress_without_half_its_notes_is_begun_anew(self):
        self.drop_row("finetune")
        kept = {"w": np.zeros(3)}, {"seconds": 1.5, "curves": [{}], "epoch": 2}
        with mock.patch.object(store.Store, "load_progress", return_value=kept):
            self.assert_whole()

    @parameterized.parameters(
        (2, ""), (2, ".lock"), (1, "checkpoints/finetune"), (2, "records"), (1, "plots")
    )
    def test_a_file_where_a_folder_should_be(self, code, name):
        self.drop_row("finetune")
        path = self.out / name
        if name == ".lock":
            path.unlink()
            path.mkdir()
        else:
            shutil.rmtree(path)
            path.write_text("a file")
        with self.trained():
            self.refused(code, "" if name else "Cannot write to .* another --out")

    def test_a_folder_below_a_file(self):
        out = self.out / "results.json" / "out"
        self.refused(2, "Cannot write to .*Not a directory.*another --out", out=out)

    @parameterized.named_parameters(
        ("rows", store, "write_atomically", FULL),
        ("record", np, "savez_compressed", FULL),
        ("asked_first", shutil, "disk_usage", None),
        ("report", report, "write_atomically", FULL),
        (
            "checkpoint",
            ocp.StandardCheckpointer,
            "save",
            ValueError("RESOURCE_EXHAUSTED: No space left on device [code='28']\nmore"),
        ),
    )
    def test_a_full_disk_loses_nothing(self, module, name, error):
        self.drop_row("finetune")
        broken = mock.Mock(side_effect=error)
        broken.return_value.free = 1000
        with self.trained():
            with mock.patch.object(module, name, broken):
                self.refused(1, "No space left on device.*same command")
            self.assert_whole()

    def test_a_disk_that_fills_up_while_a_file_is_written(self):
        self.drop_row("finetune")
        write = pathlib.Path.write_bytes

        def half(path, data):
            write(path, data[: len(data) // 2])
            raise FULL

        with self.trained():
            with mock.patch.object(pathlib.Path, "write_bytes", half):
                self.refused(1, "No space left on device.*same command")
            self.assertEqual(list(self.out.rglob(".*.tmp")), [])
            self.assert_whole()

    @contextlib.contextmanager
    def trained(self):
        """Lets finetuning end at once with the parameters of the whole study."""
        with store.Store(
            self.whole, json.loads((self.whole / "config.json").read_text())
        ) as kept:
            tree, record = kept.checkpoint("finetune", 0), kept.record("finetune", 0)
        curves = {k: v for k, v in record.items() if not k.startswith("confidence")}
        result = study.Result(
            **tree, seconds=1.0, trainable_fraction=1.0, curves=curves
        )
        with mock.patch.object(study, "execute", return_value=[result]):
            yield


def run(out, *flags):
    """Exit code, standard output and standard error of the main job."""
    said, err = io.StringIO(), io.StringIO()
    flags = (*FLAGS, "--methods", "finetune", "--out", str(out), *flags)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(err):
        code = classification.main(flags)
    return code, said.getvalue(), err.getvalue()


def rows_of(out):
    return json.loads((out / "results.json").read_text())["rows"]


def timeless(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def spoil(folder, change, largest=False):
    """Changes the bytes of a checkpoint's files, or of its largest."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    if largest:
        found = [max(found, key=lambda path: path.stat().st_size)]
    for path in found:
        path.write_bytes(change(path.read_bytes()))


def flip(raw):
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 16]) + raw[middle + 1 :]


if __name__ == "__main__":
    absltest.main()
