"""A vocabulary split over devices: the same statistics, and no logits cross between them."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dlm import parallel
from kernels_pallas.token_stats import StatSpec, token_stats

R, D, V, J = 8, 16, 48, 3
EVERYTHING = dict(
  top2=True, entropy=True, current=True, gather=True, soft=True, best=4, outside=(5, 40)
)
SPECS = [
  StatSpec(**EVERYTHING, forbidden=(0, 1, 47)),
  StatSpec(**EVERYTHING, temperature=0.7, top_p=0.8),
  StatSpec(**EVERYTHING, temperature=1.3, top_k=6, confidence="shaped"),
  StatSpec(**EVERYTHING, temperature=1.3, top_k=6, confidence="tempered"),
  StatSpec(temperature=1.0, top_k=5, top_p=0.7, top_p_of="all", top_p_rule="within"),
]


def arrays(width):
  """Logits of few values, so that there are ties between devices."""
  keys = jax.random.split(jax.random.key(0), 5)
  return {
    "hidden_RxD": jnp.round(jax.random.normal(keys[0], (R, D))),
    "unembed_VxD": jnp.round(jax.random.normal(keys[1], (V, D))),
    "current_R": jax.random.randint(keys[2], (R,), -1, V),
    "gather_id_RxJ": jax.random.randint(keys[3], (R, J), 0, V),
    "embed_VxD": jax.random.normal(keys[4], (V, width)),
  }


def compute(spec, implementation, a):
  return token_stats(
    a["hidden_RxD"],
    a["unembed_VxD"],
    spec,
    current_R=a["current_R"],
    key_R=jax.random.split(jax.random.key(9), R) if spec.temperature else None,
    gather_id_RxJ=a["gather_id_RxJ"],
    embed_VxD=a["embed_VxD"],
    implementation=implementation,
  )


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("sizes", [(2, 2, 2, 1), (1, 1, 8, 1)])
def test_statistics_of_a_split_vocabulary(spec, sizes):
  mesh, whole = parallel.make_mesh(*sizes), arrays(width=4)
  by_row, by_id = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P("tensor"))
  split = {name: jax.device_put(x, by_id if "_V" in name else by_row) for name, x in whole.items()}
  run = parallel.over_batch(
    lambda a: compute(spec, None, a), mesh, batched_in=(False,), batched_out=True
  )
  got = jax.jit(run)(split)
  expected = vars(jax.jit(lambda a: compute(spec, "reference", a))(whole))
  for name, value in expected.items():
    if value is not None:
      np.testing.assert_allclose(getattr(got, name), value, rtol=2e-5, atol=1e-5, err_msg=name)


def test_only_statistics_cross_between_devices():
  mesh, spec = parallel.make_mesh(2, 1, 4, 1), SPECS[0]
  run = parallel.over_batch(
    lambda a: compute(spec, None, a), mesh, batched_in=(False,), batched_out=True
  )
  whole = arrays(width=4)
  split = {
    name: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=NamedSharding(mesh, P("tensor" if "_V" in name else "data"))
    )
    for name, x in whole.items()
  }
  text = jax.jit(run).lower(split).compile().as_text()
  sizes = [
    math.prod(map(int, shape.split(",")))
    for line in text.splitlines()
    if re.search(r"= .*(all-gather|all-reduce|all-to-all|collective-permute)\(", line)
    for shape in re.findall(r"[a-z]\d+\[([\d,]+)\]", line.split("(")[0])
  ]
  assert sizes and max(sizes) <= R * 4 * 4  # four devices' columns and soft rows of width 4
  assert 2 * max(sizes) < R * V
