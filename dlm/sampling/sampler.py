"""The static half of sampling: a model, a policy, a cache plan and their settings."""

import dataclasses
import math

from dlm import masks
from dlm.sampling.caching.plan import CachePlan
from dlm.sampling.policy import Policy
from dlm.types import CacheFormat, Clock, Denoiser, FeatureDrafter, MaskRule, StatSpec

COMMITS = ("fused", "separate", "free")
SCOPES = ("block", "canvas")
CACHE_FORMATS = {"int8": 8, "kivi4": 4, "kivi2": 2}
GROUP, LEAST_GROUP = 32, 16  # slots that share the scales of KIVI's keys, and as few as pay
ON_EOS = ("stop", "stop_block", "fill", "fill_block")


def format_of_blocks(bits: int, block: int, aligned: bool = True, beside: int = 0) -> CacheFormat:
  """In 2 or 4 bits, what is committed in blocks.

  Groups are of 32, as KIVI's, or the most that divide a block, of whole bytes and 16 at least: then
  a block fills its groups. Else what is final of a group waits in the residual until the rest is.

  Args:
    aligned: blocks are cut from the canvas's start; else anywhere.
    beside: slots behind what is final that the residual holds too.
  """
  group, waits = GROUP, GROUP - 1
  if aligned:
    sizes = range(LEAST_GROUP, GROUP + 1)
    group = max((n for n in sizes if block % n == 0 and n * bits % 8 == 0), default=GROUP)
    waits = group - math.gcd(group, block)
  return CacheFormat(bits, group, waits + beside)


