"""Times of a batch: n numbers in [0, 1), one for each stratum, from n uniforms.

`stratum_n` is a permutation of 0..n-1 that says which n-th of [0, 1) an item draws from. `draw`
shuffles it, because rows that lie next to each other in a corpus must not share a noise level;
the authors' codes use 0, 1, ... n-1. n counts the items of the global batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dlm.types import Array


def iid(u_n: Array, stratum_n: Array) -> Array:
  """Independent times (LLaDA)."""
  del stratum_n
  return u_n


def stratified(u_n: Array, stratum_n: Array) -> Array:
  """One time in each n-th of [0, 1), jittered independently (MDLM and BD3-LM: "antithetic")."""
  n = u_n.shape[0]
  return (u_n / n + stratum_n / n) % 1


def shared_offset(u_n: Array, stratum_n: Array) -> Array:
  """An even grid of n times, moved as a whole by the first uniform (MD4 and SMDM)."""
  return (u_n[0] + stratum_n / u_n.shape[0]) % 1


TIMES: dict[str, Callable[[Array, Array], Array]] = {
  "iid": iid,
  "stratified": stratified,
  "shared_offset": shared_offset,
}


def check(owner: str, name: str) -> None:
  """Raises ValueError unless `name` is one of TIMES."""
  if name not in TIMES:
    raise ValueError(f"{owner}: times={name!r} is not one of {', '.join(TIMES)}")


def draw(key: Array, n: int) -> dict[str, Array]:
  """Uniforms and shuffled strata for n times."""
  key_time, key_stratum = jax.random.split(key)
  return {
    "u_time": jax.random.uniform(key_time, (n,)),
    "stratum": jax.random.permutation(key_stratum, jnp.arange(n)),
  }
