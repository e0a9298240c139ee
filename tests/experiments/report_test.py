"""The report: its numbers, its tables, its page and its plots, on invented rows."""

import doctest
import html.parser
import io
import json
import pathlib
import tempfile
from unittest import mock

import matplotlib
import numpy as np
import rich.console
import scipy.stats
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from experiments import files
from experiments.reporting import drawing, figures, report, tables
from experiments.reporting import summary as summaries

COLUMNS = (
    summaries.Column("ua", "UA", "%", 2, description="100 − accuracy on forget"),
    summaries.Column("ra", "RA", "%", 2),
    summaries.Column("ta", "TA", "%", 2),
    summaries.Column("mia", "MIA", "%", 2),
    summaries.Column("gap", "Gap", "%", 2, False, "mean distance to Retrain"),
    summaries.Column("tow", "ToW", "", 3, False),
    summaries.Column("seconds", "Seconds", "", 1, False),
    summaries.Column("trainable_fraction", "Trainable", "", 3, False),
)
BASELINES = ("original", "retrain", "retrain_again")
LOSER = "gradient_ascent"


def invent(count: int, seeds: int, rng: np.random.Generator) -> list[dict]:
    """Rows of ``count`` methods; the fourth lies far off and diverges at seed 1."""
    names = [*BASELINES, LOSER, *(f"method_{i}" for i in range(count))][:count]
    base = rng.normal([5, 99, 95, 10], 0.5, (seeds, 4))
    rows = []
    for name in names:
        shift = 30.0 if name == LOSER else 0.0 if name in BASELINES[1:] else 1.0
        for seed in range(seeds):
            noise = 0.0 if name == "retrain" else rng.normal(shift, 0.3, 4)
            values = base[seed] + noise
            row = dict(zip(("ua", "ra", "ta", "mia"), values, strict=True))
            row |= {
                "gap": float(np.abs(values - base[seed]).mean()),
                "tow": 0.9,
                "seconds": float(rng.uniform(1, 9)),
                "trainable_fraction": 0.5,
            }
            status = "diverged" if name == LOSER and seed == 1 else "ok"
            rows.append({"method": name, "seed": seed, "status": status, **row})
    return rows


def gaps(**values: float) -> summaries.Summary:
    """A summary of one seed that has the gaps alone."""
    rows = [{"method": m, "seed": 0, "gap": gap} for m, gap in values.items()]
    return summaries.summarise(rows, COLUMNS[4:5])