@dataclasses.dataclass(frozen=True)
class Drafter:
  """A second model, that proposes tokens for the first to check (DEER, arXiv 2512.15176).

  Args:
    denoise: a model, or with `taps` a `FeatureDrafter`.
    sees: its attention; of what it is told with `taps`, all that is settled.
    taps: layers of the first model whose outputs it reads in place of text (DFlash, 2602.06036).
  """

  denoise: Denoiser | FeatureDrafter
  sees: MaskRule
  mask_id: int
  shift: int = 0
  taps: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Everything static. Hashable: equal samplers share one compile.

  Args:
    block: tokens per block; the policy sees one block at a time.
    max_forwards: a row ends after so many, whatever the model predicts (NaN, always [MASK]).
    scope: "block": the policy sees the active block; "canvas": every slot, and masked slots before
      the active block are its too. None: what the policy asks for.
    on_eos: what a stop id does. "stop": the row ends when all before it in its block is written;
      "stop_block": when the whole block is. "fill": what stands behind it becomes the stop id,
      after every forward (with cache "prefix" or "dual": after those within a block, not after the
      one that opens it; the row ends with the block); "fill_block": what stands behind its block
      does, when that is finished.
    commit: how a finished block's keys enter the cache, see `dlm.sampling.loop`.
    shift: 1 where the logits at slot i predict slot i + 1 (AR models, Dream).
    temperature, top_k, top_p, top_p_rule, forbidden: how a candidate is drawn, see StatSpec. The
      mask id is forbidden too, unless `may_predict_mask` (as in most authors' code: such a slot
      stays masked).
    confidence: a candidate's probability under the "plain" distribution, the "tempered" one or the
      "shaped" one, which top-k and top-p have cut too. Of a policy that needs one of the latter
      two, "plain" becomes that.
    doubtful: ids left out of every confidence; a candidate among them has confidence 0 (LLaDA's
      confidence_eos_eot_inf, arXiv 2502.09992, B.4: end tokens are written last).
    adapted: the same model with the adapters that help it to draft, for policies that draft in
      forwards of their own ("self_speculative"); None: it has none.
    drafter: who proposes, for policies that only check ("deer", "dflash"); `params` are then a
      pair, the model's and the drafter's.
    guidance: scale of classifier-free guidance, 0: off; two rows a forward.
    least_entropy: completions end where their tokens vary less, in nats; 0: they may. See
      `dlm.sampling.variety`, which reads them on the host when a row is done.
    own_width: with a cache, a forward over windows is run once for each width that rows need, and
      not once at the widest: a row's bits then owe nothing to its neighbours.
    cache_format: of cached keys and values: "int8", or of plans that cache for good from the left
      on, or whole canvases, "kivi4" and "kivi2" (2402.02750); "": as the model computes them. See
      `dlm.models.packed`.
    positions: query positions that a forward computes together, at least: it takes as many rows as
      make them, those alone that need it, and is as wide as they need. Rows in different phases go
      on beside each other. 0: all rows at once, at the full width, and rows that need another kind
      of forward wait.
    refresh_rows: rows that need the whole canvas run beside the others' windows, so many of them at
      a time, those first that have waited longest (dLLM-Serve, 2512.17077: phase multiplexing). 0:
      all of them at once, and the others wait.
  """

  denoise: Denoiser
  policy: Policy
  plan: CachePlan
  sees: MaskRule
  block: int
  max_forwards: int
  mask_id: int
  eos_ids: tuple[int, ...] = ()
  on_eos: str = "stop"
  scope: str | None = None
  shift: int = 0
  commit: str = "fused"
  clock: Clock | None = None
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  top_p_rule: str = "reach"
  forbidden: tuple[int, ...] = ()
  doubtful: tuple[int, ...] = ()
  confidence: str = "plain"
  may_predict_mask: bool = False
  guidance: float = 0.0
  least_entropy: float = 0.0
  own_width: bool = False
  cache_format: str = ""
  positions: int = 0
  refresh_rows: int = 0
  drafter: Drafter | None = None
  adapted: Denoiser | None = None

  def __post_init__(self):
    object.__setattr__(self, "scope", self.scope or self.policy.scope)
    self._check_values()
    if self.commit == "free" and not self.plan.provisional:
      raise ValueError(
        "Sampler: commit='free' takes the keys of a block from its last forward, which only cache "
        f"'block' keeps; {self.plan}"
      )
    self.plan.check(self.sees, self.block, self.policy)
    spec = self.spec()  # refuses odd draws
    if self.confidence not in ("plain", spec.confidence):
      raise ValueError(
        f"Sampler: confidence={self.confidence!r} must be 'plain' or {spec.confidence!r}, which "
        f"the policy needs; {self.policy}"
      )
    if spec.chooses and self.temperature > 0:
      raise ValueError(
        f"Sampler: temperature={self.temperature} must be 0 with a policy that chooses among ids "
        f"of its own; {self.policy}"
      )
    if bool(self.policy.proposals) != (self.drafter is not None):
      raise ValueError(
        f"Sampler: a drafter goes with policies 'deer' and 'dflash' alone; {self.policy}, "
        f"drafter={self.drafter}"
      )
    if self.refresh_rows and not (self.plan.cached and not self.guidance and not self.drafter):
      raise ValueError(
        f"Sampler: refresh_rows={self.refresh_rows} needs a cache, no guidance and no drafter; "
        f"{self.plan}, guidance={self.guidance}"
      )
    if self.cache_format:
      self._check_format()
    if self.policy.draft_span:
      self._check_drafts()
    if self.causal_context:
      self._check_context()
    if self.policy.judges:
      self._check_shadows()
    if self.policy.renoises:
      self._check_noise()
    elif isinstance(self.sees, masks.Canvas):
      raise ValueError(
        f"Sampler: the model denoises a canvas of random ids, for which policy 'renoise' is; "
        f"{self.policy}"
      )
    if self.policy.shifts:
      self._check_shifts()
    if self.policy.slides:
      self._check_slides()

  def _check_values(self) -> None:
    """Raises ValueError where a number or a word is none that can be."""
    for name in ("block", "max_forwards"):
      if getattr(self, name) < 1:
        raise ValueError(f"Sampler: {name}={getattr(self, name)} must be at least 1")
    for name in ("least_entropy", "guidance", "positions", "refresh_rows"):
      if getattr(self, name) < 0:
        raise ValueError(f"Sampler: {name}={getattr(self, name)} must not be negative (0: off)")
    for name, known in (("commit", COMMITS), ("on_eos", ON_EOS)):
      if getattr(self, name) not in known:
        raise ValueError(
          f"Sampler: {name}={getattr(self, name)!r} is not one of {', '.join(known)}"
        )
    if self.shift not in (0, 1):
      raise ValueError(f"Sampler: shift={self.shift} must be 0 or 1")
    if self.scope not in SCOPES or (self.policy.scope == "canvas" and self.scope != "canvas"):
      raise ValueError(
        f"Sampler: scope={self.scope!r} must be one of {', '.join(SCOPES)}, and 'canvas' where the "
        f"policy must see all slots; {self.policy}"
      )

  def _check_format(self) -> None:
    """Raises ValueError where keys could not be kept in so few bits."""
    if self.cache_format not in CACHE_FORMATS:
      raise ValueError(
        f"Sampler: cache_format={self.cache_format!r} is not one of {', '.join(CACHE_FORMATS)}, or "
        "empty for as they are"
      )
    if not self.plan.cached or self.plan.choice is not None:
      raise ValueError(
        f"Sampler: cache_format={self.cache_format!r} needs a cache that holds keys by their slot, "
        f"not {self.plan}"
      )
    if self.kept.bits < 8 and (not self.plan.packs or self.policy.slides):
      raise ValueError(
        f"Sampler: cache_format={self.cache_format!r} codes slots in groups, and {self.plan} with "
        f"{self.policy} keeps them one by one: use 'int8'"
      )

  def _check_drafts(self) -> None:
    """Raises ValueError where drafts could not be checked, or their keys not be taken back."""
    if self.scope != "block" or not (self.shift and self.plan.holds_drafts):
      raise ValueError(
        f"Sampler: {self.policy} drafts, which needs cache 'rolling', scope 'block' and a causal "
        f"model whose logits predict the next token; shift={self.shift}, scope={self.scope!r}, "
        f"{self.plan}"
      )
    if self.policy.own_drafts and self.guidance:
      raise ValueError(
        f"Sampler: guidance={self.guidance} must be 0 where a model drafts over its own cache; "
        f"{self.policy}"
      )

  def _check_context(self) -> None:
    """Raises ValueError where clean text would not be read apart from the block being written."""
    apart = self.plan.provisional and self.commit == "separate" and self.scope == "block"
    if not apart or self.shift or self.clock or self.policy.renoises:
      raise ValueError(
        f"Sampler: {self.sees} reads clean text causally, in forwards of their own: it needs cache "
        "'block', commit 'separate', scope 'block', and a model that predicts its own and is told "
        f"no noise level; {self.plan}, commit={self.commit!r}, scope={self.scope!r}, "
        f"shift={self.shift}, {self.policy}"
      )

  def _check_shadows(self) -> None:
    """Raises ValueError where a shadow block could not stand beside the canvas."""
    plain = not (self.plan.cached or self.guidance or self.shift or self.clock)
    if not (plain and isinstance(self.sees, masks.Full)):
      raise ValueError(
        f"Sampler: {self.policy} needs cache 'none', no guidance, and a model that sees all slots, "
        "predicts its own and is told no noise level"
      )

  def _check_noise(self) -> None:
    """Raises ValueError where random ids would be taken for text, or masks come back."""
    told = self.clock and not self.policy.levels
    odd = self.shift or self.guidance or told or self.may_predict_mask
    canvas = isinstance(self.sees, masks.Canvas)
    kept = not self.plan.cached or (self.plan.commits if canvas else self.plan.provisional)
    if odd or self.scope != "block" or not kept:
      raise ValueError(
        f"Sampler: {self.policy} needs cache 'none' or 'block' ('text' of a model that denoises a "
        "canvas), scope 'block', no guidance, no may_predict_mask, and a model that predicts its "
        "own and is told no noise level (but by policy 'duo')"
      )
    if self.eos_ids and self.on_eos in ("stop", "fill"):
      raise ValueError(
        f"Sampler: on_eos={self.on_eos!r} would take random ids of {self.policy} for stop ids: "
        "'stop_block', 'fill_block', or no stop ids"
      )

  def _check_shifts(self) -> None:
    """Raises ValueError where keys would be kept of slots that move on."""
    keeps = self.plan.cached and (self.scope == "canvas" or not self.plan.provisional)
    if keeps or self.scope != self.policy.scope:
      raise ValueError(
        f"Sampler: {self.policy} inserts and deletes, which needs scope {self.policy.scope!r} and "
        f"cache 'none', or in scope 'block' cache 'block'; scope={self.scope!r}, {self.plan}"
      )

  def _check_slides(self) -> None:
    """Raises ValueError where masks could not stand behind what is known."""
    causal = isinstance(self.sees, masks.Causal) and not (self.shift or self.clock)
    kept = not self.plan.cached or (self.plan.provisional and self.commit == "fused")
    plain = self.scope == "block" and not self.guidance and (self.on_eos == "stop")
    if not (causal and kept and plain):
      raise ValueError(
        f"Sampler: {self.policy} slides on, which needs a causal model that predicts its own token "
        "and is told no noise level, cache 'none' or 'block' with commit 'fused', scope 'block', "
        f"on_eos 'stop' and no guidance; {self.sees}, shift={self.shift}, {self.plan}, "
        f"commit={self.commit!r}, scope={self.scope!r}, on_eos={self.on_eos!r}, "
        f"guidance={self.guidance}"
      )

  def rows_together(self, width: int, batch: int, whole: bool) -> int:
    """Rows that a forward of this width takes, over whole canvases or windows."""
    if self.positions:
      return min(-(-self.positions // width), batch)
    return min(self.refresh_rows, batch) if whole and self.refresh_rows else batch

  @property
  def kept(self) -> CacheFormat | None:
    """How keys are kept; None: as they are."""
    if not self.cache_format:
      return None
    bits = CACHE_FORMATS[self.cache_format]
    if bits == 8:
      return CacheFormat(8)
    if self.plan.packs == "canvas":
      return CacheFormat(bits, GROUP)
    aligned = isinstance(self.sees, masks.BlockCausal)  # by its blocks, from the canvas's start
    return format_of_blocks(bits, self.block, aligned, self.active_kept * self.block)

  @property
  def active_kept(self) -> bool:
    """Later forwards read keys of the active block that an earlier one computed."""
    return self.plan.packs == "active" or (self.plan.commits and self.commit == "free")

  @property
  def causal_context(self) -> bool:
    """Clean text is read causally, and predicts the first token of the block behind it."""
    return isinstance(self.sees, masks.CausalContext)

  @property
  def first_alone(self) -> bool:
    """With shift: a forward that fills the cache writes the first token behind it, and no other.

    So it is after a causal context, too.
    """
    if self.causal_context:
      return True
    separate = self.plan.commits and self.commit == "separate"
    return bool(self.shift) and self.plan.cached and (separate or not self.plan.anchor)

  @property
  def anchored(self) -> bool:
    """With shift: the query before a window rides along, to predict its first slot."""
    return bool(self.shift) and not self.first_alone

  def spec(self) -> StatSpec:
    """The policy's needs, and how candidates are drawn."""
    needs = self.policy.needs()
    return dataclasses.replace(
      needs,
      confidence=self.confidence if needs.confidence == "plain" else needs.confidence,
      temperature=self.temperature,
      top_k=self.top_k,
      top_p=self.top_p,
      top_p_rule=self.top_p_rule,
      forbidden=self.forbidden if self.may_predict_mask else (self.mask_id, *self.forbidden),
      outside=self.doubtful,
    )
