"""The one rule for seeds: jax keeps their low 32 bits alone, so 2^32 would draw what 0 draws."""

SEEDS = 2**32


def check_seed(seed: int, name: str = "seed") -> int:
  """The seed itself. ValueError where it is no whole number in [0, 2^32)."""
  if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < SEEDS:
    raise ValueError(f"{name}={seed!r} must be a whole number from 0 to 2^32 - 1")
  return seed
