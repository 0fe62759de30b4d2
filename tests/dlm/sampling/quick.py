"""For programs that a test compiles and runs a few times: optimising them would cost more."""

QUICK = {"xla_backend_optimization_level": 0}  # compiler_options of jax.jit
