"""Eight host devices and one BLAS thread, set before JAX starts.

Sharding is then tested everywhere, and LAPACK does not spin on a busy machine.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax

jax.config.update("jax_num_cpu_devices", 8)
