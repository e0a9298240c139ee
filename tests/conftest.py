"""Eight host devices and one BLAS thread, set before JAX starts.

Sharding is then tested everywhere, and LAPACK does not spin on a busy machine.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax

jax.config.update("jax_num_cpu_devices", 8)


def pytest_configure(config):
    """Quick tests spend their time compiling: without optimisations, a third less.

    ``-m slow`` and ``-m ''`` compile as a user's program does.
    """
    if config.option.markexpr == "not slow":
        jax.config.update("jax_disable_most_optimizations", True)
