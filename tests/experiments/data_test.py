"""Loaders, forget sets, and what they say of faulty input."""

import dataclasses
import gzip
import hashlib
import importlib.util
import pathlib
import struct
import sys
import tempfile
import tracemalloc
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from experiments import data
from experiments.data import readers
from experiments.data.dataset import ARRAYS, chunks


class DataTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def fails(self, pattern, call, *arguments):
        """Calls and returns the message, which must be at most two lines."""
        with self.assertRaisesRegex(data.DataError, pattern) as caught:
            call(*arguments)
        message = str(caught.exception)
        self.assertLessEqual(len(message.splitlines()), 2)
        return message

    def npz(self, arrays):
        np.savez(self.folder / "own.npz", **arrays)
        return f"npz:{self.folder / 'own.npz'}"

    def npy(self, arrays):
        for key, array in arrays.items():
            np.save(self.folder / f"{key}.npy", array)
        return f"npz:{self.folder}"


def own(**changes):
    """Arrays of a valid data set of three classes; None removes a key."""
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (9, 4, 5, 3), dtype=np.uint8),
        "train_labels": np.arange(9) % 3,
        "test_images": rng.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8),
        "test_labels": np.arange(6) % 3,
    }
    return {k: v for k, v in (arrays | changes).items() if v is not None}