class SummariseTest(parameterized.TestCase):
    def assert_estimate(self, estimate, mean, half_width):
        shown = np.array([estimate.mean, estimate.half_width], float)
        np.testing.assert_allclose(shown, (mean, half_width), rtol=1e-9)

    @parameterized.product(seeds=(2, 5, 10), level=(0.5, 0.95))
    def test_matches_scipy_interval_and_paired_differences(self, seeds, level):
        rows = invent(6, seeds, np.random.default_rng(seeds))
        summary = summaries.summarise(rows, COLUMNS, level=level)
        for entry in summary.methods:
            kept = [
                r for r in rows if r["method"] == entry.method and r["status"] == "ok"
            ]
            if len(kept) < 2:
                continue
            of = {r["seed"]: r for r in rows if r["method"] == "retrain"}
            for key in ("ua", "seconds"):
                x = np.array([r[key] for r in kept])
                sem = np.sqrt(((x - x.mean()) ** 2).sum() / (len(x) - 1) / len(x))
                low, high = scipy.stats.t.interval(level, len(x) - 1, x.mean(), sem)
                self.assert_estimate(entry.values[key], x.mean(), (high - low) / 2)
                if entry.method == "retrain":
                    self.assertEmpty(entry.differences)
                    continue
                d = np.array([r[key] - of[r["seed"]][key] for r in kept])
                low, high = scipy.stats.ttest_1samp(d, 0).confidence_interval(level)
                paired = entry.differences[key]
                self.assert_estimate(paired, d.mean(), (high - low) / 2)

    def test_pairs_only_the_seeds_that_both_have(self):
        rows = [{"method": "retrain", "seed": s, "ua": x} for s, x in ((0, 1), (1, 2))]
        rows += [{"method": "salun", "seed": s, "ua": x} for s, x in ((1, 5), (2, 90))]
        paired = summaries.summarise(rows, COLUMNS[:1]).methods[1].differences["ua"]
        self.assertEqual(paired, summaries.Estimate(3.0, None, 1))

    def test_one_seed_has_no_interval(self):
        summary = summaries.summarise(invent(3, 1, np.random.default_rng(0)), COLUMNS)
        for entry in summary.methods:
            for estimate in (*entry.values.values(), *entry.differences.values()):
                self.assertEqual((estimate.half_width, estimate.count), (None, 1))
        self.assertNotIn("±", tables.markdown_table(summary))

    def test_leaves_out_what_diverged_is_missing_or_not_finite(self):
        values = (1.0, float("nan"), float("inf"), None, "broken", 3.0)
        rows = [{"method": "a", "seed": s, "ua": x} for s, x in enumerate(values)]
        rows += [{"method": "a", "seed": 9}]
        rows += [{"method": "a", "seed": 7, "ua": 50.0, "status": "diverged"}]
        rows += [{"method": "b", "seed": 0, "ua": 5.0, "status": "diverged"}]
        a, b = summaries.summarise(rows, COLUMNS[:1]).methods
        self.assertEqual((a.values["ua"].mean, a.values["ua"].count), (2.0, 2))
        self.assertEqual((a.seeds, a.diverged), (7, 1))
        self.assertEqual(b.values["ua"], summaries.Estimate(None, None, 0))
        self.assertEqual((b.seeds, b.diverged), (0, 1))

    def test_last_row_of_a_seed_stands(self):
        rows = [{"method": "a", "seed": 0, "ua": x} for x in (1.0, 2.0)]
        entry = summaries.summarise(rows, COLUMNS[:1]).methods[0]
        self.assertEqual(entry.values["ua"], summaries.Estimate(2.0, None, 1))

    def test_baselines_first_then_first_appearance(self):
        names = ("semu", "retrain_again", "retrain", "a", "original", "semu")
        rows = [{"method": m, "seed": i} for i, m in enumerate(names)]
        summary = summaries.summarise(rows, COLUMNS)
        self.assertEqual([*summary.method_labels], [*BASELINES, "semu", "a"])

    @parameterized.parameters(0.0, 1.0, 95)
    def test_refuses_level(self, level):
        with self.assertRaisesRegex(ValueError, f"level={level} in"):
            summaries.summarise([], COLUMNS, level=level)

    def test_ranks_no_baseline_and_nothing_that_diverged(self):
        rows = [
            {"method": m, "seed": 0, "gap": gap}
            for m, gap in {"original": 0.1, "retrain": 0, "retrain_again": 0.5}.items()
        ]
        rows += [
            {"method": "a", "seed": 0, "gap": 0.5},
            {"method": "b", "seed": 0, "gap": 0.51},
            {"method": "c", "seed": 0, "gap": 0.2},
            {"method": "c", "seed": 1, "status": "diverged"},
        ]
        summary = summaries.summarise(rows, COLUMNS)
        self.assertEqual([m.method for _, m in summary.ranking], ["a", "b"])
        self.assertEqual([m.method for m in summary.within_floor], ["a"])
        self.assertEqual([m.method for m in gaps(b=2.0, a=1.0).best], ["a"])


