"""Unlearning in one's own pipeline: what is read, refused, moved and left alone."""

import json
import pathlib
import tempfile
import types

import jax
import numpy as np
import PIL.Image
import pytest
from absl.testing import absltest, parameterized

from experiments.data.dataset import DataError
from experiments.engine.devices import ONE
from experiments.text_to_image import __main__ as story
from experiments.text_to_image import own, own_concepts, own_pictures, own_task
from experiments.text_to_image import pipeline as pipelines
from experiments.text_to_image.own_concepts import Concept, ConceptsError, Prompts
from tests import command_line

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tiny_sd"
UNET = "unet/diffusion_pytorch_model.safetensors"


class PlaceTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        self.place = pathlib.Path(made.name)


class ConceptsTest(PlaceTest):
    def write(self, content):
        path = self.place / "concepts.json"
        path.write_text(content)
        return path

    def test_reads_every_field(self):
        entry = {"prompts": ["a cat "], "target": "a dog", "paraphrases": ["cats"]}
        entry |= {"retain": ["a car", "a bus"], "images": "cats"}
        found = own_concepts.read(self.write(json.dumps([entry, {"prompts": ["b"]}])))
        images = self.place / "cats"
        wanted = Concept(("a cat",), "a dog", ("cats",), ("a car", "a bus"), images)
        self.assertEqual(found, [wanted, Concept(("b",))])

    @parameterized.parameters(
        ("", "not readable"),
        ("{}", "no list of concepts"),
        ("[]", "no list of concepts"),
        ("[3]", "entry 1 of"),
        ('[{"prompts": []}]', "has no prompts"),
        ('[{"prompts": [" "]}]', "wanted a list of texts"),
        ('[{"prompts": "a cat"}]', "wanted a list of texts"),
        ('[{"prompts": ["a"], "target": 3}]', "target = 3"),
        ('[{"prompts": ["a"], "Retain": ["b"]}]', "is no concept"),
    )
    def test_refuses_in_a_line(self, content, why):
        with self.assertRaisesRegex(ConceptsError, why) as caught:
            own_concepts.read(self.write(content))
        self.assertNotIn("\n", str(caught.exception))

    @parameterized.parameters(
        (Concept(("a",), "a"), "is a target"),
        (Concept(("a",), None, (), ("a",)), "to be kept"),
        (Concept(("a",), None, ("a",)), "a paraphrase"),
        (Concept(("a",), "b", ("b",)), "is a paraphrase"),
    )
    def test_a_prompt_has_one_part(self, concept, why):
        with self.assertRaisesRegex(ConceptsError, why):
            Prompts([concept])

    def test_captions_are_forgotten_but_not_asked(self):
        prompts = Prompts([Concept(("a",), "b", captions=("c",)), Concept(("d",))])
        self.assertEqual([prompts.texts[n] for n in prompts.asked], ["a", "d"])
        self.assertEqual([prompts.texts[n] for n in prompts.forgotten], ["a", "c", "d"])
        self.assertEqual(prompts.target, {1: 3, 2: 3})


class NeedsTest(parameterized.TestCase):
    @parameterized.parameters(
        ("a", None, (), {"gradient_ascent", "esd"}),
        ("a", "b", (), {"gradient_ascent", "esd", "semu"}),
        ("a", None, ("c",), {"gradient_ascent", "esd", "finetune", "ufg"}),
        ("a", "b", ("c",), set(own_task.METHODS)),
    )
    def test_what_can_be_done_with_what_is_given(self, prompt, target, kept, wanted):
        prompts = Prompts([Concept((prompt,), target, (), kept)])
        recipes = own_task.recipes()
        able = {n for n, r in recipes.items() if not own_task.unmet(n, r, prompts)}
        self.assertEqual(able, wanted)


