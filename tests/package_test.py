"""What the package says of itself agrees."""

import pathlib
import re
import tomllib

from absl.testing import absltest
from packaging.requirements import Requirement

import mujax

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


class PackageTest(absltest.TestCase):
    def test_the_citation_has_the_version(self):
        said = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)
        assert said
        self.assertEqual(said[1], mujax.__version__)

    def test_the_lowest_set_is_that_of_the_bounds(self):
        lines = (ROOT / ".ci" / "lowest.txt").read_text().splitlines()
        lowest = dict(line.split("==") for line in lines if line and line[0] != "#")
        extras = PROJECT["optional-dependencies"]
        needed = {
            requirement.name: str(requirement.specifier)
            for name in ("auditing", "experiments", "text-to-image", "test")
            for requirement in map(Requirement, extras[name])
        } | {
            r.name: str(r.specifier) for r in map(Requirement, PROJECT["dependencies"])
        }
        for name, bound in needed.items():
            if name != "mujax":
                self.assertEqual(bound, f">={lowest[name]}", name)

    def test_types_are_shipped_and_experiments_are_not(self):
        self.assertTrue((ROOT / "mujax" / "py.typed").exists())
        text = (ROOT / "pyproject.toml").read_text()
        self.assertIn('wheel]\npackages = ["mujax"]', text)


if __name__ == "__main__":
    absltest.main()
