"""An index over studies, and the cards of unlearned models, on invented rows."""

import hashlib
import html.parser
import json
import pathlib
import re
import tempfile
import types
from typing import Any

import numpy as np
import yaml
from absl.testing import absltest

from experiments import reports
from experiments.engine import cards
from experiments.engine.store import Store, StoreError
from experiments.engine.task import Page
from experiments.reporting import index, report, summary
from tests import command_line

COLUMNS = (
    summary.Column("ua", "UA", "%", 2),
    summary.Column("gap", "Gap", "points", 2, False),
)
GAPS = {"original": 4.0, "retrain": 0.0, "retrain_again": 1.0}


def rows(**gaps: float) -> list[dict[str, Any]]:
    """Two seeds a method; the gap of the second is larger by 0.2."""
    return [
        {"method": name, "seed": s, "status": "ok", "ua": 5.0, "gap": gap + 0.2 * s}
        for name, gap in (GAPS | gaps).items()
        for s in (0, 1)
    ]


class Cells(html.parser.HTMLParser):
    """Texts of a page's table rows, and where its links lead."""

    def __init__(self, text: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.links: set[str | None] = set()
        self._open = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.links |= {value for key, value in attrs if key == "href"}
        if tag == "tr":
            self.rows.append([])
        self._open = tag in ("td", "th") or (self._open and tag != "tr")
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data):
        if self._open:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data}".strip()


class IndexTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

    def study(self, name: str, columns=COLUMNS, **gaps: float) -> None:
        results = {"config": {"command": ["run", name]}, "environment": {}}
        results["rows"] = rows(**gaps)
        report.write(
            self.folder / name,
            results,
            columns,
            title=f"Of {name}",
            description="What <it> is.",
        )

    def test_studies_stand_side_by_side_with_their_links(self):
        self.study("deep/b & c", salun=0.5, semu=3.0)
        self.study("a", salun=2.0)
        code, out, err = command_line.run(reports.main, "--results", str(self.folder))
        self.assertEqual((code, err), (0, ""))
        self.assertEqual(out, f"Index of 2: {self.folder / 'index.html'}\n")
        text = (self.folder / "index.html").read_text()
        page = Cells(text)
        found = {row[0].split("  ")[0]: row[1:] for row in page.rows[:7]}
        self.assertEqual(found["Gap points"], ["a", "deep/b & c"])
        # Means of x and x + 0.2; half-widths are t(0.975, 1) · 0.1 = 1.27.
        self.assertEqual(found["Salun"], ["2.10 ± 1.27", "✓ 0.60 ± 1.27"])
        self.assertEqual(found["Semu"], ["", "3.10 ± 1.27"])
        self.assertEqual(page.links, {"a/report.html", "deep/b%20%26%20c/report.html"})
        self.assertIn("What &lt;it&gt; is.", text)
        self.assertIn("run &#39;deep/b &amp; c&#39;", text)

    def test_what_reports_leave_comes_back_whole(self):
        self.study("a", salun=2.0)
        [study] = index.find(self.folder)
        expected = summary.summarise(rows(salun=2.0), COLUMNS)
        self.assertEqual(study.summary, expected)

    def test_studies_of_other_columns_have_a_table_of_their_own(self):
        self.study("a", salun=2.0)
        self.study("b", (summary.Column("gap", "Distance", "", 1, False),), salun=2.0)
        tables = [index.compare([study]) for study in index.find(self.folder)]
        labels = [[table.column.label for table in each] for each in tables]
        self.assertEqual(labels, [["Gap", "UA"], ["Distance"]])
        index.write(self.folder, index.find(self.folder))
        heads = re.findall(r"<h2>(.*?)</h2>", (self.folder / "index.html").read_text())
        self.assertEqual(heads, ["Gap", "Distance"])

    def test_no_study_and_a_damaged_one_are_lines(self):
        words = "--results", str(self.folder)
        code, out, err = command_line.run(reports.main, *words)
        self.assertEqual((code, out, err.count("\n")), (2, "", 1))
        self.assertIn("run a study's command again", err)
        self.study("a", salun=2.0)
        path = self.folder / "a" / "summary.json"
        for text in ("{", "[]", "{}", path.read_text().replace('"mean"', '"median"')):
            path.write_text(text)
            code, out, err = command_line.run(reports.main, *words)
            self.assertEqual((code, out, err.count("\n")), (2, "", 1), err)
            self.assertIn(str(path), err)


class CardsTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        note = report.MethodNote("SalUn", "arXiv:2310.12508", "Salient weights.")
        self.task: Any = types.SimpleNamespace(notes={"salun": note})
        config = {
            "command": ["python", "-m", "experiments.x", "--out", "a b"],
            "input": {"forget": "abc"},
            "recipes": {"salun": {"density": 0.5}},
        }
        self.store = self.enterContext(Store(folder / "study", config))
        for row in rows(salun=3.0):
            tree = {"params": {"w": np.ones(2)}, "model_state": {}}
            self.store.finish(row, {}, tree)
        self.list = "# A remark.\n3\n14\n"
        for seed in (0, 1):
            self.store.keep(f"forgotten/seed_{seed}.txt", self.list)

    def write(self) -> str:
        estimates = summary.summarise(self.store.rows, COLUMNS)
        page = Page("A title", "A description.", (), "")
        cards.write(self.store, self.task, page, estimates)
        path = self.store.checkpoint_path("salun", 1).with_suffix(".md")
        return path.read_text()

    def test_machines_read_what_was_forgotten_by_its_hash(self):
        _, front, _ = self.write().split("---\n")
        facts = yaml.safe_load(front)
        digest = hashlib.sha256(self.list.encode()).hexdigest()
        self.assertEqual(facts["forgotten"], {"examples": 2, "sha256": digest})
        self.assertEqual((facts["method"], facts["seed"]), ("salun", 1))
        self.assertEqual(facts["recipe"], {"density": 0.5})
        gap = facts["numbers"]["gap"]
        self.assertAlmostEqual(gap["this_model"], 3.2)
        self.assertAlmostEqual(gap["mean"], 3.1)
        self.assertAlmostEqual(gap["half_width"], 1.2706, 3)
        self.assertIn("jax", facts["versions"])
        self.assertEqual(json.loads(front.splitlines()[0].split(": ", 1)[1]), "mujax")

    def test_people_read_numbers_and_limits(self):
        text = self.write()
        self.assertIn("| Gap (points) | 3.20 | 3.10 ± 1.27 | 0.10 |", text)
        self.assertIn("3.10, is above the noise floor of 1.10", text)
        self.assertIn("python -m experiments.x --out 'a b'", text)
        self.assertNotIn("One seed", text)

    def test_a_list_that_is_gone_is_told(self):
        (self.store.folder / "forgotten" / "seed_1.txt").unlink()
        with self.assertRaisesRegex(StoreError, "seed_1.txt cannot be read.*Put it"):
            self.write()

    def test_one_seed_and_baselines(self):
        self.store.rows = [row for row in self.store.rows if row["seed"] == 1]
        text = self.write()
        self.assertIn("One seed", text)
        self.assertIn("| UA (%) | 5.00 | 5.00 | 5.00 |", text)
        cards_there = sorted(self.store.folder.glob("checkpoints/*/*.md"))
        self.assertEqual([path.parent.name for path in cards_there], ["salun"])


if __name__ == "__main__":
    absltest.main()