class PicturesTest(PlaceTest):
    def test_reads_pictures_with_and_without_captions(self):
        for name, width in (("b.png", 8), ("a.jpg", 4)):
            PIL.Image.new("RGB", (width, 4), "red").save(self.place / name)
        found = own_pictures.captions(self.place)
        self.assertEqual(
            [(p.name, t) for p, t in found], [("a.jpg", None), ("b.png", None)]
        )
        images = own_pictures.load([p for p, _ in found], 4)
        self.assertEqual(images.shape, (2, 4, 4, 3))
        (self.place / "metadata.csv").write_text("file_name,text\nb.png,a red one\n")
        found = own_pictures.captions(self.place)
        self.assertEqual([(p.name, t) for p, t in found], [("b.png", "a red one")])

    def test_refuses_a_folder_without_pictures(self):
        with self.assertRaisesRegex(DataError, "no pictures"):
            own_pictures.captions(self.place)
        with self.assertRaisesRegex(DataError, "There is no folder"):
            own_pictures.captions(self.place / "none")

    def test_what_was_made_is_kept_by_content(self):
        made = []

        def make():
            made.append(1)
            return np.full(2, len(made))

        first = own_pictures.kept(self.place, ("a", 1), make)
        again = own_pictures.kept(self.place, ("a", 1), make)
        other = own_pictures.kept(self.place, ("a", 2), make)
        np.testing.assert_array_equal([first, again, other], [[1, 1], [1, 1], [2, 2]])
        for path in self.place.iterdir():
            path.write_bytes(path.read_bytes()[:40])
        np.testing.assert_array_equal(own_pictures.kept(self.place, ("a", 1), make), 3)


class MeasureTest(absltest.TestCase):
    def test_another_seed_is_at_a_distance_of_one(self):
        rng = np.random.default_rng(0)
        seeds, ours = rng.integers(0, 256, (2, 4, 6, 32, 32, 3), np.uint8)
        found = own_task.relative_distance(ours, seeds, seeds)
        pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
        a = seeds.astype(float)
        noise = np.mean([(a[:, i] - a[:, j]) ** 2 for i, j in pairs])
        by_hand = np.sqrt(np.mean((ours.astype(float) - a) ** 2) / noise)
        self.assertAlmostEqual(found, by_hand, places=9)
        self.assertAlmostEqual(found, 1, delta=0.02)
        self.assertEqual(own_task.relative_distance(seeds, seeds, seeds), 0)

    def test_counts_what_moved(self):
        tree = {"a": np.zeros(3), "b": np.ones(1)}
        self.assertEqual(own_task.moved(tree | {"a": np.array([0, 1, 0])}, tree), 0.25)


class BadInputTest(PlaceTest):
    @parameterized.parameters(
        (("--pipeline", "nowhere"), "Give --concept"),
        (("--pipeline", "nowhere", "--concept", " "), "Give --concept"),
        (("--pipeline", "nowhere", "--concept", "a"), "model_index.json"),
        (("--pipeline=nowhere", "--concepts", "none.json"), "not readable"),
        (("--pipeline", "x", "--concepts", "c.json", "--target", "b"), "--target"),
        (("--pipeline", "x", "--concept", "a", "--methods", "salun"), "give --target"),
        (("--pipeline", "x", "--concept", "a", "--images", "none"), "no folder"),
        (("--pipeline", "x", "--concept", "a", "--samples", "1"), "at least 2"),
        (("--pipeline", "x", "--concept", "a", "--seeds", "2"), "--seeds"),
        (("--pipeline", "x", "--concept", "a", "--train.epochs", "2"), "--train"),
        (("--pipeline", "x", "--concept", "a", "--forget", "b"), "--forget"),
    )
    def test_is_answered_in_a_line(self, arguments, why):
        code, _, err = command_line.run(story.main, *arguments)
        self.assertEqual(code, 2, err)
        self.assertIn(why, err)
        self.assertNotIn("Traceback", err)

    def test_size_is_what_the_networks_divide(self):
        folder = GOLDEN / "sd2"
        config = own.Config(pipeline=folder, concept="a", size=40)
        model = pipelines.load(folder)
        with self.assertRaisesRegex(own.cli.ConfigError, "multiple of 16"):
            own.picture_size(config, model)

    def test_says_what_training_takes(self):
        kernel = jax.ShapeDtypeStruct((30_000, 10_000), "f")
        model = types.SimpleNamespace(shapes={"unet": {"dense": {"kernel": kernel}}})
        # Weights, the original, the gradient and two moments, of 4 bytes; a mask of 1.
        self.assertIn(f"takes {0.3 * 21:.2f} GB", own.memory_hint(model))


