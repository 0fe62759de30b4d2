"""What the op means, in plain float64 numpy."""

import jax
import numpy as np


def keys(rows, seed=0):
  return jax.random.key_data(jax.random.split(jax.random.key(seed), rows))


def best_with_mass(z_V, spec):
  """The set of best logits that holds top_p of the mass of `z` (sorted): its lowest logit."""
  p_V = np.exp((z_V - z_V[0]) / spec.divisor(None))
  p_V /= p_V.sum()
  if spec.top_p_rule == "within":  # value by value, as long as there is room; the best anyway
    fits = [z for z in z_V if p_V[z_V >= z].sum() <= spec.top_p]
    return min(fits, default=z_V[0])
  return z_V[np.argmax(np.cumsum(p_V) >= spec.top_p)]


def kept(z_V, spec):
  """Bool [V]: what top-k and top-p leave, in the order of whoever uses them so. Ties stay or go."""
  left_N = -np.sort(-z_V[z_V > -np.inf])
  if spec.top_p < 1 and spec.top_p_of == "all":  # as Dream does it: top-p goes first
    left_N = left_N[left_N >= best_with_mass(left_N, spec)]
  if 0 < spec.top_k < len(left_N):
    left_N = left_N[left_N >= left_N[spec.top_k - 1]]
  if spec.top_p < 1 and spec.top_p_of == "top_k":
    left_N = left_N[left_N >= best_with_mass(left_N, spec)]
  return z_V >= left_N[-1]


def allowed(z_RxV, spec):
  z_RxV = np.array(z_RxV, np.float64)
  z_RxV[:, list(spec.forbidden)] = -np.inf
  return z_RxV


def shaped(z_RxV, spec):
  """Tempered and cut logits."""
  z_RxV = allowed(z_RxV, spec)
  kept_RxV = np.stack([kept(z_V, spec) for z_V in z_RxV])
  return np.where(kept_RxV, z_RxV / spec.divisor(None), -np.inf)


def told(z_RxV, spec):
  """The logits whose statistics are asked for."""
  if spec.confidence == "shaped":
    return shaped(z_RxV, spec)
  return allowed(z_RxV, spec) / (spec.divisor(None) if spec.confidence == "tempered" else 1)


def lse(z_RxV):
  best_Rx1 = z_RxV.max(1, keepdims=True)
  return best_Rx1[:, 0] + np.log(np.exp(z_RxV - best_Rx1).sum(1))


def truth(z_RxV, spec, current_R):
  """Statistics and argmax of float64 logits: the plain ones, or whichever are given."""
  z_RxV = allowed(z_RxV, spec)
  best_RxV = -np.sort(-z_RxV, axis=1)
  log_p_RxV = z_RxV - lse(z_RxV)[:, None]
  p_RxV = np.exp(log_p_RxV)
  return {
    "token": z_RxV.argmax(1),
    "logit": z_RxV.max(1),
    "top1": best_RxV[:, 0],
    "lse": lse(z_RxV),
    "top2": best_RxV[:, 1],
    "entropy": -np.where(p_RxV > 0, p_RxV * np.where(p_RxV > 0, log_p_RxV, 0), 0).sum(1),
    "current": z_RxV[np.arange(len(z_RxV)), current_R],
  }


def assert_equal_stats(stats, expected, rtol=1e-6, atol=4e-6):
  for name, value_R in expected.items():
    actual_R = np.asarray(getattr(stats, name))
    assert actual_R.dtype == (np.int32 if name == "token" else np.float32), name
    np.testing.assert_allclose(actual_R, value_R, rtol=rtol, atol=atol, err_msg=name)
