"""Statistics of softmax(hidden @ unembed.T) per row, in passes over vocabulary tiles.

A diffusion sampler needs from the logits a token, how sure the model is of it, and little else. So
[rows, vocabulary] logits, the largest array of a decoding step, never have to exist.
"""

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch, shards, vocabulary
from kernels_pallas.token_stats import gpu, reference, tpu, xla
from kernels_pallas.token_stats.spec import Inputs, StatSpec, TokenStats

__all__ = ["IMPLEMENTATIONS", "Inputs", "StatSpec", "TokenStats", "token_stats"]

Array = jax.Array

IMPLEMENTATIONS = {
  "reference": reference.token_stats,
  "xla": xla.token_stats,
  "tpu": tpu.token_stats,
  "gpu": gpu.token_stats,
}


def token_stats(
  hidden_RxD: Array,
  unembed_VxD: Array,
  spec: StatSpec,
  *,
  current_R: Array | None = None,
  key_R: Array | None = None,
  gather_id_RxJ: Array | None = None,
  embed_VxD: Array | None = None,
  temperature_R: Array | None = None,
  soft_cap: float | None = None,
  divide_R: Array | None = None,
  top_p_R: Array | None = None,
  allowed_RxU: Array | None = None,
  implementation: str | None = None,
) -> TokenStats:
  """What `spec` asks of the logits `l = hidden @ unembed.T`, per row. Not differentiable.

  The candidate is the argmax of l (temperature 0), or of l / temperature + Gumbel noise over the
  ids that top-k and top-p keep: a draw from the tempered softmax. Equal logits are kept or cut
  together. The noise is a function of (row key, id), so all implementations draw alike.

  Forbidden ids count as -inf everywhere, in `current` too, and so do those that are cut if
  `spec.confidence` is "shaped". A row with a NaN logit has lse, entropy and soft NaN, and its
  candidate, top1 and top2 ignore the NaN ids. Where no id is left to choose, the token is the
  lowest one that is not forbidden, and its logit and top1 are -inf: such rows have probability NaN,
  and still never write a forbidden id.

  Args:
    hidden_RxD, unembed_VxD: float32 or bfloat16; products are summed in float32.
    current_R: int32 id that stands there now, needed iff `spec.current`. Outside [0, V): -inf.
    key_R: one typed threefry key a row, needed iff `spec.draws`.
    gather_id_RxJ: int32 ids whose plain logits are wanted, needed iff `spec.gather`. Outside
      [0, V): -inf.
    embed_VxD: what `spec.soft` averages, of any width, needed iff it does.
    temperature_R: float32, needed iff `spec.per_row`; the candidate of a row at 0 is its argmax.
    soft_cap: logits become `soft_cap * tanh(l / soft_cap)`.
    divide_R: float32, positive: what each row's logits are divided by after that, before all else.
    top_p_R: float32 in (0, 1], of rows that have one of their own in place of the spec's.
    allowed_RxU: uint32, ceil(V / 32) words a row: id v is forbidden to a row, as the spec's
      forbidden ids are to all, unless bit v % 32 of word v // 32 is set.
    implementation: one of `IMPLEMENTATIONS`; None: the best for this backend.
  """
  vocab = unembed_VxD.shape[0]
  vocabulary.check(
    "token_stats", hidden_RxD, unembed_VxD, forbidden=spec.forbidden, soft_cap=soft_cap
  )
  vocabulary.check_ids("token_stats", "outside", spec.outside, vocab)
  inputs = Inputs(
    key_data_Rx2=_key_data(key_R, hidden_RxD.shape[0], spec) if spec.draws else None,
    current_R=current_R if spec.current else None,
    gather_id_RxJ=gather_id_RxJ if spec.gather else None,
    embed_VxD=embed_VxD if spec.soft else None,
    temperature_Rx1=_column(temperature_R) if spec.per_row else None,
    divide_R=divide_R,
    top_p_R=top_p_R,
    allowed_RxU=allowed_RxU,
  )
  _check(spec, inputs, hidden_RxD.shape[0], vocab)

  def run(hidden_RxD: Array, unembed_VxD: Array, inputs: Inputs) -> TokenStats:
    return dispatch.run(
      "token_stats",
      IMPLEMENTATIONS,
      implementation,
      hidden_RxD,
      unembed_VxD,
      spec,
      inputs,
      held=vocabulary.held(unembed_VxD, vocab),
      soft_cap=soft_cap,
    )

  split = ("r", "t", Inputs("r", "r", "r", "t", "r", "r", "r", "r"))
  return shards.run(run, split, "r", hidden_RxD, unembed_VxD, inputs)


def _check(spec: StatSpec, inputs: Inputs, rows: int, vocab: int) -> None:
  """Raises ValueError where the arrays are not those that the spec asks for."""
  for name in ("divide_R", "top_p_R"):
    if (own_R := getattr(inputs, name)) is not None:
      vocabulary.check_number_per_row("token_stats", name, own_R, rows)
  words = (rows, -(-vocab // 32))
  allowed = inputs.allowed_RxU
  if allowed is not None and (allowed.shape != words or allowed.dtype != jnp.uint32):
    raise ValueError(
      f"token_stats: allowed_RxU must be uint32{words}, not {allowed.dtype}{allowed.shape}"
    )
  if spec.current:
    if inputs.current_R is None:
      raise ValueError("token_stats: spec.current=True needs current_R")
    vocabulary.check_per_row("token_stats", "current_R", inputs.current_R, rows)
  if spec.best > vocab:
    raise ValueError(f"token_stats: spec.best={spec.best} exceeds the vocabulary of {vocab}")
  if spec.gather:
    if inputs.gather_id_RxJ is None:
      raise ValueError("token_stats: spec.gather=True needs gather_id_RxJ")
    vocabulary.check_ids_per_row("token_stats", "gather_id_RxJ", inputs.gather_id_RxJ, rows)
  if spec.soft:
    if inputs.embed_VxD is None:
      raise ValueError("token_stats: spec.soft=True needs embed_VxD")
    shape = inputs.embed_VxD.shape
    if len(shape) != 2 or shape[0] != vocab:
      raise ValueError(f"token_stats: embed_VxD must be [{vocab}, D], not {shape}")
  if spec.per_row and inputs.temperature_Rx1.shape != (rows, 1):
    shape = inputs.temperature_Rx1.shape
    raise ValueError(f"token_stats: temperature_R must be [{rows}], not ({shape[0]},)")


def _column(temperature_R: Array | None) -> Array:
  if temperature_R is None:
    raise ValueError("token_stats: spec.per_row=True needs temperature_R")
  return temperature_R[:, None]


def _key_data(key_R: Array | None, rows: int, spec: StatSpec) -> Array:
  """The two words of each row's key."""
  if key_R is None:
    asked = "per_row=True" if spec.per_row else f"temperature={spec.temperature}"
    raise ValueError(f"token_stats: {asked} needs key_R, one key a row")
  if not jnp.issubdtype(key_R.dtype, jax.dtypes.prng_key) or key_R.shape != (rows,):
    raise ValueError(
      f"token_stats: key_R must hold {rows} typed keys, not {key_R.dtype}{key_R.shape}"
    )
  key_data_Rx2 = jax.random.key_data(key_R)
  if key_data_Rx2.shape != (rows, 2):
    raise ValueError(f"token_stats: key_R must hold threefry2x32 keys, not {key_R.dtype}")
  return key_data_Rx2
