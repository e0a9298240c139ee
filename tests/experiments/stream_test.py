"""Images that exceed the memory are streamed from disk, and memory stays flat."""

import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import jax
import numpy as np
import pytest
from absl.testing import absltest
from flax import linen

from experiments.classification import __main__ as classification

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
MODULE = "tests.experiments.stream_test"
COUNT, SIZE = 2048, 128  # 100 MB of images, ten times the budget below


class Coarse(linen.Module):
    """Looks at means of 32×32 pixels."""

    num_classes: int
    input_shape: tuple[int, int, int]

    @linen.compact
    def __call__(self, x):
        x = linen.avg_pool(x, (32, 32), strides=(32, 32))
        return linen.Dense(self.num_classes)(x.reshape(len(x), -1))


def main(arguments: list[str]) -> int:
    """The main job; then the most anonymous memory that it held, in MB."""
    peak, ended = [0.0], threading.Event()

    def watch():
        while not ended.is_set():
            status = pathlib.Path("/proc/self/status").read_text()
            kilobytes = int(status.split("RssAnon:")[1].split()[0])
            peak[0] = max(peak[0], kilobytes / 1e3)
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = classification.main(arguments)
    ended.set()
    watcher.join()
    print(f"peak {peak[0]}")
    return code


@absltest.skipUnless(pathlib.Path("/proc/self/status").exists(), "needs Linux")
class StreamTest(absltest.TestCase):
    def test_memory_stays_flat_where_images_exceed_the_budget(self):
        with tempfile.TemporaryDirectory() as folder:
            data = pathlib.Path(folder) / "data"
            write(data)
            streamed = self.peak(folder, data, memory="0.01")
            held = self.peak(folder, data, memory="1")
        megabytes = COUNT * SIZE * SIZE * 3 / 1e6
        self.assertGreater(megabytes, 100)
        self.assertGreater(held - streamed, 0.7 * megabytes)

    def peak(self, folder, data, memory) -> float:
        """Peak of a study in a process of its own."""
        flags = (
            *(
                "--dataset",
                f"npz:{data}",
                "--model",
                f"{MODULE}:Coarse",
            ),
            *("--methods", "ufg", "--seeds", "1", "--train.epochs", "1"),
            *("--recipe.epochs", "1", "--recipe.sampled", "True", "--cache", "None"),
            *("--train.learning-rate", "0.001", "--train.batch-size", "64"),
            *("--memory", memory, "--out", f"{folder}/{memory}"),
        )
        run = subprocess.run(
            [sys.executable, "-m", MODULE, *flags],
            cwd=ROOT,
            # Both compile: what one of them found in a cache would look like room.
            env=os.environ
            | {"STREAM": "1", "JAX_PLATFORMS": "cpu"}
            | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(run.returncode, 0, run.stderr)
        return float(run.stdout.rsplit("peak", 1)[1])


def write(folder: pathlib.Path) -> None:
    """A data set of four classes, one ``npy`` file an array."""
    folder.mkdir()
    labels = np.arange(COUNT) % 4
    shape = (COUNT, SIZE, SIZE, 3)
    path = folder / "train_images.npy"
    images = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    images[:] = 40 * labels[:, None, None, None]
    np.save(folder / "test_images.npy", images[:64])
    np.save(folder / "train_labels.npy", labels)
    np.save(folder / "test_labels.npy", labels[:64])


if __name__ == "__main__":
    if "STREAM" in os.environ:
        jax.config.update("jax_num_cpu_devices", 1)
        sys.exit(main(sys.argv[1:]))
    absltest.main()
