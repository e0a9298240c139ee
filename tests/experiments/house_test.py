"""The house of experiments: which room may import which, and what its doors are."""

import ast
import importlib
import io
import pathlib
from contextlib import redirect_stderr, redirect_stdout

from absl.testing import absltest, parameterized

import experiments
from experiments import __main__ as doors
from tests import command_line

HOUSE = pathlib.Path(experiments.__file__).parent
ROOMS = {path.parent.name for path in HOUSE.glob("*/__init__.py")}
# What each room may import of the house besides itself; a kind of experiment, all.
COMMON = {"files", "errors"}
BELOW = {
    "engine": {"reporting", "data", "models", *COMMON},
    "reporting": COMMON,
    "data": COMMON,
    "models": COMMON,
}


def imports(path: pathlib.Path) -> set[str]:
    """Modules that a file imports anywhere, by full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms(path: pathlib.Path) -> set[str]:
    """Rooms and modules of the house that a file imports from."""
    names = (name.split(".") for name in imports(path))
    return {name[1] for name in names if name[0] == "experiments"}


class ImportsTest(parameterized.TestCase):
    @parameterized.parameters(*BELOW)
    def test_arrows_run_down(self, room):
        files = list((HOUSE / room).rglob("*.py"))
        self.assertNotEmpty(files)
        for path in files:
            self.assertLessEqual(rooms(path), {room, *BELOW[room]}, path)

    def test_a_kind_of_experiment_stands_above_all(self):
        kinds = ROOMS - BELOW.keys()
        self.assertContainsSubset(
            {"classification", "diffusion", "text_to_image"}, kinds
        )
        for kind in kinds:
            self.assertTrue((HOUSE / kind / "__main__.py").exists(), kind)
            used = set().union(*map(rooms, (HOUSE / kind).rglob("*.py")))
            self.assertContainsSubset({"engine", "reporting"}, used)

    def test_the_library_knows_no_experiment(self):
        for path in (HOUSE.parent / "mujax").rglob("*.py"):
            self.assertEmpty(rooms(path), path)

    def test_every_room_says_what_lives_there(self):
        for path in HOUSE.rglob("__init__.py"):
            doc = ast.get_docstring(ast.parse(path.read_text())) or ""
            self.assertBetween(len(doc.splitlines()), 4, 12, path)


class DoorsTest(parameterized.TestCase):
    def listed(self, *arguments):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = doors.main(list(arguments))
        return code, out.getvalue(), err.getvalue()

    def test_lists_the_commands_in_a_line_each(self):
        code, out, err = self.listed()
        self.assertEqual((code, err), (0, ""))
        runnable = {
            path.relative_to(HOUSE).parts[0].removesuffix(".py")
            for path in HOUSE.rglob("*.py")
            if path.parent != HOUSE or path.stem[0] != "_"
            if 'if __name__ == "__main__":' in path.read_text()
        }
        for name in runnable:
            [line] = [x for x in out.splitlines() if f"experiments.{name} " in x]
            self.assertLessEqual(len(line), 100)
        self.assertLen(out.splitlines(), len(runnable) + 2)

    @parameterized.parameters(*doors.COMMANDS)
    def test_every_command_helps_and_refuses_in_a_line(self, name):
        room = importlib.import_module(f"experiments.{name}")
        if not hasattr(room, "main"):
            room = importlib.import_module(f"experiments.{name}.__main__")
        code, out, err = command_line.run(room.main, "--help")
        self.assertEqual((code, err), (0, ""))
        self.assertIn(f"  python -m experiments.{name}", out)
        code, out, err = command_line.run(room.main, "--no-such-flag")
        self.assertEqual((code, out), (2, ""))
        self.assertRegex(err, rf"\Aexperiments\.{name}: .* See --help.*\n\Z")

    def test_another_word_is_answered_in_a_line(self):
        code, out, err = self.listed("salun\n")
        self.assertEqual((code, err.count("\n")), (2, 1))
        self.assertIn("experiments.classification", out)


if __name__ == "__main__":
    absltest.main()
