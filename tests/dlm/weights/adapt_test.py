import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.weights.adapt import with_mask_row


def params(rows, *names, dtype="float32"):
  keys = jax.random.split(jax.random.key(0), len(names))
  tables = {n: jax.random.normal(k, (rows, 4)) for n, k in zip(names, keys, strict=True)}
  return {name: table.astype(dtype) for name, table in tables.items()} | {"layers": jnp.ones(2)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("names", [("embed",), ("embed", "unembed")])
@pytest.mark.parametrize("mask_id", [5, 7, 8])
def test_row_is_the_mean_of_those_before_it(names, mask_id, dtype):
  """Of 8 rows: in their midst, the last, and one more."""
  given = params(8, *names, dtype=dtype)
  before = jax.tree.map(lambda x: np.asarray(x, np.float32), given)
  after = with_mask_row(given, mask_id)
  assert after.keys() == before.keys()
  for name in names:
    want = np.concatenate([before[name], np.zeros((1, 4))])[: max(8, mask_id + 1)]
    want[mask_id] = jnp.asarray(before[name][:mask_id].mean(0)).astype(dtype)
    np.testing.assert_allclose(np.asarray(after[name], np.float32), want, rtol=1e-6, atol=1e-7)
    assert after[name].dtype == dtype


def test_row_may_not_leave_a_gap():
  with pytest.raises(ValueError, match="mask_id=9 must follow the last of the embedding's 8 rows"):
    with_mask_row(params(8, "embed"), 9)
