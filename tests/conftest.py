"""Eight host devices, set before JAX starts, so that sharding is tested everywhere."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