class TablesTest(parameterized.TestCase):
    def test_markdown_golden(self):
        rows = []
        for seed, retrain in enumerate((4.0, 6.0)):
            ua = {"retrain": retrain, "retrain_again": 5.0, "salun": retrain - 1}
            gap = {"retrain": 0.0, "retrain_again": 1.0, "salun": 0.5}
            rows += [
                {"method": m, "seed": seed, "ua": ua[m], "gap": gap[m]} for m in ua
            ]
        rows.append({"method": "ga", "seed": 0, "ua": 1e9, "status": "diverged"})
        columns = (COLUMNS[0], COLUMNS[4])
        labels = {"salun": "SalUn|*", "ga": "GA"}
        summary = summaries.summarise(rows, columns, labels=labels)
        half = scipy.stats.t.ppf(0.975, 1)  # of (4, 6): s / √n = 1
        expected = f"""\
| Method                      |                   UA |    Gap |
| :-------------------------- | -------------------: | -----: |
| Retrain                     |         5.00 ± {half:.2f} |   0.00 |
| Retrain again (noise floor) |  5.00 ± 0.00 (0.00)  |   1.00 |
| **SalUn\\|\\***               | 4.00 ± {half:.2f} (−1.00) | ✓ 0.50 |
| GA, diverged (1 of 1)       |                    — |      — |
"""
        table = tables.markdown_table(summary)
        body, caption = table.split("\n\n")
        for line, wanted in zip(body.splitlines(), expected.splitlines(), strict=True):
            if "---" not in line:  # columns of other widths than above
                self.assertEqual(line.split(), wanted.split())
        self.assertLen({len(line) for line in body.splitlines()}, 1)
        for words in ("95 % interval", "2 seeds", "mean distance to Retrain", "✓: at"):
            self.assertIn(words, caption)
        self.assertNotIn("(−", tables.markdown_table(summary, differences=False))

    def test_rich_table_fits_100_columns(self):
        rows = invent(16, 5, np.random.default_rng(0))
        summary = summaries.summarise(rows, COLUMNS)
        console = rich.console.Console(file=io.StringIO(), width=100)
        console.print(tables.rich_table(summary))
        text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
        self.assertNotIn("…", text)  # rich writes it where it cuts
        for entry in summary.methods:
            gap = entry.values["gap"]
            shown = "0.00" if entry.method == "retrain" else f"{gap.half_width:.2f}"
            self.assertIn(shown, text)

    def test_a_metric_with_an_error_of_its_own_says_so(self):
        column = summaries.Column("mia", "MIA", "%", 2, error="mia_error")
        errors = {"retrain": 0.25, "salun": 0.5, "ga": 2.125, "old": None}
        rows = [
            {"method": m, "seed": s, "mia": 5.0, "mia_error": e and e * (1 - s / 2)}
            for m, e in errors.items()
            for s in (1, 0)
        ]
        summary = summaries.summarise(rows, [column])
        caption = tables.caption(summary)
        self.assertIn("MIA of one run has a standard error of up to 0.50, ", caption)
        self.assertIn("and of more than a point for Ga (2.12).", caption)
        self.assertEqual(tables.run_number(rows[2], column), "5.00 ± 0.25")
        self.assertEqual(tables.run_number(rows[-1], column), "5.00")
        small = summaries.summarise(rows[:4], [column])
        self.assertTrue(tables.caption(small).endswith("error of up to 0.50."))
        old = summaries.summarise(rows[6:], [column])
        self.assertNotIn("standard error", tables.caption(old))

    def test_rich_table_grows_from_nothing(self):
        rows = invent(6, 2, np.random.default_rng(0))
        names = [*dict.fromkeys(r["method"] for r in rows), "[bold]odd[/]"]
        for n in range(len(rows) + 1):
            summary = summaries.summarise(rows[:n], COLUMNS)
            table = tables.rich_table(summary, pending=names)
            self.assertEqual(table.row_count, len(names))
            console = rich.console.Console(file=io.StringIO(), width=100)
            console.print(table)
            text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
            self.assertIn("[bold]odd[/]", text)

    def test_zero_interval_is_dropped_for_constants_alone(self):
        rows = [
            {"method": "retrain", "seed": s, "ra": 100.0, "trainable_fraction": 1}
            for s in range(3)
        ]
        table = tables.markdown_table(
            summaries.summarise(rows, [COLUMNS[1], COLUMNS[-1]])
        )
        self.assertIn("| 100.00 ± 0.00 |     1.000 |", table)

    @parameterized.named_parameters(
        ("none", {"retrain": 0.0}, "No method has a gap to Retrain yet."),
        ("no_floor", {"a": 1.0}, "without a second Retrain the noise floor is unknown"),
        (
            "within",
            {"retrain_again": 0.5, "a": 0.4, "b": 0.5, "c": 9.0},
            "A and B are within the noise floor, the gap of 0.50 between two",
        ),
        (
            "none_within",
            {"retrain_again": 0.5, "a": 0.75, "c": 9.0},
            "A comes closest, at 0.75, 1.5 times that. The largest gap is 9.00, of C.",
        ),
        (
            "original",
            {"original": 2.0, "retrain_again": 0.5, "a": 0.75},
            "Original, which unlearned nothing, has 2.00.",
        ),
        (
            "many",
            {"retrain_again": 0.9} | {c: 0.1 for c in "abcdefg"},
            "A, B, C, D and 3 more are within",
        ),
    )
    def test_answer(self, values, expected):
        self.assertIn(expected, tables.answer(gaps(**values)))

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(
            st.fixed_dictionaries(
                {
                    "method": st.sampled_from([*BASELINES, "a", "b|\n"]),
                    "seed": st.integers(0, 3),
                    "status": st.sampled_from(["ok", "diverged"]),
                },
                optional={c.key: st.floats() | st.none() for c in COLUMNS},
            )
        )
    )
    def test_no_number_breaks_a_table(self, rows):
        summary = summaries.summarise(rows, COLUMNS)
        text = tables.markdown_table(summary) + tables.answer(summary)
        self.assertNotRegex(text, r"\b(nan|inf)\b")
        body = tables.markdown_table(summary).split("\n\n")[0].splitlines()
        self.assertLen(body, 2 + len({r["method"] for r in rows}))
        tables.rich_table(summary)
        json.loads(files.to_json(rows), parse_constant=self.fail)


