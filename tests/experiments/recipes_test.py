"""Numbers of recipes: from files and flags to methods, and what is refused."""

import contextlib
import dataclasses
import io
import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.classification import __main__ as classification
from experiments.classification import search
from experiments.classification.methods import METHODS
from experiments.diffusion import __main__ as diffusion
from experiments.diffusion.methods import METHODS as DIFFUSION_METHODS
from experiments.engine import cli, flags, recipes
from experiments.engine.recipes import RecipeError
from experiments.errors import UserError

PROGRAMS = (
    ("experiments.classification", classification.Config),
    ("experiments.tune", search.Config),
    ("experiments.diffusion", diffusion.Config),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


class NumbersTest(parameterized.TestCase):
    @parameterized.named_parameters(
        *((name, name, METHODS[name]) for name in METHODS),
        *((f"diffusion_{n}", n, DIFFUSION_METHODS[n]) for n in DIFFUSION_METHODS),
    )
    def test_defaults_are_what_a_flag_may_give(self, name, method):
        recipe = method.Recipe()
        own = dataclasses.asdict(recipe)
        self.assertEqual(recipes.changed(recipe, {name: own}, name), recipe)
        for number, field in recipes.fields(recipe).items():
            self.assertIsInstance(own[number], (bool, int, float, str))
            self.assertRegex(field.metadata["help"], r"^[A-Z].*\.$")

    @parameterized.parameters(
        (recipes.SHARE, (0, 1, 0.5), (-0.1, 1.1, True, "0.5", None, float("nan"))),
        (recipes.SHARE_ABOVE_0, (1e-9, 1), (0, 1.1)),
        (recipes.POSITIVE, (1e-9, 3), (0, -1, float("inf"), 10**400)),
        (recipes.NOT_NEGATIVE, (0, 3.5), (-1e-9, float("inf"))),
        (recipes.FINITE, (-2.5, 0), (float("nan"), -float("inf"), [])),
        (recipes.COUNT, (1, 10**6), (0, 10**6 + 1, 1.0, True)),
        (recipes.COUNT_OR_0, (0, 7), (-1, 0.5)),
        (recipes.SWITCH, (True, False), (0, 1, "True")),
        (recipes.one_of("a", "b"), ("a", "b"), ("c", None)),
    )
    def test_limits(self, limit, inside, outside):
        self.assertTrue(all(map(limit.holds, inside)), inside)
        self.assertFalse(any(map(limit.holds, outside)), outside)

    def test_a_method_of_its_own_goes_first_and_others_keep_theirs(self):
        base = {name: METHODS[name].Recipe() for name in ("finetune", "salun", "ufg")}
        changes = {"salun": {"epochs": 3}, "recipe": {"epochs": 2, "density": 0.1}}
        found = recipes.resolve(changes, base["finetune"], base)
        self.assertEqual([r.epochs for r in found.values()], [10, 2, 3, 2])
        self.assertEqual(found["salun"].density, 0.1)
        with self.assertRaisesRegex(RecipeError, r"^--ufg\.density: .*threshold"):
            recipes.resolve({"ufg": {"density": 0.1}}, base["finetune"], base)


class FileTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name, "recipes.json")

    def read(self, entries):
        self.path.write_text(json.dumps(entries))
        return recipes.read(self.path, METHODS)

    def test_what_was_written_comes_back(self):
        salun = METHODS["salun"].Recipe(density=0.25, epochs=3, joint=True)
        entry = {"recipe": dataclasses.asdict(salun), "validation_gap": 1.0}
        self.assertEqual(self.read({"salun": entry}), {"salun": salun})

    def test_what_only_others_read_is_left_out(self):
        numbers = {"epochs": 3, "density": 0.25, "stages": 4, "energy": 7}
        found = self.read({n: {"recipe": numbers} for n in ("salun", "finetune")})
        self.assertEqual(
            found["salun"], METHODS["salun"].Recipe(epochs=3, density=0.25)
        )
        self.assertEqual(found["finetune"], METHODS["finetune"].Recipe(epochs=3))

    @parameterized.parameters(
        ({"salun": {"recipe": {"densty": 0.5}}}, "salun has no 'densty'"),
        ({"salun": {"recipe": {"density": 7}}}, "salun.density 7: give a share"),
        ({"salun": {"recipe": {"epochs": "3"}}}, "salun.epochs '3': give a number"),
        ({"cufg": {"recipe": {"difficulty": "x"}}}, "cufg.difficulty 'x': .*el2n"),
        ({"magic": {"recipe": {}}}, "no method 'magic'"),
        ({"salun": {}}, "'recipe'"),
        ([], "list"),
    )
    def test_refuses_in_a_line(self, entries, words):
        with self.assertRaisesRegex(RecipeError, words) as caught:
            self.read(entries)
        self.assertStartsWith(str(caught.exception), str(self.path))
        self.assertTrue(str(caught.exception).isprintable())

    def test_any_bytes(self):
        for content in (b"", b"[" * 10**5, b"\xff", b"null", b"9" * 5000):
            self.path.write_bytes(content)
            with self.assertRaisesRegex(RecipeError, "is not a file of recipes"):
                recipes.read(self.path, METHODS)

    @settings(max_examples=200, deadline=None)
    @given(
        JSON
        | st.dictionaries(
            st.sampled_from(["salun", "cufg"]),
            JSON
            | st.fixed_dictionaries(
                {
                    "recipe": st.dictionaries(
                        st.sampled_from(["density", "epochs", "difficulty", "joint"]),
                        JSON,
                    )
                }
            ),
        )
    )
    def test_any_file(self, content):
        try:
            found = self.read(content)
        except RecipeError as error:
            self.assertTrue(str(error).isprintable())
        else:
            self.assertLessEqual(found.keys(), METHODS.keys())


