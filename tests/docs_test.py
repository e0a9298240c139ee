"""Pages of the site run and show what comes out; every public name has its place."""

import ast
import collections
import pathlib
import re

from absl.testing import absltest, parameterized

from tests import pages

DOCS = pages.ROOT / "docs"
LIBRARY = pages.ROOT / "mujax"
# composing.md is run by wrappers_test.py, which looks at its numbers, too.
RUN = [*DOCS.glob("tutorials/*.md"), *DOCS.glob("guides/*.md")]


def public_names(path: pathlib.Path) -> list[str]:
    """What a module defines or hands on (``import x as x``) without an underscore."""
    found: list[str | None] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found += [name.asname for name in node.names if name.asname == name.name]
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign):
            found += [name.id for name in node.targets if isinstance(name, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.append(node.target.id)
    return [name for name in found if name and not name.startswith("_")]


class ApiTest(absltest.TestCase):
    """A public name that goes, comes or moves changes a page: see CONTRIBUTING."""

    def test_every_public_name_is_documented_once(self):
        modules = [*LIBRARY.glob("[!_]*.py"), *LIBRARY.glob("*/__init__.py")]
        public = {
            f"mujax.{module}.{name}"
            for path in modules
            for module in [path.parent.name if "__" in path.name else path.stem]
            for name in public_names(path)
        }
        shown = collections.Counter(
            name
            for page in DOCS.glob("api/*.md")
            for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
            if name.count(".") == 2 and name != "mujax.methods.base"
        )
        self.assertEmpty(public - shown.keys(), "these have no place in docs/api")
        self.assertEmpty(shown.keys() - public, "docs/api shows these, which are gone")
        self.assertEqual({*shown.values()}, {1}, shown.most_common(1))


class PagesTest(parameterized.TestCase):
    @parameterized.named_parameters((path.stem, path) for path in RUN)
    def test_runs_and_says_what_it_shows(self, page):
        tolerance = 8.0  # points of a percentage: other machines round otherwise
        with pages.elsewhere() as folder:
            for said, shown in pages.run(page):
                self.assertEqual(pages.differences(said, shown, tolerance), "")
            for name in pages.pictures(page):
                self.assertTrue((folder / name).exists(), name)
                self.assertTrue((DOCS / "pictures" / name).exists(), name)

    def test_an_output_of_other_words_or_far_numbers_is_told(self):
        self.assertEqual(pages.differences("UA 97.0 %", "UA  99.5 %\n", 3), "")
        self.assertIn("90.0 for 99.5", pages.differences("UA 90.0", "UA 99.5", 3))
        self.assertIn("RA 99.5", pages.differences("UA 99.5", "RA 99.5", 3))


if __name__ == "__main__":
    absltest.main()
