"""Eight host devices and one BLAS thread, set before JAX starts.

Sharding is then tested everywhere, and LAPACK does not spin on a busy machine.
"""

import os
import pathlib

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest

from experiments.engine import programs

jax.config.update("jax_num_cpu_devices", 8)


def pytest_configure(config):
    """Quick tests spend their time compiling: this takes half of it.

    ``-m slow`` and ``-m ''`` compile as a user's program does.
    """
    if config.option.markexpr == "not slow":
        jax.config.update("jax_disable_most_optimizations", True)
        # Read when the first array is made, and by the processes that tests start.
        os.environ["XLA_FLAGS"] = (
            os.environ.get("XLA_FLAGS", "")
            + " --xla_cpu_use_fusion_emitters=false"
            + " --xla_cpu_parallel_codegen_split_count=1"
        )


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Each program on CPU maps memory, and Linux allows a process 65,530 maps.

    One that holds the programs of all tests ends in a segmentation fault of the
    compiler.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        programs.clear()
        jax.clear_caches()
