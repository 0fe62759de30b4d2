"""A sampling config becomes the sampler of a checkpoint."""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

import jax
from jax.sharding import Mesh

from dlm import masks
from dlm.build import pools, tables
from dlm.build.choices import Auto
from dlm.build.models import check_drafter
from dlm.facts import ModelFacts, rule_of
from dlm.models import quantised
from dlm.models.apart import STREAMED
from dlm.models.bind import Model, bind
from dlm.models.dflash import DFlash
from dlm.parallel import Driver, MeshConfig, splits_data_alone
from dlm.sampling.caching import PLANS
from dlm.sampling.caching.plan import CachePlan
from dlm.sampling.canvas import ALIGNMENTS
from dlm.sampling.clock import BlockMaskRatio, MaskRatio
from dlm.sampling.policies import POLICIES
from dlm.sampling.policy import Policy
from dlm.sampling.sampler import ON_EOS, SCOPES, Drafter, Sampler
from dlm.seeds import check_seed
from dlm.types import Clock, MaskRule

THRESHOLD = tables.Named("threshold", POLICIES["threshold"])
AUTO = tables.Named("auto", Auto)
# Positions of which matmuls take less time each than of fewer, and hardly more than of more: on a
# CPU measured; elsewhere four times as many as take as long as reading the weights, not measured.
POSITIONS = {True: 64, False: 1024}
MODES = ("causal", "causal_context", "prompt_blocks")  # of a checkpoint of attention causal_context


@dataclasses.dataclass(frozen=True)
class SamplingConfig(tables.Config):
  """A sampling config, and the defaults of all that it leaves out.

  Args:
    policy: which masks to decide after each forward: one of `dlm.sampling.policies`.
    cache: one of `dlm.sampling.caching`; auto: the exact one of model and policy, else none.
    attention: of a checkpoint that has several modes (Nemotron-Labs-Diffusion): causal, to write
      token by token or to check drafts; causal_context or prompt_blocks, to denoise blocks behind
      text that is read causally or whole; auto: causal with policies that draft, else
      causal_context. Of others: auto, what they were trained with.
    commit: how a finished block's keys enter the cache: fused, separate or free; auto: separate
      behind a causal context, else fused.
    block: tokens a block; 0: the checkpoint's block.
    align: where blocks are counted from: canvas, prompt; auto: canvas for block-causal models.
    slots: of the canvas; 0: the length of the model's training rows.
    max_new_tokens: 0: as many as the canvas holds.
    max_forwards: of a row; 0: as many as it may need.
    top_k: 0: off.
    top_p: 1: off.
    top_p_rule: reach; within: without the token that crosses top_p.
    confidence: plain; tempered: after temperature; shaped: after temperature, top-k and top-p.
    guidance: scale of classifier-free guidance; 0: off.
    forbid_ends: stop ids are never written.
    doubt_ends: stop ids count for nothing in confidences: they are written last.
    may_predict_mask: the mask id may win, and its slot stays masked, as in most authors' code.
    scope: what the policy sees: block, canvas; auto: what it needs.
    stop: what a stop id does: stop, stop_block, fill, fill_block, never.
    context: slots that a token sees at most, of a block-causal model; 0: all.
    bos: rows begin with the token that begins texts.
    least_entropy: nats of 256 tokens; a text that varies less ends before them; 0: off.
    implementation: of kernels, as xla or gpu,xla; None: the best here.
    weights: the checkpoint's kernels are kept as whole numbers: int8, int4g128 (groups of 128
      inputs), w8a8 (what they are applied to is rounded too); empty: as they are stored.
    cache_format: keys and values are cached as whole numbers: int8, kivi4 or kivi2; empty: as they
      are.
    batch: rows at a time.
    row_tile: rows that a device computes together, so that a row is the same to the bit whatever
      is sampled with it; 0: a batch at once, the same but for rounding; None: what is fastest, 1
      on a CPU whose caches may hold the model (below 64 MiB), else 0.
    positions: query positions that a forward computes together, at least: as many rows as make
      them, those alone that need it, at widths that leave out padding. 0: all rows at once, over
      the whole canvas, while rows that need another kind of forward wait; None: what is fastest.
    refresh_rows: with a cache that is filled anew now and then ("dual", "dkv_decode", ...): so many
      rows compute the whole canvas at a time, beside the others' windows; 0: all that need it at
      once, and the others wait.
    parallel: shard_map or pmap.
  """

  policy: tables.Named[Policy] = THRESHOLD
  cache: tables.Named[CachePlan] = AUTO
  attention: str = "auto"
  commit: str = "auto"
  block: int = 0
  align: str = "auto"
  slots: int = 0
  max_new_tokens: int = 0
  max_forwards: int = 0
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  top_p_rule: str = "reach"
  confidence: str = "plain"
  guidance: float = 0.0
  forbid_ends: bool = False
  doubt_ends: bool = False
  may_predict_mask: bool = False
  scope: str = "auto"
  stop: str = "stop"
  context: int = 0
  bos: bool = False
  least_entropy: float = 0.0
  implementation: str | None = None
  weights: str = ""
  cache_format: str = ""
  seed: int = 0
  batch: int = 8
  row_tile: int | None = None
  positions: int | None = None
  refresh_rows: int = 0
  parallel: str = "shard_map"
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

  def __post_init__(self):
    counts = ("block", "slots", "max_new_tokens", "max_forwards", "context")
    for field in (*counts, "row_tile", "positions"):
      if (getattr(self, field) or 0) < 0:
        raise ValueError(f"{field}={getattr(self, field)} must not be negative")
    check_seed(self.seed)
    if self.weights:
      quantised.Format.of(self.weights)
    tables.one_of("align", self.align, ("auto", *ALIGNMENTS))
    tables.one_of("scope", self.scope, ("auto", *SCOPES))
    tables.one_of("stop", self.stop, ("never", *ON_EOS))
    tables.one_of("parallel", self.parallel, get_args(Driver))
    if self.mesh.sequence != 1:
      raise ValueError(f"mesh.sequence={self.mesh.sequence} must be 1: sampling takes whole rows")

  @property
  def room(self) -> dict[str, int]:
    """What a row has, as `dlm.generate.Request` takes it."""
    return {"slots": self.slots, "max_new_tokens": self.max_new_tokens}