class FlagsTest(parameterized.TestCase):
    def parse(self, *arguments, config=classification.Config):
        return flags.parse(config, "prog", arguments)

    def printed(self, *arguments, config=classification.Config):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), self.assertRaises(SystemExit) as stop:
            self.parse(*arguments, config=config)
        self.assertFalse(stop.exception.code)
        return out.getvalue()

    def test_flags_with_a_dot_are_changes_and_the_others_settings(self):
        config = self.parse(
            *("--seeds", "2", "--train.epochs", "3", "--recipe.density", "0.25"),
            *("--gradient-ascent.learning-rate", "0.5", "--salun.joint", "True"),
        )
        changes = {
            "train": {"epochs": 3},
            "recipe": {"density": 0.25},
            "gradient_ascent": {"learning_rate": 0.5},
            "salun": {"joint": True},
        }
        self.assertEqual(config, classification.Config(seeds=2, changes=changes))
        self.assertEqual(self.parse(), classification.Config())

    @parameterized.parameters(
        ("all", {"recipe": {"density": 0.5}}, None),
        ("salun", {"salun": {"density": 0.5}, "train": {"epochs": 2}}, None),
        ("ufg,cufg", {"recipe": {"density": 0.5}}, r"--recipe\.density 0\.5: none of "),
        ("ufg", {"salun": {"density": 0.5}}, r"--salun\.density 0\.5: salun is not"),
        (
            "ufg",
            {"neggrad_plus": {"epochs": 5}},
            r"--neggrad-plus\.epochs 5: neggrad_p",
        ),
    )
    def test_a_number_that_no_chosen_method_reads_is_refused(
        self, names, changes, words
    ):
        config = classification.Config(methods=names, changes=changes)
        if words is None:
            self.assertEqual(cli.chosen(config), cli.choose(names, METHODS))
        else:
            with self.assertRaisesRegex(UserError, words):
                cli.chosen(config)

    @parameterized.parameters(*PROGRAMS)
    def test_help_is_short_and_explains_every_setting(self, prog, config):
        text = self.printed("--help", config=config)
        self.assertLess(len(text.splitlines()), 160)
        for field in dataclasses.fields(config):
            if field.name != "changes":
                shown = field.metadata.get("flag", field.name) is not None
                check = self.assertRegex if shown else self.assertNotRegex
                check(text, rf"--{field.name.replace('_', '-')}[ ,]")
        for group in ("study", "train", "recipe"):
            self.assertIn(f" {group} options ", text)
        self.assertIn("--recipe.learning-rate", text)
        self.assertNotIn("--recipe.density", text)
        self.assertNotIn("--salun.learning-rate", text)
        # The examples parse.
        examples = [x.split() for x in text.splitlines() if f"  python -m {prog}" in x]
        self.assertGreaterEqual(len(examples), 3)
        for _, _, name, *arguments in examples:
            self.assertEqual(name, prog)
            if "--help-method" not in arguments:
                cli.chosen(self.parse(*arguments, config=config))

    @parameterized.parameters(*PROGRAMS)
    def test_a_methods_own_flags_on_request(self, prog, config):
        del prog
        listed = self.printed("--help-method", config=config)
        for name, method in config.METHODS.items():
            self.assertIn(f"{name} ", listed)
            self.assertIn(method.NOTE.one_line, listed)
        text = self.printed("--help-method", "salun,semu-retain", config=config)
        for name in ("salun", "semu_retain"):
            for number in recipes.fields(config.METHODS[name].Recipe):
                self.assertIn(recipes.flag(name, number), text)
        self.assertNotIn("--ufg", text)
        everything = self.printed("--help-method=all", config=config)
        for name in config.METHODS:
            self.assertIn(recipes.flag(name, "batch_size"), everything)
        with self.assertRaisesRegex(UserError, "magic: there is no such method.*salun"):
            self.parse("--help-method", "magic", config=config)


if __name__ == "__main__":
    absltest.main()