class Links(html.parser.HTMLParser):
    """Collects a page's tags, and the addresses that a browser would load."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


class WriteTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.out = pathlib.Path(folder.name) / "run" / "one"

    def write(self, rows, config=None, environment=None, **overrides):
        results = {
            "config": config or {},
            "environment": environment or {},
            "rows": rows,
        }
        arguments = {"title": "Title", "description": "Text", **overrides}
        report.write(self.out, results, COLUMNS, **arguments)
        return (self.out / "report.html").read_text()

    def test_leaves_a_self_contained_page(self):
        rows = invent(6, 3, np.random.default_rng(0))
        summary = summaries.summarise(rows, COLUMNS)
        plot = report.Figure(
            "gap", "The gap", "How far", lambda: figures.gap_chart(summary)
        )
        page = self.write(
            rows,
            {"command": ["python", "-m", "x", "--out", "a b"], "lr": float("nan")},
            {"jax": "0.10.2"},
            figures=[plot],
            methods={
                "method_0": report.MethodNote("Four", "arXiv 2310.12508", "Does it."),
                "method_1": report.MethodNote(
                    "Five", "https://x.org/p", "Does it too."
                ),
                "absent": report.MethodNote("Absent", "", "Never ran."),
            },
            loading="params = load(path)",
        )
        files = {str(p.relative_to(self.out)) for p in self.out.rglob("*.*")}
        wanted = {"table.md", "report.html", "plots/gap.png", "summary.json"}
        self.assertEqual(files, wanted)
        tags = Links(page)
        self.assertEqual(
            [a["href"] for a in tags.all("a")],
            ["https://arxiv.org/abs/2310.12508", "https://x.org/p"],
        )
        for tag, attrs in tags.tags:
            self.assertNotIn(tag, ("script", "link", "iframe", "object", "base"))
            if "src" in attrs:
                self.assertStartsWith(attrs["src"], "data:image/png;base64,")
        self.assertNotRegex(page, r"url\(|@import")
        self.assertIn("The gap", tags.all("img")[0]["alt"] or "")
        self.assertTrue(all(th.get("scope") for th in tags.all("th")))
        for text in (
            "python -m x --out &#39;a b&#39;",
            "&#34;lr&#34;: null",
            "0.10.2",
            "params = load(path)",
            "diverged (1 of 3)",
            "noise floor",
            tables.answer(summary).split(",")[0].split(" is ")[-1],
        ):
            self.assertIn(text, page)
        self.assertNotIn("Never ran.", page)

    def test_escapes_hostile_text(self):
        bad = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
        page = self.write(
            [{"method": bad, "seed": bad, "ua": bad, "status": bad}],
            {bad: bad, "command": bad},
            {bad: bad},
            title=bad,
            description=bad,
            loading=bad,
            figures=[report.Figure("a", bad, bad, lambda: Figure((1, 1)))],
            methods={bad: report.MethodNote(bad, "javascript:alert(1)", bad)},
        )
        tags = Links(page)
        self.assertEmpty(tags.all("script"))
        self.assertEmpty(tags.all("a"))
        self.assertLen(tags.all("img"), 1)
        self.assertNotIn("onerror", {k for _, attrs in tags.tags for k in attrs})

    def test_writes_with_no_rows_at_all(self):
        self.assertIn("No method has a gap", self.write([]))

    def test_same_input_same_bytes(self):
        rows = invent(4, 2, np.random.default_rng(0))
        summary = summaries.summarise(rows, COLUMNS)
        plot = report.Figure("m", "", "", lambda: figures.metric_comparison(summary))
        self.assertEqual(
            self.write(rows, figures=[plot]), self.write(rows, figures=[plot])
        )

    def test_a_failed_write_keeps_the_old_file(self):
        path = self.out.parent / "a.txt"
        path.parent.mkdir(parents=True)
        files.write_atomically(path, b"old")
        with (
            mock.patch.object(pathlib.Path, "replace", side_effect=OSError("full")),
            self.assertRaisesRegex(OSError, "full"),
        ):
            files.write_atomically(path, b"new")
        self.assertEqual(path.read_bytes(), b"old")
        self.assertEqual([p.name for p in path.parent.iterdir()], ["a.txt"])
        files.write_atomically(path, b"new")
        self.assertEqual(path.read_bytes(), b"new")

    def test_json_is_strict_and_takes_arrays(self):
        value = {
            "a": [float("-inf"), np.float32("nan"), np.int64(3), True, None],
            "b": np.arange(2.0),
            "path": pathlib.PurePosixPath("x/y"),
        }
        expected = {"a": [None, None, 3, True, None], "b": [0.0, 1.0], "path": "x/y"}
        self.assertEqual(json.loads(files.to_json(value)), expected)


class FiguresTest(parameterized.TestCase):
    def save(self, figure: Figure) -> None:
        figure.savefig(io.BytesIO(), format="png", dpi=40)

    @parameterized.parameters((3, 1), (3, 10), (16, 2))
    def test_draws_any_number_of_methods_and_seeds(self, count, seeds):
        rng = np.random.default_rng(0)
        before = dict(matplotlib.rcParams)
        rows = invent(count, seeds, rng)
        summary = summaries.summarise(rows, COLUMNS)
        labels = summary.method_labels
        p = {(m, s): rng.beta(9, 1, 50) for m in labels for s in figures.SPLITS}
        c = {}
        for row in rows:
            run = {"epoch": [0, 1, 2], "loss": [2.0, None, float("nan")]}
            run["retain_accuracy"] = [rng.uniform(50, 100) for _ in range(3)]
            c[row["method"], row["seed"]] = run
        for figure in (
            figures.metric_comparison(summary),
            figures.gap_chart(summary),
            figures.confidence_histograms(p, labels),
            figures.curves(c, labels),
            figures.curves(c, labels, series=("loss",), label="Loss", share_y=False),
        ):
            self.save(figure)
            self.assertNotEmpty(figure.axes)
        self.assertEqual(dict(matplotlib.rcParams), before)

    @parameterized.parameters(0, 1)
    def test_says_that_there_is_nothing(self, diverged):
        rows = [{"method": "a", "seed": 0, "status": "diverged"}] * diverged
        summary = summaries.summarise(rows, COLUMNS)
        for figure in (
            figures.metric_comparison(summary),
            figures.gap_chart(summary),
            figures.gap_chart(summaries.summarise(rows, COLUMNS[:1])),
            figures.confidence_histograms({("a", "forget"): [np.nan]}, {"a": "A"}),
            figures.curves({("a", 0): {"epoch": [], "loss": []}}, {"a": "A"}),
        ):
            self.save(figure)
            self.assertLen(figure.texts, 1)

    def test_looks_differ_and_do_not_depend_on_the_subset_of_baselines(self):
        names = [f"m{i}" for i in range(13)]
        whole = drawing.looks([*BASELINES, *names])
        self.assertLen(set(whole.values()), 16)
        self.assertEqual(whole["m7"], drawing.looks(["retrain", *names])["m7"])

    def test_gap_chart_sorts_and_shades_up_to_the_floor(self):
        summary = gaps(original=2.0, retrain=0.0, retrain_again=0.5, b=3.0, a=0.25)
        axes = figures.gap_chart(summary).axes[0]
        labels = [t.get_text() for t in axes.get_yticklabels()]
        self.assertEqual(labels, ["A", "Retrain again", "Original", "B"])
        band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
        np.testing.assert_allclose((band.x0, band.x1), (0, 0.5), atol=1e-9)

    def test_metric_comparison_marks_outliers_at_the_edge(self):
        rows = invent(8, 3, np.random.default_rng(0))
        figure = figures.metric_comparison(summaries.summarise(rows, COLUMNS))
        self.assertLen(figure.axes, 4)
        ua = {(r["method"], r["seed"]): r["ua"] for r in rows}
        paired = [ua[LOSER, s] - ua["retrain", s] for s in (0, 2)]  # 1 diverged
        stands = np.mean([ua["retrain", s] for s in range(3)]) + np.mean(paired)
        axes = figure.axes[0]
        self.assertLess(axes.get_xlim()[1], 20)
        self.assertIn(f"{stands:.2f}", [t.get_text() for t in axes.texts])

    def test_histograms_hold_shares_of_finite_values(self):
        values = [0.01, 0.02, 0.99, np.nan]
        figure = figures.confidence_histograms({("a", "forget"): values}, {"a": "A"})
        steps = figure.axes[0].patches[0]
        self.assertIsInstance(steps, StepPatch)
        heights = steps.get_data().values  # pyright: ignore[reportAttributeAccessIssue]
        np.testing.assert_allclose(heights[[0, -1]], (2 / 3, 1 / 3))

    def test_image_grids_have_a_column_a_class_and_frame_the_forgotten(self):
        images = np.arange(3 * 2).reshape(3, 2, 1, 1, 1) + np.zeros((3, 2, 4, 5, 1))
        figure = figures.image_grids(
            {"a": images.astype(np.uint8)}, {"b": "B", "a": "A"}, ["x", "y", "z"], 1
        )
        [axes, *others] = figure.axes
        self.assertFalse(any(other.images for other in others))
        picture = np.asarray(axes.images[0].get_array())
        self.assertEqual(picture.shape, (2 * 6, 3 * 7))
        inner = picture.reshape(2, 6, 3, 7)[:, 1:-1, :, 1:-1]
        wanted = np.array([[0, 2, 4], [1, 3, 5]])[:, None, :, None]
        np.testing.assert_array_equal(inner, np.broadcast_to(wanted, inner.shape))
        [frame] = axes.patches
        left, _, width, _ = (
            frame.get_extents().transformed(axes.transData.inverted()).bounds
        )
        np.testing.assert_allclose((left, width), (6.5, 7), atol=1e-6)
        self.assertEqual(axes.get_title(loc="left"), "A")
        self.assertFalse(figures.image_grids({}, {"a": "A"}, ["x"], 0).axes)

    def test_curves_are_means_and_ranges_over_finite_seeds(self):
        runs = {
            ("a", 0): {"epoch": [1, 2, 3], "loss": [1.0, 2.0, None]},
            ("a", 1): {"epoch": [1, 2], "loss": [3.0, float("inf")]},
        }
        figure = figures.curves(runs, {"a": "A"}, series=("loss",), label="Loss")
        points = np.asarray(figure.axes[0].lines[0].get_xydata())
        np.testing.assert_allclose(points, ((1, 2.0), (2, 2.0)))
        edge = np.asarray(figure.axes[0].collections[0].get_paths()[0].vertices)
        self.assertEqual({*edge[edge[:, 0] == 1, 1]}, {1.0, 3.0})


class DocumentationTest(parameterized.TestCase):
    @parameterized.parameters(summaries, tables, files, drawing)
    def test_examples_print_what_they_say(self, module):
        result = doctest.testmod(module)
        self.assertGreater(result.attempted, 0)
        self.assertEqual(result.failed, 0)


if __name__ == "__main__":
    absltest.main()