def toy(train=30, test=12, classes=3):
    """A data set in which pixel and label tell the index."""
    images = np.arange(train + test, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return data.Dataset(
        name="toy",
        train_images=images[:train],
        train_labels=np.arange(train, dtype=np.int32) % classes,
        test_images=images[train:],
        test_labels=np.arange(test, dtype=np.int32) % classes,
        classes=("ant", "bee", "cow", "dog")[:classes],
        augment=False,
    )


class DigitsTest(DataTestCase):
    def test_is_all_of_scikit_learn(self):
        from sklearn.datasets import load_digits

        raw, labels = load_digits(return_X_y=True)
        digits = data.load("digits")
        self.assertEqual(digits.train_images.shape, (1437, 8, 8, 1))
        self.assertEqual(digits.test_images.shape, (360, 8, 8, 1))
        self.assertEqual(digits.train_images.dtype, np.uint8)
        self.assertEqual(digits.train_labels.dtype, np.int32)
        expected = sorted(
            (label, *(round(v * 255 / 16) for v in image))
            for image, label in zip(raw, labels, strict=True)
        )
        images = np.concatenate([digits.train_images, digits.test_images])
        both = np.concatenate([digits.train_labels, digits.test_labels])
        got = sorted(
            (label, *image)
            for image, label in zip(images.reshape(-1, 64), both, strict=True)
        )
        np.testing.assert_array_equal(np.array(got), np.array(expected))

    def test_split_is_even_and_never_changes(self):
        digits = data.load("digits")
        np.testing.assert_array_equal(np.bincount(digits.test_labels), [36] * 10)
        checksum = hashlib.sha256(digits.test_images.tobytes()).hexdigest()
        self.assertEqual(checksum[:16], "9f29428404234825")

    def test_describes_itself(self):
        digits = data.load("digits")
        self.assertEqual(digits.classes, tuple("0123456789"))
        self.assertEqual((digits.num_classes, digits.input_shape), (10, (8, 8, 1)))
        self.assertFalse(digits.augment)

    def test_unknown_name_lists_the_known(self):
        self.fails("no data set 'digit'.*digits, fashion_mnist", data.load, "digit")


class MomentsTest(DataTestCase):
    def test_are_those_of_numpy(self):
        dataset = data.load(self.npz(own()))
        scaled = dataset.train_images / 255
        np.testing.assert_allclose(dataset.mean, scaled.mean((0, 1, 2)), rtol=1e-6)
        np.testing.assert_allclose(dataset.std, scaled.std((0, 1, 2)), rtol=1e-6)
        self.assertEqual((dataset.mean.dtype, dataset.std.dtype), (np.float32,) * 2)

    def test_do_not_depend_on_the_chunks(self):
        images = np.random.default_rng(0).integers(0, 256, (50, 3, 3, 2), np.uint8)
        parts = list(chunks(images, limit=7 * 18))
        self.assertEqual([len(part) for part in parts], [7] * 7 + [1])
        np.testing.assert_array_equal(np.concatenate(parts), images)

    def test_constant_images_deviate_by_zero(self):
        dataset = dataclasses.replace(
            toy(), train_images=np.full((30, 1, 1, 1), 200, np.uint8)
        )
        self.assertEqual(dataset.std, [0.0])

    def test_mapped_images_stay_on_disk(self):
        # 123 MB of sparse zeros; one white image.
        name = self.npy(own(train_images=None, test_images=np.zeros((6, 64, 64), "u1")))
        images = np.lib.format.open_memmap(
            self.folder / "train_images.npy", "w+", np.uint8, (30_000, 64, 64)
        )
        images[7] = 255
        del images
        np.save(self.folder / "train_labels.npy", np.arange(30_000) % 3)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        dataset = data.load(name)
        mean = dataset.mean
        peak = tracemalloc.get_traced_memory()[1]
        self.assertLess(peak, 32e6)
        np.testing.assert_allclose(mean, [1 / 30_000], rtol=1e-6)
        self.assertEqual(dataset.train_images.shape, (30_000, 64, 64, 1))


class Records(list):
    """A data source of tfds that holds these records."""

    dataset_info = None


class TfdsTest(DataTestCase):
    def setUp(self):
        super().setUp()
        if importlib.util.find_spec("tensorflow_datasets") is None:
            self.skipTest("tensorflow-datasets is not installed")

    def serve(self, records):
        """Lets tfds serve ``records(split)``."""
        from tensorflow_datasets import testing

        def source(builder, split, **_):
            served = Records(records(split))
            served.dataset_info = builder.info
            return served

        context = testing.mock_data(as_data_source_fn=source)
        context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)

    @parameterized.parameters(
        ("cifar10", 10, (32, 32, 3), True),
        ("cifar100", 100, (32, 32, 3), True),
        ("svhn", 10, (32, 32, 3), False),
        ("fashion_mnist", 10, (28, 28, 1), False),
    )
    def test_reads_what_tfds_serves(self, name, classes, shape, augment):
        from tensorflow_datasets import testing

        count = 12 * classes
        with (
            mock.patch.object(readers, "FASHION_MNIST_FOLDERS", ()),
            testing.mock_data(num_examples=count),
        ):
            dataset = data.load(name)
        self.assertEqual(dataset.train_images.shape, (count, *shape))
        self.assertEqual(dataset.test_images.shape, (count, *shape))
        self.assertEqual(dataset.train_images.dtype, np.uint8)
        self.assertEqual(dataset.train_labels.dtype, np.int32)
        self.assertEqual(dataset.num_classes, classes)
        self.assertEqual(dataset.augment, augment)
        self.assertNotIn("tensorflow", sys.modules)

    @parameterized.parameters(str, str.encode)
    def test_ids_give_the_order(self, encode):
        def records(split):
            for i in (100000, 5, 17, 2, 99999, 10, 3, 1, 9, 4):
                yield {
                    "id": encode(f"{split}_{i:05d}"),
                    "image": np.full((32, 32, 3), i % 256, np.uint8),
                    "label": i % 10,
                }

        self.serve(records)
        with self.assertRaisesRegex(data.DataError, "Class 6 .* no training example"):
            data.load("cifar10")
        from tensorflow_datasets import data_source

        source = data_source("cifar10", split="train", download=False)
        images, labels = readers._records(source, "train")
        expected = [1, 2, 3, 4, 5, 9, 10, 17, 99999, 100000]
        np.testing.assert_array_equal(images[:, 0, 0, 0], np.mod(expected, 256))
        np.testing.assert_array_equal(labels, np.mod(expected, 10))

    def test_without_ids_the_order_of_the_original_files(self):
        # Where the first records of a Fashion-MNIST that tfds 4.9.10 had prepared
        # from the original files were in those files, found by comparing the images.
        places = {
            "train": [
                16399,
                1680,
                47917,
                17307,
                27051,
                54784,
                50543,
                48736,
                26263,
                1456,
            ],
            "test": [9933, 5669, 163, 6686, 4747, 131, 9167, 1579, 6174, 8443],
        }
        image = np.zeros((28, 28, 1), np.uint8)

        def records(split):
            for i in range({"train": 60_000, "test": 10_000}[split]):
                yield {"image": image, "label": i if i < 10 else 0}

        self.serve(records)
        with mock.patch.object(readers, "FASHION_MNIST_FOLDERS", ()):
            dataset = data.load("fashion_mnist")
        np.testing.assert_array_equal(
            dataset.train_labels[places["train"]], np.arange(10)
        )
        np.testing.assert_array_equal(
            dataset.test_labels[places["test"]], np.arange(10)
        )

    @parameterized.parameters(("cifar10", "cifar10"), ("svhn", "svhn_cropped"))
    def test_unprepared_says_how_to_prepare(self, name, builder):
        from tensorflow_datasets import data_source

        downloads = []

        def here(*arguments, download, **options):
            downloads.append(download)
            options |= {"data_dir": str(self.folder), "download": False}
            return data_source(*arguments, **options)

        with mock.patch("tensorflow_datasets.data_source", here):
            message = self.fails(f"The data set {name}", data.load, name)
        self.assertIn(f"data_source('{builder}')", message)
        self.assertEqual(downloads, [False])

    def test_without_tfds_says_how_to_install(self):
        with mock.patch.dict(sys.modules, {"tensorflow_datasets": None}):
            self.fails(
                "(?s)cifar10 needs tensorflow-datasets.*pip", data.load, "cifar10"
            )

    def test_broken_records_are_data_errors(self):
        self.serve(lambda split: [{"image": np.zeros((2, 2, 1)), "label": 0}])
        self.fails("The data set cifar10", data.load, "cifar10")


