"""dKV-Cache's two samplers for LLaDA (arXiv 2505.15781), as the authors' code runs them."""

import jax.numpy as jnp
import numpy as np

from dlm.sampling.caching import Decode, Greedy, NoCache
from dlm.sampling.policies import Fixed, Planned
from dlm.sampling.sampler import Sampler
from tests.checkers import llada
from tests.checkers.decoding import Case, at_queries, canvas_of, play


def dkv_decode(case: Case) -> None:
  plan = None
  if interval := _interval(case):
    plan = Decode(interval, second_full=True)
  policy = Fixed(steps=_steps(case), order=llada.order_of(case), exact_steps=True)
  _run(case, policy, plan, coins_after=True)


def dkv_greedy(case: Case) -> None:
  plan, window = None, case.arg("window_size", 0)
  if interval := _interval(case):
    plan = Greedy(interval, window)
  assert llada.order_of(case) == "random", "their code refuses any other"
  _run(case, Planned(steps=_steps(case), exact_steps=True), plan, coins_after=False)


def _interval(case: Case) -> int:
  """0: no cache."""
  interval = case.arg("cache_reloading_step", 1)
  return interval if case.arg("enable_cache", False) else 0


def _steps(case: Case) -> int:
  return case.arg("steps", 128) // (case.arg("gen_length", 128) // case.arg("block_length", 128))


def _run(case: Case, policy, plan, coins_after: bool) -> None:
  assert not case.arg("cfg_scale", 0.0), "their code refuses guidance"
  temperature, generated = case.arg("temperature", 0.0), case.arg("gen_length", 128)
  sampler, params = llada.sampler_of(
    case, policy, case.arg("block_length", 128), plan or NoCache(), temperature=temperature
  )
  canvas, prompts = canvas_of(case, generated, sampler.mask_id, sampler.block)
  draws = _draws_of(case, sampler, coins_after)
  trace = play(sampler, params, canvas, prompts, draws)
  llada.check(case, trace, llada.slots_of(case, generated))
  for b in range(len(prompts)):
    assert trace.queries(b) == case.expected["query_tokens"]


def _draws_of(case: Case, sampler: Sampler, coins_after: bool):
  """As llada.draws_of, for draws that cover the queries of a forward.

  `coins_after`: coins are tossed after each forward; else before a block's first, for all of it.
  """
  noise = case.line.get("noise")
  if not noise:
    return None
  arrays = np.load(case.folder / "noise.npz")

  def chances(i: int, state):
    found = {"uniform_BxL": jnp.zeros(state.canvas.tokens_BxL.shape)}  # asked for, but unused
    for draw in noise["draws"]:
      after = draw["kind"] == "gumbel" or coins_after
      if draw["forwards_done"] != i + after or not draw.get("used", True):
        continue
      u = ((arrays[draw["key"]].astype(np.float64) + 0.5) / 65536).reshape(draw["shape"])
      key = {"gumbel": "gumbel_BxLxV", "score": "uniform_BxL"}[draw["kind"]]
      value = -np.log(-np.log(u)) if draw["kind"] == "gumbel" else u
      found[key] = jnp.asarray(at_queries(value, sampler, state), jnp.float32)
    return found

  return chances


METHODS = {"dkv_decode": dkv_decode, "dkv_greedy": dkv_greedy}
