"""ModernBERT's layers beside what tests/conformance shows: training, and what is refused."""

import jax
import numpy as np
import pytest

from dlm.models import BertConfig, ModelConfig, bind
from dlm.objectives import Bd3lm, Mdlm
from tests.dlm.models.small import jitter
from tests.dlm.objectives import oracle

SIZES = dict(vocab=5, width=8, layers=4, heads=2, kv_heads=2, head_dim=4, mlp=12)
MODEL = bind(ModelConfig(**SIZES, bert=BertConfig(full_every=3, reach=2)))
BATCH = oracle.rows(oracle.sample(2, 12))


def test_it_learns_by_mdlm_and_every_parameter_with_it():
  params = jitter(jax.jit(MODEL.init)(jax.random.key(0)))
  assert sum(x.size for x in jax.tree.leaves(params)) == MODEL.config.n_params()

  @jax.jit
  def gradients(params):
    objective = Mdlm(4)
    noisy = objective.corrupt(jax.random.key(1), BATCH, 0)
    return jax.grad(lambda params: objective.loss(MODEL, params, noisy)[0].total)(params)

  flat = jax.tree_util.tree_leaves_with_path(gradients(params))
  for path, leaf in flat:
    of_layers = "layers" in path[0].key
    leaf = np.asarray(leaf).reshape(len(leaf) if of_layers else 1, -1)
    assert np.isfinite(leaf).all() and np.abs(leaf).sum(-1).all(), path


def test_two_streams_are_refused():
  noisy = Bd3lm(4, 4).corrupt(jax.random.key(1), BATCH, 0)
  with pytest.raises(ValueError, match="this model has local layers"):
    jax.eval_shape(lambda: Bd3lm(4, 4).loss(MODEL, jax.jit(MODEL.init)(jax.random.key(0)), noisy))


def test_its_cost_counts_what_local_layers_see():
  cost = MODEL.config.flops_per_token
  attention = 4 * 2 * 4
  assert cost(100) - cost(5) == attention * 2 * 95  # of two full layers; the others see 5
  assert cost(5) - cost(1) == attention * 4 * 4


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"qk_norm": True}, "qk_norm=True must be False with bert"),
    ({"dit": 8}, "dit=8 must be 0 with bert"),
    ({"layers": 1}, "layers=1 must be at least 2 with bert"),
  ],
)
def test_what_it_has_not_is_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    ModelConfig(**SIZES | {"bert": BertConfig()} | fields)
  with pytest.raises(ValueError, match="BertConfig: reach=0 must be at least 1"):
    BertConfig(reach=0)