class FashionMnistTest(DataTestCase):
    def setUp(self):
        super().setUp()
        patch = mock.patch.object(
            readers, "FASHION_MNIST_FOLDERS", (self.folder / "none", self.folder)
        )
        patch.start()
        self.addCleanup(patch.stop)
        rng = np.random.default_rng(0)
        self.arrays = {}
        for prefix, count in (("train", 20), ("t10k", 10)):
            images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            labels = (np.arange(count) % 10).astype(np.uint8)
            self.write(f"{prefix}-images-idx3-ubyte.gz", images)
            self.write(f"{prefix}-labels-idx1-ubyte.gz", labels)
            self.arrays[prefix] = images, labels

    def write(self, name, array):
        header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        (self.folder / name).write_bytes(gzip.compress(header + array.tobytes()))

    def test_reads_idx_files(self):
        dataset = data.load("fashion_mnist")
        images, labels = self.arrays["train"]
        np.testing.assert_array_equal(dataset.train_images, images[..., None])
        np.testing.assert_array_equal(dataset.train_labels, labels)
        images, labels = self.arrays["t10k"]
        np.testing.assert_array_equal(dataset.test_images, images[..., None])
        np.testing.assert_array_equal(dataset.test_labels, labels)
        self.assertEqual(dataset.classes[9], "Ankle boot")

    @parameterized.named_parameters(
        ("not_gzip", lambda raw: b"hello"),
        ("truncated", lambda raw: raw[: len(raw) // 2]),
        ("not_idx", lambda raw: gzip.compress(b"PNG")),
        ("short_header", lambda raw: gzip.compress(b"\0\0\x08\x03\0\0")),
        ("too_few_bytes", lambda raw: gzip.compress(gzip.decompress(raw)[:-1])),
        ("empty", lambda raw: b""),
    )
    def test_broken_file(self, spoil):
        path = self.folder / "train-images-idx3-ubyte.gz"
        path.write_bytes(spoil(path.read_bytes()))
        self.fails("train-images-idx3", data.load, "fashion_mnist")

    def test_missing_file(self):
        (self.folder / "t10k-labels-idx1-ubyte.gz").unlink()
        self.fails("t10k-labels-idx1.*No such file", data.load, "fashion_mnist")


class OwnDataTest(DataTestCase):
    @parameterized.parameters("npz", "npy")
    def test_reads_both_forms(self, form):
        arrays = own(classes=np.array(["ant", "bee", "cow"]))
        name = getattr(self, form)(arrays)
        dataset = data.load(name)
        for key in ARRAYS:
            np.testing.assert_array_equal(getattr(dataset, key), arrays[key])
        self.assertEqual(dataset.name, name)
        self.assertEqual(dataset.classes, ("ant", "bee", "cow"))
        self.assertEqual(dataset.train_labels.dtype, np.int32)
        self.assertFalse(dataset.augment)

    def test_grey_images_and_unnamed_classes(self):
        arrays = own()
        arrays |= {k: arrays[k][..., 0] for k in ("train_images", "test_images")}
        dataset = data.load(self.npz(arrays))
        self.assertEqual(dataset.input_shape, (4, 5, 1))
        np.testing.assert_array_equal(
            dataset.train_images[..., 0], arrays["train_images"]
        )
        self.assertEqual(dataset.classes, ("0", "1", "2"))

    @parameterized.parameters("<i8", ">i4", "u1", "<u8")
    def test_any_integer_labels(self, dtype):
        arrays = own()
        arrays["train_labels"] = arrays["train_labels"].astype(dtype)
        labels = data.load(self.npz(arrays)).train_labels
        np.testing.assert_array_equal(labels, arrays["train_labels"])

    @parameterized.named_parameters(
        ("no_key", {"test_labels": None}, "has no test_labels"),
        ("objects", {"train_labels": np.array([{}] * 9)}, "cannot be read.*bject"),
        (
            "float_images",
            {"train_images": np.zeros((9, 4, 5, 3), np.float32)},
            "train_images .* is float32; wanted uint8.*rint",
        ),
        (
            "nan_images",
            {"test_images": np.full((6, 4, 5, 3), np.nan)},
            "test_images .* is float64 and holds NaN or infinity",
        ),
        (
            "infinite_images",
            {"train_images": np.full((9, 4, 5), -np.inf, np.float16)},
            "is float16 and holds NaN or infinity",
        ),
        ("wide_images", {"train_images": np.zeros((9, 4, 5), int)}, "int64; wanted"),
        ("flat_images", {"train_images": np.zeros((9, 60), "u1")}, r"shape \(9, 60\)"),
        ("scalar_images", {"train_images": np.uint8(3)}, r"shape \(\)"),
        ("no_images", {"test_images": np.zeros((0, 4, 5, 3), "u1")}, r"\(0, 4, 5, 3\)"),
        ("no_height", {"test_images": np.zeros((6, 0, 5, 3), "u1")}, r"\(6, 0, 5, 3\)"),
        (
            "channels_first",
            {
                "train_images": np.zeros((9, 3, 8, 8), "u1"),
                "test_images": np.zeros((6, 3, 8, 8), "u1"),
            },
            r"transpose\(0, 2, 3, 1\)",
        ),
        (
            "two_sizes",
            {"test_images": np.zeros((6, 5, 5, 3), "u1")},
            r"\(4, 5, 3\) in training and \(5, 5, 3\) in test",
        ),
        ("few_labels", {"train_labels": np.arange(8) % 3}, r"\(8,\) for 9 images"),
        (
            "column_labels",
            {"test_labels": np.zeros((6, 1), int)},
            r"test_labels .* shape \(6, 1\) for 6 images; wanted .*\(6,\)",
        ),
        ("float_labels", {"test_labels": np.zeros(6)}, "test_labels .* float64"),
        ("bool_labels", {"train_labels": np.arange(9) > 4}, "train_labels .* bool"),
        (
            "negative_label",
            {"train_labels": np.arange(9) - 1},
            "holds -1; labels count",
        ),
        ("test_label", {"test_labels": np.arange(6)}, "test_labels .* 5, but .* 3 cl"),
        (
            "named_label",
            {"classes": np.array(["a", "b"])},
            "train_labels .* holds 2, but there are 2 classes: .* 0 to 1",
        ),
        ("gap", {"train_labels": np.arange(9) % 3 * 2}, "Class 1 .* no training"),
        ("huge_label", {"train_labels": np.arange(9) * 10**17}, "Class 1 .* no train"),
        (
            "class_without_example",
            {"classes": np.array(["a", "b", "c", "d"])},
            "Class 3 .* no training example",
        ),
        (
            "one_class",
            {"train_labels": np.zeros(9, int), "test_labels": np.zeros(6, int)},
            "has 1 class; wanted two",
        ),
        ("same_names", {"classes": np.array(["a", "b", "a"])}, "repeats a name"),
        ("number_names", {"classes": np.arange(3)}, "classes .* int64 .* one name"),
        ("scalar_names", {"classes": np.array("cat")}, r"shape \(\)"),
    )
    def test_fault(self, changes, pattern):
        for write in (self.npz, self.npy):
            for stale in self.folder.glob("*.np?"):
                stale.unlink()
            with self.subTest(write.__name__):
                self.fails(pattern, data.load, write(own(**changes)))

    def test_no_such_file(self):
        self.fails("no file or folder '/no/where'", data.load, "npz:/no/where")

    def test_folder_without_arrays(self):
        self.fails("has no train_images", data.load, f"npz:{self.folder}")

    def test_truncated_file(self):
        name = self.npz(own())
        path = self.folder / "own.npz"
        whole = path.read_bytes()
        for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            self.fails("not an npz file, or only part", data.load, name)

    def test_a_lone_npy_is_no_npz(self):
        np.save(self.folder / "x.npy", np.zeros(3))
        self.fails("not an npz file", data.load, f"npz:{self.folder / 'x.npy'}")

    def test_images_beyond_the_memory_say_how(self):
        name = self.npz(own())
        with mock.patch("numpy.load", side_effect=MemoryError("Unable to allocate")):
            self.fails("(?s)Unable to allocate.*numpy.save a file", data.load, name)

    def test_header_that_promises_too_much(self):
        name = self.npy(own())
        path = self.folder / "train_images.npy"
        path.write_bytes(path.read_bytes().replace(b"(9, 4,", b"(9999,"))
        self.fails("cannot be read", data.load, name)


# Values that a faulty npz could hold: any dtype, any small shape.
ANY_ARRAY = hnp.arrays(
    dtype=st.one_of(hnp.scalar_dtypes(), hnp.unicode_string_dtypes(max_len=3)),
    shape=hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
)
NEARLY_LABELS = hnp.arrays(np.int64, st.integers(5, 10), elements=st.integers(-1, 4))


class MalformedOwnDataTest(DataTestCase):
    def load_or_data_error(self, name):
        try:
            dataset = data.load(name)
        except data.DataError as error:
            self.assertLessEqual(len(str(error).splitlines()), 2)
            return
        self.assertEqual(dataset.train_images.shape[:1], dataset.train_labels.shape)
        self.assertEqual(dataset.test_images.shape[1:], dataset.input_shape)
        np.testing.assert_array_equal(
            np.unique(dataset.train_labels), np.arange(dataset.num_classes)
        )
        self.assertTrue(np.isfinite(dataset.mean + dataset.std).all())

    @settings(max_examples=200, deadline=None)
    @given(
        st.dictionaries(
            st.sampled_from((*ARRAYS, "classes")),
            st.one_of(ANY_ARRAY, NEARLY_LABELS, st.none()),
            max_size=3,
        ),
        st.booleans(),
    )
    def test_any_arrays(self, changes, as_folder):
        for stale in self.folder.glob("*.np?"):
            stale.unlink()
        write = self.npy if as_folder else self.npz
        self.load_or_data_error(write(own(**changes)))

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_any_damage(self, draw):
        form = draw.draw(st.sampled_from(("npz", "npy")))
        name = getattr(self, form)(own(classes=np.array(["a", "b", "c"])))
        files = [f"{key}.npy" for key in (*ARRAYS, "classes")]
        file = draw.draw(st.sampled_from(files)) if form == "npy" else "own.npz"
        path = self.folder / file
        raw = bytearray(path.read_bytes())
        place = st.integers(0, min(len(raw), 200) - 1) | st.integers(0, len(raw) - 1)
        for _ in range(draw.draw(st.integers(1, 4))):
            raw[draw.draw(place)] = draw.draw(st.integers(0, 255))
        path.write_bytes(raw[: draw.draw(st.just(len(raw)) | st.integers(0, len(raw)))])
        self.load_or_data_error(name)

    @settings(max_examples=50, deadline=None)
    @given(st.binary(max_size=300) | st.binary(max_size=300).map(b"PK\3\4".__add__))
    @example(b"PK\5\6" + bytes(18))  # a zip file without files
    def test_any_bytes(self, raw):
        (self.folder / "own.npz").write_bytes(raw)
        self.fails("", data.load, f"npz:{self.folder / 'own.npz'}")

    @settings(max_examples=100, deadline=None)
    @given(st.text(max_size=20))
    def test_any_name(self, name):
        if name in data.LOADERS:
            return
        self.fails("", data.load, name)
        self.fails("", data.load, f"npz:{self.folder}/{name}")


class RandomSplitTest(DataTestCase):
    @parameterized.parameters((0.1, 3), (0.29, 9), (0.5, 15), (0.02, 1))
    def test_is_a_partition(self, fraction, count):
        split = data.random_split(toy(), fraction, seed=4)
        self.assertLen(split.forget, count)
        self.assertEqual(split.forget.dtype, np.int32)
        for part in (split.forget, split.retain):
            self.assertTrue((np.diff(part) > 0).all())
        both = np.concatenate([split.forget, split.retain])
        np.testing.assert_array_equal(np.sort(both), np.arange(30))
        np.testing.assert_array_equal(split.test, np.arange(12))

    def test_the_seed_decides_for_ever(self):
        split = data.random_split(toy(), 0.2, seed=0)
        self.assertEqual(split.forget.tolist(), [2, 3, 11, 13, 20, 21])
        other = data.random_split(toy(), 0.2, seed=1)
        self.assertNotEqual(split.forget.tolist(), other.forget.tolist())

    def test_every_image_is_as_likely(self):
        drawn = np.zeros(30)
        for seed in range(2000):
            drawn[data.random_split(toy(), 0.2, seed).forget] += 1
        np.testing.assert_allclose(drawn, 400, atol=90)  # 5 standard deviations

    @parameterized.parameters(0, 1, -0.1, 1.5, float("nan"), float("inf"))
    def test_fraction_outside(self, fraction):
        self.fails("fraction is", data.random_split, toy(), fraction, 0)
        self.fails("fraction is", data.validation_split, toy(), fraction, 0)

    def test_seed_below_zero(self):
        self.fails("seed is -1", data.random_split, toy(), 0.1, -1)

    def test_nothing_forgotten_or_retained(self):
        self.fails("^0 of the 30", data.random_split, toy(), 0.001, 0)
        self.fails("^30 of the 30", data.random_split, toy(), 0.999, 0)

    def test_a_class_may_not_vanish(self):
        self.fails("No training image of", data.random_split, toy(), 0.96, 0)


class ClassSplitTest(DataTestCase):
    @parameterized.parameters("bee", "1", 1)
    def test_by_name_and_by_number(self, forget_class):
        dataset = toy()
        split = data.class_split(dataset, forget_class)
        np.testing.assert_array_equal(split.forget, np.arange(1, 30, 3))
        self.assertEqual(set(dataset.train_labels[split.retain]), {0, 2})
        self.assertEqual(set(dataset.test_labels[split.test]), {0, 2})
        self.assertLen(split.retain, 20)
        self.assertLen(split.test, 8)

    def test_a_name_goes_before_a_number(self):
        dataset = dataclasses.replace(toy(), classes=("2", "0", "1"))
        split = data.class_split(dataset, "0")
        np.testing.assert_array_equal(split.forget, np.arange(1, 30, 3))

    @parameterized.parameters("wasp", "3", -1, 3, "", "1.0")
    def test_no_such_class(self, forget_class):
        self.fails("no class .* ant, bee, cow", data.class_split, toy(), forget_class)

    def test_many_classes_are_not_all_listed(self):
        names = tuple(f"class {i}" for i in range(100))
        dataset = dataclasses.replace(toy(), classes=names)
        message = self.fails("100 in all", data.class_split, dataset, "x")
        self.assertLess(len(message), 400)

    @parameterized.parameters("ant,bee", "0,1", "bee, 0", "1,0,1")
    def test_several_classes(self, forget_class):
        dataset = toy()
        split = data.class_split(dataset, forget_class)
        self.assertEqual(set(dataset.train_labels[split.forget]), {0, 1})
        self.assertEqual(set(dataset.train_labels[split.retain]), {2})
        self.assertEqual(set(dataset.test_labels[split.test]), {2})
        self.assertLen(split.forget, 20)

    def test_a_name_with_a_comma_is_one_name(self):
        dataset = dataclasses.replace(toy(), classes=("ant", "bee, wild", "cow"))
        self.assertEqual(data.class_numbers(dataset, "bee, wild"), [1])

    def test_several_classes_that_are_not_there_or_all(self):
        self.fails("no class 'wasp'", data.class_split, toy(), "ant,wasp")
        self.fails("no class ''", data.class_split, toy(), "ant,")
        self.fails("^30 of the 30", data.class_split, toy(), "ant,bee,cow")

    def test_nothing_left_to_test_on(self):
        dataset = dataclasses.replace(toy(), test_labels=np.zeros(12, np.int32))
        self.fails("nothing is left to test", data.class_split, dataset, "ant")


class IndexSplitTest(DataTestCase):
    def write(self, content):
        path = self.folder / "forget.txt"
        path.write_bytes(content)
        return path

    @parameterized.parameters(
        b"7\n3\n", b"# two\n\n  3\t# why\r\n7", b"\xef\xbb\xbf7\n3", b"007\n3\n#\n"
    )
    def test_reads(self, content):
        split = data.index_split(toy(), self.write(content))
        self.assertEqual(split.forget.tolist(), [3, 7])
        self.assertLen(split.retain, 28)
        self.assertLen(split.test, 12)

    @parameterized.named_parameters(
        ("word", b"3\n\nseven\n", "Line 3 of .* holds 'seven'.*0 to 29"),
        ("negative", b"-1", "Line 1 .* '-1'"),
        ("out_of_range", b"1\n30", "Line 2 .* '30'.*from 0 to 29"),
        ("enormous", b"1\n" + b"9" * 9000, "Line 2 .* '9{40}'"),
        ("fraction", b"1.0", "Line 1 .* '1.0'"),
        ("two_on_a_line", b"1, 2", "Line 1 .* '1, 2'"),
        ("underscore", b"1_0", "Line 1 .* '1_0'"),
        ("foreign_digit", "٣".encode(), "Line 1 "),
        ("repeated", b"5\n1\n05", "Line 3 of .* repeats the index 5 of line 1"),
        ("empty", b"", "lists no index"),
        ("comments_only", b"# 1\n\n", "lists no index"),
        ("binary", b"\x80\x81\xff", "cannot be read"),
        ("utf16", "3\n7".encode("utf-16"), "cannot be read"),
        ("everything", b"\n".join(b"%d" % i for i in range(30)), "^30 of the 30"),
    )
    def test_fault(self, content, pattern):
        self.fails(pattern, data.index_split, toy(), self.write(content))

    def test_a_whole_class_is_left_out_of_the_test_images_too(self):
        path = self.write(b"\n".join(b"%d" % i for i in [0, *range(1, 30, 3)]))
        split = data.index_split(toy(), path)
        by_class = data.class_split(toy(), "bee")
        np.testing.assert_array_equal(split.test, by_class.test)
        self.assertLen(split.forget, 11)

    def test_several_lists_are_one(self):
        other = self.folder / "other list.txt"
        other.write_text("7\n4")
        for between in (",", " , ", ",,"):
            paths = f"{self.write(b'3')}{between}{other}"
            self.assertEqual(data.index_split(toy(), paths).forget.tolist(), [3, 4, 7])
        # What both ask for is forgotten once.
        paths = f"{self.write(b'7')},{other}"
        self.assertEqual(data.index_split(toy(), paths).forget.tolist(), [4, 7])
        self.fails("no file .*none.txt", data.index_split, toy(), f"{other},none.txt")
        self.fails(
            "Line 1 of .*forget.txt",
            data.index_split,
            toy(),
            f"{other},{self.write(b'x')}",
        )

    def test_a_name_may_hold_a_comma(self):
        path = self.folder / "a,b.txt"
        path.write_text("5")
        self.assertEqual(data.index_split(toy(), path).forget.tolist(), [5])

    def test_no_file(self):
        self.fails("no file .*none.txt", data.index_split, toy(), "/none.txt")
        self.fails("cannot be read", data.index_split, toy(), self.folder)
        self.fails("do not print", data.index_split, toy(), "a\nb")

    @settings(max_examples=300, deadline=None)
    @given(
        st.one_of(
            st.binary(max_size=50),
            st.text(max_size=50).map(lambda text: text.encode("utf-8", "replace")),
            st.lists(
                st.integers(-3, 33).map(str) | st.sampled_from(["", "#", "1 2", "x"])
            ).map(lambda lines: "\n".join(lines).encode()),
        )
    )
    def test_any_content(self, content):
        path = self.write(content)
        try:
            split = data.index_split(toy(), path)
        except data.DataError:
            return
        lines = [line.split(b"#")[0] for line in content.splitlines()]
        expected = sorted(int(line) for line in lines if line.strip())
        self.assertEqual(split.forget.tolist(), expected)


class ForgottenTest(DataTestCase):
    """Images that were forgotten before are neither retained nor forgotten again."""

    @parameterized.named_parameters(
        ("random", lambda x: data.random_split(toy(), 0.2, 0, x)),
        ("class", lambda x: data.class_split(toy(), "cow", x)),
    )
    def test_is_a_partition(self, split_of):
        forgotten = np.array([0, 2, 4, 11])
        split = split_of(forgotten)
        np.testing.assert_array_equal(split.forgotten, forgotten)
        parts = np.concatenate([split.forget, split.retain, split.forgotten])
        np.testing.assert_array_equal(np.sort(parts), np.arange(30))
        for part in (split.forget, split.retain, split.test):
            self.assertTrue((np.diff(part) > 0).all())

    def test_draws_a_share_of_what_is_left(self):
        before = data.random_split(toy(), 0.2, seed=0).forget
        after = data.random_split(toy(), 0.25, seed=0, forgotten=before)
        self.assertLen(after.forget, 6)  # a quarter of 24
        self.assertLen(after.retain, 18)

    def test_asked_for_twice(self):
        path = self.folder / "forget.txt"
        path.write_text("3\n7\n8")
        message = self.fails(
            "2 of .* are forgotten already, 7 among them",
            data.index_split,
            toy(),
            path,
            np.array([7, 8, 9]),
        )
        self.assertIn("Take them off", message)

    def test_a_class_that_was_forgotten_is_not_tested_on(self):
        bees = data.class_split(toy(), "bee").forget
        split = data.random_split(toy(), 0.2, 0, bees)
        self.assertEqual(set(toy().test_labels[split.test]), {0, 2})
        self.fails("^0 of the 30.*10 forgotten", data.class_split, toy(), "bee", bees)


class ValidationSplitTest(DataTestCase):
    def test_moves_training_images_to_test(self):
        dataset = toy()
        tuning = data.validation_split(dataset, 0.2, seed=0)
        self.assertLen(tuning.train_images, 24)
        self.assertLen(tuning.test_images, 6)
        pixels = np.concatenate([tuning.train_images, tuning.test_images]).ravel()
        labels = np.concatenate([tuning.train_labels, tuning.test_labels])
        np.testing.assert_array_equal(np.sort(pixels), np.arange(30))
        np.testing.assert_array_equal(labels, pixels % 3)
        self.assertEqual(tuning.classes, dataset.classes)

    def test_has_moments_of_its_own(self):
        dataset = toy()
        whole = dataset.mean
        tuning = data.validation_split(dataset, 0.2, seed=0)
        expected = (tuning.train_images / 255).mean((0, 1, 2))
        np.testing.assert_allclose(tuning.mean, expected, rtol=1e-6)
        self.assertNotEqual(tuning.mean, whole)

    def test_the_seed_decides(self):
        first, again, other = (
            data.validation_split(toy(), 0.2, seed).test_images.tolist()
            for seed in (0, 0, 1)
        )
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)

    def test_a_class_may_not_vanish(self):
        self.fails("No training image of", data.validation_split, toy(), 0.96, 0)


class SubsetTest(DataTestCase):
    def test_keeps_some_training_images_with_their_labels_and_all_test_images(self):
        dataset = toy()
        some = data.subset(dataset, 12)
        self.assertLen(some.train_labels, 12)
        pixels = some.train_images.ravel()
        self.assertLen(set(pixels.tolist()), 12)
        self.assertTrue((np.diff(pixels.astype(int)) > 0).all())  # in their old order
        np.testing.assert_array_equal(some.train_labels, pixels % 3)
        np.testing.assert_array_equal(some.test_images, dataset.test_images)
        self.assertNotEqual(some.fingerprint, dataset.fingerprint)

    def test_a_smaller_one_is_a_part_of_a_larger(self):
        small, large = (data.subset(toy(), n).train_images.ravel() for n in (9, 20))
        self.assertContainsSubset(small.tolist(), large.tolist())

    def test_refuses_more_than_there_are_and_lost_classes(self):
        total = len(toy().train_labels)
        self.fails(f"{total + 1} training images", data.subset, toy(), total + 1)
        self.fails("none is of", data.subset, toy(), 1)


if __name__ == "__main__":
    absltest.main()
