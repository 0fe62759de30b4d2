"""Eight CPU devices, asked for before jax starts: `pytest tests/multidevice` is its own process."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
