"""Masks proved on the real model: d logits_i / d embedding_j is 0 exactly where j is hidden."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.models import ModelConfig, bind
from kernels_pallas.block_attention import Keys, visible

L = 12
# Untied, and every input its own token: row j of the embedding's gradient is input j and no other.
MODEL = bind(
  ModelConfig(
    vocab=2 * L, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp=16, tied=False
  )
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
  return jax.jit(MODEL.init)(jax.random.key(0))


@jax.jit
def jacobian(params, mask, slot_W):
  """d logits [W, 3] / d embedding [V, D]; three logits tell as much as all."""
  tokens_1xW = jnp.arange(slot_W.shape[0], dtype=jnp.int32)[None]

  def logits_Wx3(embed_VxD):
    head = MODEL({**params, "embed": embed_VxD}, tokens_1xW, slot_BxW=slot_W[None], mask=mask).head
    return head.hidden_BxAxD[0] @ head.unembed_VxD[:3].T

  return jax.jacrev(logits_Wx3)(params["embed"])


def influence(params, mask, slot_W) -> np.ndarray:
  """Bool [W, W]: do the logits of input i depend on the embedding of input j?"""
  width = slot_W.shape[0]
  return np.asarray((jacobian(params, mask, slot_W)[:, :, :width] != 0).any((1, 3)))


def expected(rule) -> np.ndarray:
  """`rule(i, j)`, and every input depends on itself: through the residual stream if not seen."""
  i, j = np.indices((L, L))
  return rule(i, j) | (i == j)


SEGMENT = np.array([1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0])
BLOCK_OF = np.arange(L) // 4


@pytest.mark.parametrize(
  ("mask", "rule"),
  [
    pytest.param(lambda s: masks.Full()(s, L), lambda i, j: j >= 0, id="full"),
    pytest.param(lambda s: masks.Causal()(s, L), lambda i, j: j <= i, id="causal"),
    pytest.param(
      lambda s: masks.BlockCausal(4)(s, L), lambda i, j: j // 4 <= i // 4, id="block_causal"
    ),
    pytest.param(
      lambda s: masks.BlockCausal(5)(s, L), lambda i, j: j // 5 <= i // 5, id="ragged_block_causal"
    ),
    pytest.param(
      lambda s: masks.in_segments(masks.Causal()(s, L), jnp.asarray(SEGMENT)[None]),
      lambda i, j: (j <= i) & (SEGMENT[i] == SEGMENT[j]),
      id="segments",
    ),
    pytest.param(
      lambda s: masks.prompt_then_blocks(jnp.full_like(s, 5), 3),
      lambda i, j: (j < 5) | ((i >= 5) & ((j - 5) // 3 <= (i - 5) // 3)),
      id="prompt_then_blocks",
    ),
    pytest.param(
      lambda s: masks.within(masks.Full()(s, L), jnp.array([7])), lambda i, j: j < 7, id="padding"
    ),
    pytest.param(
      lambda s: masks.within(masks.Full()(s, L), jnp.array([0])), lambda i, j: j < 0, id="nothing"
    ),
    pytest.param(
      lambda s: masks.Full()(s, L).replace(
        dense_BxWxS=jnp.asarray(np.arange(L)[:, None] >= np.arange(L)[None] + 3)[None]
      ),
      lambda i, j: j <= i - 3,
      id="dense",
    ),
  ],
)
def test_gradients_flow_exactly_where_the_mask_allows(params, mask, rule):
  slot_L = jnp.arange(L, dtype=jnp.int32)
  np.testing.assert_array_equal(influence(params, mask(slot_L[None]), slot_L), expected(rule))


@pytest.mark.parametrize("block", [4, 5])
def test_noisy_clean_training_mask(params, block):
  """Noise sees its own block and strictly earlier clean ones; positions 0..L-1 come twice."""
  slot_2L = jnp.tile(jnp.arange(L, dtype=jnp.int32), 2)
  seen = influence(params, masks.noisy_clean(1, L, block), slot_2L)
  i, j = np.indices((L, L)) // block
  np.testing.assert_array_equal(seen[:L, :L], i == j, err_msg="noisy -> noisy: own block")
  np.testing.assert_array_equal(seen[:L, L:], i > j, err_msg="noisy -> clean: i == j leaks")
  np.testing.assert_array_equal(seen[L:, :L], np.zeros((L, L), bool), err_msg="clean -> noisy")
  np.testing.assert_array_equal(seen[L:, L:], i >= j, err_msg="clean -> clean: block-causal")


CUT = np.array([0, 0, 0, 0, 4, 5, 5, 5, 5, 9, 9, 9])  # blocks of 4 in documents of 5 and 7


@pytest.mark.parametrize(("noise", "clean"), [(True, True), (False, True), (True, False)])
def test_either_half_of_noisy_clean_may_be_causal(params, noise, clean):
  """Both for I-DLM, the clean one for Nemotron's joint loss; blocks begin where they are told."""
  slot_2L = jnp.tile(jnp.arange(L, dtype=jnp.int32), 2)
  mask = masks.noisy_clean_from(
    jnp.asarray(CUT, jnp.int32)[None], 4, causal_noise=noise, causal_clean=clean
  )
  documents = jnp.asarray(np.tile(CUT >= 5, 2), jnp.int32)[None]
  seen = influence(params, masks.in_segments(mask, documents), slot_2L)
  i, j = np.indices((L, L))
  same = (CUT[i] >= 5) == (CUT[j] >= 5)
  own, before = CUT[i] == CUT[j], CUT[j] < CUT[i]
  np.testing.assert_array_equal(seen[:L, :L], own & ((j <= i) | (not noise)))
  np.testing.assert_array_equal(seen[:L, L:], before & same)
  assert not seen[L:, :L].any()
  np.testing.assert_array_equal(seen[L:, L:], same & ((j <= i) if clean else own | before))


def test_noisy_clean_does_not_leak_labels(params):
  """A changed clean token of block 1 changes noisy logits of block 2 only."""
  block = 4
  slot_1x2L = jnp.tile(jnp.arange(L, dtype=jnp.int32), 2)[None]

  @jax.jit
  def hidden(tokens_1x2L):
    mask = masks.noisy_clean(1, L, block)
    return MODEL(params, tokens_1x2L, slot_BxW=slot_1x2L, mask=mask).head.hidden_BxAxD[0, :L]

  tokens = jnp.arange(2 * L, dtype=jnp.int32)[None]
  changed = tokens.at[0, L + block + 1].set(3)
  differs = np.asarray((hidden(tokens) != hidden(changed)).any(-1))
  np.testing.assert_array_equal(differs, BLOCK_OF == 2)


def test_a_context_hides_what_lies_farther_back():
  slot_1xL = jnp.arange(L)[None]
  seen = visible(masks.BlockCausal(2, context=6)(slot_1xL, L), Keys(slot_1xL))[0]
  i, j = np.indices((L, L)) // 2
  np.testing.assert_array_equal(seen, (j <= i) & (j > i - 3))


def test_block_causal_rejects_empty_blocks():
  with pytest.raises(ValueError, match="block=0"):
    masks.BlockCausal(0)
  with pytest.raises(ValueError, match="context=6 must be a multiple of block=4"):
    masks.BlockCausal(4, context=6)
