"""What the README shows is what the tests run."""

import pathlib

from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).parent.parent


class ReadmeTest(parameterized.TestCase):
    @parameterized.parameters("nnx_loop", "linen_loop")
    def test_shows_the_loops_that_run_as_tests(self, name):
        source = (ROOT / "tests" / "examples" / f"{name}.py").read_text()
        shown, _, rest = source.partition("# The README shows what stands above")
        self.assertTrue(rest)

        def lines(text):
            return [line for line in text.splitlines() if line.strip()]

        readme = "\n".join(lines((ROOT / "README.md").read_text()))
        self.assertIn("\n".join(lines(shown)), readme)

    def test_is_short_and_names_the_commands(self):
        text = (ROOT / "README.md").read_text()
        self.assertLessEqual(len(text.splitlines()), 150)
        self.assertIn("python -m experiments.classification", text)


if __name__ == "__main__":
    absltest.main()