def sampling(
  config: SamplingConfig | Mapping[str, Any],
  model: Model,
  facts: ModelFacts,
  drafter: tuple[Model | DFlash, ModelFacts] | None = None,
) -> tuple[Sampler, SamplingConfig]:
  """The sampler of a checkpoint, and the config with every 0 and "auto" filled in.

  Args:
    config: or the table of one.
    facts: of the checkpoint.
    drafter: model and facts of the checkpoint that drafts, for policies "deer" and "dflash".

  Raises:
    ValueError: a field or a name is not one that can be, or the cache does not fit the model.
  """
  own = SamplingConfig.of(config)
  if model.config.drafter is not None:
    raise ValueError("a DFlash drafter writes nothing alone: sample its target, with it as drafter")
  if own.weights:
    quantised.check(own.weights, model.abstract())
  causal = isinstance(facts.attention, masks.Causal)
  block = own.block or facts.block or (1 if causal else facts.length)
  slots = own.slots or facts.length
  aligned = "canvas" if isinstance(facts.attention, masks.BlockCausal) else "prompt"
  ends = facts.eos_ids
  told = dict(
    insert_id=facts.insert_id, delete_id=facts.delete_id, conditions=model.config.gemma is not None
  )
  policy = own.policy.make(block=block, end_ids=ends, vocab=facts.vocab, **told)
  for each in policy.bars:
    if each >= facts.vocab or each == facts.mask_id:
      raise ValueError(
        f"policy.name={own.policy.name!r} waits for the token {each}, which is none of this "
        f"checkpoint's: vocab={facts.vocab}, mask_id={facts.mask_id}"
      )
  facts = _in_mode(facts, own.attention, block, bool(policy.draft_span))
  block = policy.draft_span or block
  # A token a forward and a commit a token; policies that count steps may take all of them.
  blocks = -(-slots // block)
  enough = max(2 * slots, blocks * (policy.most_forwards(min(block, slots)) + 1))
  own = dataclasses.replace(
    own,
    block=block,
    slots=slots,
    align=aligned if own.align == "auto" else own.align,
    attention=facts.attention_name,
    commit=_commit(facts) if own.commit == "auto" else own.commit,
    max_forwards=own.max_forwards or enough,
    row_tile=_row_tile(model) if own.row_tile is None else own.row_tile,
    positions=POSITIONS[jax.default_backend() == "cpu"] if own.positions is None else own.positions,
  )
  sees = _sees(facts, own.context)
  moe = model.config.moe
  whole_pools = pools.in_windows(moe, block=block, align=own.align, shift=facts.shift)
  plan = _plan(own, sees, policy, whole_pools)
  if plan.choice is not None and model.config.bert is not None:
    raise ValueError(
      f"cache: {plan} forgets where keys stand, which local layers of ModernBERT must know"
    )
  pools.check(moe, facts, plan, policy, whole_pools, own.row_tile)
  served, adapted = _served(pools.dropless(model), own.implementation), None
  if model.config.lora is not None and model.config.lora.drafts:
    adapted = served if policy.own_drafts else None
    served = bind(dataclasses.replace(served.config, lora=None))
  sampler = Sampler(
    denoise=served,
    adapted=adapted,
    policy=policy,
    plan=plan,
    sees=sees,
    block=block,
    max_forwards=own.max_forwards,
    mask_id=facts.mask_id,
    eos_ids=ends if own.stop != "never" else (),
    on_eos="stop" if own.stop == "never" else own.stop,
    scope=None if own.scope == "auto" else own.scope,
    shift=facts.shift,
    commit=own.commit,
    clock=_clock(model, facts),
    temperature=own.temperature,
    top_k=own.top_k,
    top_p=own.top_p,
    top_p_rule=own.top_p_rule,
    confidence=own.confidence,
    guidance=own.guidance,
    least_entropy=own.least_entropy,
    cache_format=own.cache_format,
    positions=own.positions,
    refresh_rows=own.refresh_rows,
    # Spare rows spell nothing.
    forbidden=(*range(facts.vocab, model.config.vocab), *(ends if own.forbid_ends else ())),
    doubtful=ends if own.doubt_ends else (),
    may_predict_mask=own.may_predict_mask,
    drafter=None
    if drafter is None
    else _drafter(*drafter, model, facts, policy, own.implementation),
  )
  if sampler.kept is not None:
    jax.eval_shape(lambda: served.empty_cache(1, 1, sampler.kept))  # refuses what does not fit
  return sampler, own


def on_mesh(sampler: Sampler, mesh: Mesh) -> Sampler:
  """The sampler; where XLA splits the rows itself, its forwards are over all of them."""
  return sampler if splits_data_alone(mesh) else dataclasses.replace(sampler, positions=0)


def _in_mode(facts: ModelFacts, mode: str, block: int, drafts: bool) -> ModelFacts:
  """The facts of one mode of a checkpoint; of one that has a single mode its own."""
  if not isinstance(facts.attention, masks.CausalContext):
    if mode not in ("auto", facts.attention_name):
      raise ValueError(
        f"attention={mode!r} must be 'auto': the checkpoint knows {facts.attention_name!r} alone"
      )
    return facts
  if mode == "auto":
    mode = "causal" if drafts else "causal_context"
  tables.one_of("attention", mode, MODES)
  return dataclasses.replace(facts, attention=rule_of(mode, block), shift=int(mode == "causal"))


def _commit(facts: ModelFacts) -> str:
  return "separate" if isinstance(facts.attention, masks.CausalContext) else "fused"


def _row_tile(model: Model) -> int:
  """Rows together where nobody asks for a number: see "Row tiles" and "SmolLM2" in BENCHMARKS.md.

  On a CPU a small model is fastest over one row, whose activations stay in the caches too. Weights
  that lie in memory are read once a forward, whatever its rows.
  """
  in_caches = 4 * model.config.n_params() < STREAMED
  return int(jax.default_backend() == "cpu" and in_caches)


def _served(model: Model, implementation: str | None) -> Model:
  """The model, whose ops run by `implementation` if one is named."""
  if implementation is None:
    return model
  return bind(dataclasses.replace(model.config, implementation=implementation))


def _clock(model: Model, facts: ModelFacts) -> Clock | None:
  """What tells the model its noise level as its training did; None if it reads none."""
  if not model.config.reads_noise or isinstance(facts.attention, masks.Canvas):
    return None  # whose forward tells text from noise, and no level
  moe = model.config.moe
  # Levels belong to the model's own blocks; an autoregressive one reads written slots, level 0.
  clocks = {
    "full": MaskRatio(prompt=moe is not None and moe.reads_noise),
    "block_causal": BlockMaskRatio(facts.block or 1),
    "causal": BlockMaskRatio(1),
  }
  return tables.named("attention of a model that reads noise levels", facts.attention_name, clocks)


def _sees(facts: ModelFacts, context: int = 0) -> MaskRule:
  """The model's attention, looking back over `context` slots at most; 0: over all."""
  if not context:
    return facts.attention
  if not isinstance(facts.attention, masks.BlockCausal):
    raise ValueError(
      f"{context=} is for block-causal checkpoints, not attention {facts.attention_name!r}"
    )
  return dataclasses.replace(facts.attention, context=context)


def _drafter(
  model: Model | DFlash,
  own: ModelFacts,
  target: Model,
  facts: ModelFacts,
  policy: Policy,
  implementation: str | None,
) -> Drafter:
  if own.vocab != facts.vocab:
    raise ValueError(
      f"the drafter's vocabulary of {own.vocab} ids must be the model's of {facts.vocab}"
    )
  if model.config.drafter is not None:
    return _feature_drafter(model, own, target, policy, implementation)
  if model.config.reads_noise:
    raise ValueError(
      "the drafter must not be told a noise level (model.time_conditioned, model.moe.schedule)"
    )
  if model.config.moe is not None and model.config.moe.pooled:
    raise ValueError("the drafter's model.moe lets experts depend on later tokens (see its pools)")
  return Drafter(_served(model, implementation), _sees(own), own.mask_id, own.shift)


def _feature_drafter(
  model: DFlash, own: ModelFacts, target: Model, policy: Policy, implementation: str | None
) -> Drafter:
  """ValueError where it drafts for another model than the target, or longer than it learned."""
  check_drafter(model.config, target.config)
  told = model.config.drafter
  if policy.proposals >= own.block:
    raise ValueError(
      f"policy.length={policy.proposals} must be below the drafter's block of {own.block}"
    )
  return Drafter(_served(model, implementation), own.attention, told.mask_id, taps=told.taps)


def _plan(own: SamplingConfig, sees: MaskRule, policy: Policy, whole_pools: bool) -> CachePlan:
  """The cache; "auto" is the exact one of the model and the policy, or "none"."""
  if own.cache.kind is not Auto:
    return own.cache.make()
  if isinstance(sees, masks.Canvas):
    return PLANS["text" if own.block == sees.block else "none"]()
  exact = isinstance(sees, masks.Causal)
  if isinstance(sees, masks.BlockCausal | masks.PromptBlocks):
    own_blocks = "canvas" if isinstance(sees, masks.BlockCausal) else "prompt"
    exact = own.align == own_blocks and own.block % sees.block == 0
  exact = exact and whole_pools
  if policy.draft_span:
    return PLANS["rolling"]()
  if policy.works_ahead:
    return PLANS["ahead" if exact else "none"]()
  return PLANS["block" if exact and policy.scope == "block" else "none"]()
