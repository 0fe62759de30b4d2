"""Operations that a diffusion language model spends its time in. Imports jax only.

One folder an operation: `reference.py` is the definition in plain jnp, the other files compute the
same in less memory or time, and `__init__.py` checks arguments and names the implementations.
"""
