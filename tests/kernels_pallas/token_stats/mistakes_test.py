import jax
import jax.numpy as jnp
import pytest

from kernels_pallas.token_stats import StatSpec, token_stats


def test_mistakes_are_named():
  hidden_RxD, unembed_VxD = jnp.zeros((2, 4)), jnp.zeros((5, 4))
  key_R = jax.random.split(jax.random.key(0), 2)
  sampled, current = StatSpec(temperature=1.0), StatSpec(current=True)
  with pytest.raises(ValueError, match=r"hidden \(2, 4\) and unembed \(5, 3\)"):
    token_stats(hidden_RxD, jnp.zeros((5, 3)), StatSpec())
  with pytest.raises(ValueError, match=r"forbidden ids \[5\] must lie in \[0, 5\)"):
    token_stats(hidden_RxD, unembed_VxD, StatSpec(forbidden=(1, 5)))
  with pytest.raises(ValueError, match="all 5 ids are forbidden"):
    token_stats(hidden_RxD, unembed_VxD, StatSpec(forbidden=tuple(range(5))))
  with pytest.raises(ValueError, match=r"outside ids \[-1\] must lie in \[0, 5\)"):
    token_stats(hidden_RxD, unembed_VxD, StatSpec(outside=(4, -1)))
  with pytest.raises(ValueError, match="confidence='cut' is not one of plain, tempered, shaped"):
    StatSpec(confidence="cut")
  with pytest.raises(ValueError, match="top_p_of='dream' is not one of top_k, all"):
    StatSpec(top_p_of="dream")
  with pytest.raises(ValueError, match="top_p_rule='strict' is not one of reach, within"):
    StatSpec(top_p_rule="strict")
  with pytest.raises(ValueError, match=r"soft_cap=0\.0 must be positive"):
    token_stats(hidden_RxD, unembed_VxD, StatSpec(), soft_cap=0.0)
  with pytest.raises(ValueError, match="needs current_R"):
    token_stats(hidden_RxD, unembed_VxD, current)
  with pytest.raises(ValueError, match=r"current_R must be an integer for each of 2 rows"):
    token_stats(hidden_RxD, unembed_VxD, current, current_R=jnp.zeros(2))
  with pytest.raises(ValueError, match="needs gather_id_RxJ"):
    token_stats(hidden_RxD, unembed_VxD, StatSpec(gather=True))
  with pytest.raises(ValueError, match=r"gather_id_RxJ must be integers \[2, J\], not int32\(2,\)"):
    gather_id_R = jnp.zeros(2, jnp.int32)
    token_stats(hidden_RxD, unembed_VxD, StatSpec(gather=True), gather_id_RxJ=gather_id_R)
  with pytest.raises(ValueError, match="needs embed_VxD"):
    token_stats(hidden_RxD, unembed_VxD, StatSpec(soft=True))
  with pytest.raises(ValueError, match=r"embed_VxD must be \[5, D\], not \(4, 5\)"):
    token_stats(hidden_RxD, unembed_VxD, StatSpec(soft=True), embed_VxD=unembed_VxD.T)
  with pytest.raises(ValueError, match=r"temperature=1\.0 needs key_R"):
    token_stats(hidden_RxD, unembed_VxD, sampled)
  with pytest.raises(ValueError, match=r"temperature=0\.5 must be 0 with per_row=True"):
    StatSpec(temperature=0.5, per_row=True)
  with pytest.raises(ValueError, match=r"per_row=True needs temperature_R"):
    token_stats(hidden_RxD, unembed_VxD, StatSpec(per_row=True), key_R=key_R)
  with pytest.raises(ValueError, match=r"temperature_R must be \[2\], not \(3,\)"):
    warm = {"key_R": key_R, "temperature_R": jnp.ones(3)}
    token_stats(hidden_RxD, unembed_VxD, StatSpec(per_row=True), **warm)
  with pytest.raises(ValueError, match=r"top_p_R must be a float32 for each of 2 rows"):
    token_stats(hidden_RxD, unembed_VxD, StatSpec(), top_p_R=jnp.ones(3))
  with pytest.raises(ValueError, match=r"allowed_RxU must be uint32\(2, 1\), not int32\(2, 1\)"):
    token_stats(hidden_RxD, unembed_VxD, StatSpec(), allowed_RxU=jnp.ones((2, 1), jnp.int32))
  with pytest.raises(ValueError, match="must hold 2 typed keys"):
    token_stats(hidden_RxD, unembed_VxD, sampled, key_R=key_R[:1])
  with pytest.raises(ValueError, match="threefry2x32"):
    rbg_R = jax.random.split(jax.random.key(0, impl="rbg"), 2)
    token_stats(hidden_RxD, unembed_VxD, sampled, key_R=rbg_R)
  with pytest.raises(ValueError, match="implementation='cuda' must name some of reference"):
    token_stats(hidden_RxD, unembed_VxD, StatSpec(), implementation="cuda")