@pytest.mark.slow
class WholeTest(PlaceTest):
    @parameterized.parameters(
        ("sd1", "random_mask", "gradient_ascent"),  # answers the noise
        ("sd2", "salun", "gradient_ascent"),  # answers the velocity
    )
    def test_unlearns_and_leaves_pipelines(self, name, masked, other):
        out, cache = self.place / "out", self.place / "cache"
        flags = (
            *("--pipeline", str(GOLDEN / name), "--concept", "a cat"),
            *("--target", "a dog", "--retain", "a car", "--paraphrases", "cats"),
            *("--draw", "4", "--samples", "2", "--sampling-steps", "2"),
            *("--methods", f"{masked},{other}", "--recipe.epochs", "1"),
            *("--recipe.batch-size", "4", "--recipe.learning-rate", "1e-3"),
            *("--save-as", "float32", "--out", str(out), "--cache", str(cache)),
        )
        code, _, err = command_line.run(story.main, *flags)
        self.assertEqual(code, 0, err)
        results = json.loads((out / "results.json").read_text())
        rows = {row["method"]: row for row in results["rows"]}
        self.assertEqual(rows.keys(), {"original", masked, other})
        self.assertEqual(rows["original"]["forgotten"], 0)
        self.assertIn("no Retrain", (out / "report.html").read_text())
        original = pipelines.load(GOLDEN / name)
        for method in (masked, other):
            self.check_folder(original, out / method, rows[method])
        frozen = self.frozen(name, masked, out, cache)
        moved = pipelines.load(out / masked).params["unet"]
        for keep, old, new in zip(
            jax.tree.leaves(frozen),
            jax.tree.leaves(original.params["unet"]),
            jax.tree.leaves(moved),
            strict=True,
        ):
            self.assertEqual(old[keep].tobytes(), new[keep].tobytes())
        self.check_resumes(flags, out, out / other / UNET)

    def check_folder(self, original, folder, row):
        """What nobody trained has its old numbers, and what was trained has moved."""
        self.assertEqual(row["status"], "ok")
        self.assertGreater(row["forgotten"], 0)
        new = pipelines.load(folder)
        for part in ("text_encoder", "vae"):
            pairs = zip(
                jax.tree.leaves(original.params[part]),
                jax.tree.leaves(new.params[part]),
                strict=True,
            )
            for a, b in pairs:
                self.assertEqual(np.asarray(a).tobytes(), np.asarray(b).tobytes())
        share = own_task.moved(new.params["unet"], original.params["unet"])
        self.assertEqual(row["moved"], share)
        self.assertLessEqual(share, row["trainable_fraction"] + 1e-6)
        self.assertGreater(share, 0.9 * row["trainable_fraction"])

    def frozen(self, name, masked, out, cache):
        """What the mask does not let move, computed again."""
        config = own.Config(
            pipeline=GOLDEN / name,
            concept="a cat",
            target="a dog",
            retain="a car",
            paraphrases="cats",
            draw=4,
            samples=2,
            sampling_steps=2,
            out=out,
            cache=cache,
        )
        model = pipelines.load(GOLDEN / name)
        study = own.Study(config, model, own.asked_for(config), 64, ONE)
        task = study.task(study.latents())
        recipe = own_task.METHODS[masked].Recipe(epochs=1, batch_size=4)
        state = task.build(masked, recipe).init(study.unet, {}, task.forget_batches(4))
        return jax.tree.map(lambda mask: ~np.asarray(mask), state.mask)

    def check_resumes(self, flags, out, file):
        """Nothing is done twice."""
        before = (out / "results.json").read_bytes()
        stamp = file.stat().st_mtime_ns
        code, _, err = command_line.run(story.main, *flags)
        self.assertEqual(code, 0, err)
        self.assertEqual((out / "results.json").read_bytes(), before)
        self.assertEqual(file.stat().st_mtime_ns, stamp)
        self.assertNotIn("ok", err)


if __name__ == "__main__":
    absltest.main()
