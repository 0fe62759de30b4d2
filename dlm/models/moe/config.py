"""What a layer of experts is made of, who chooses whom, and how many."""

import dataclasses

from dlm.models.moe.schedules import SCHEDULES

SCORES = ("softmax", "sigmoid")
CHOICES = ("token", "expert")
BIASED = ("score", "logits")
LOWEST = {
  **dict.fromkeys(("experts", "per_token", "mlp", "groups"), 1),
  **dict.fromkeys(("shared", "dense_layers", "capacity_factor", "pool", "admitted"), 0),
  **dict.fromkeys(("bias_rate", "z_loss", "balance_loss"), 0),
}


@dataclasses.dataclass(frozen=True)
class MoeConfig:
  """Experts in place of an MLP.

  By choice "token" each token takes its `per_token` best experts. LLaDA-MoE (arXiv 2509.24389)
  scores by softmax and weighs by the biased score; LLaDA2 scores by sigmoid, in groups, and weighs
  without the bias; in LLaDA2.2 a block's tokens choose among few experts, not in groups. By choice
  "expert" each expert takes its best tokens of every pool, `per_token` experts a token on average
  (EC-DLM, arXiv 2604.01622).
  Parameters are the same: a checkpoint changes sides by its config alone.
  """

  experts: int
  per_token: int  # not read where a schedule says how many
  mlp: int  # width of one expert
  shared: int = 0  # width of the expert that every token also passes, ungated; 0: there is none
  dense_layers: int = 0  # the first layers keep a plain MLP of width `ModelConfig.mlp`
  choice: str = "token"
  score: str = "softmax"  # of the router's logits over all experts, in float32
  # The weights of a token's experts sum to 1. Experts that choose then compare tokens by logits,
  # else by the score, which is the weight ("pre-softmax").
  renormalise: bool = False
  scale: float = 1.0  # of the weights, after that
  # Weights grow so that the routed sum is as large as `shared / mlp` ungated experts: see
  # `dlm.models.moe.gate_scales`.
  match_shared: bool = False

  # Choice "token".
  bias: bool = False  # one per expert, added for the choice; no gradient reaches it
  bias_to: str = "score"  # what it is added to; EC-DLM's code: "logits"
  bias_in_weight: bool = False  # LLaDA-MoE's code: the biased score is the weight too
  bias_rate: float = 0.0  # step of the bias against the load (arXiv 2408.15664); 0: it stays
  groups: int = 1  # equal groups of consecutive experts
  top_groups: int = 1  # only the best groups, by the sum of their two best scores, are chosen from
  # Tokens of a pool choose among so many experts, those with the best score of any of its tokens;
  # 0: among all.
  admitted: int = 0
  # An expert keeps this many times its even share of a forward's tokens, those of largest weight,
  # on a mesh of every device's tokens; 0: no token is dropped.
  capacity_factor: float = 0.0

  # Of `admitted`, and of choice "expert", whose pools compete. Blocks of so many slots from the
  # window's start; 0: the whole row.
  pool: int = 0

  # Choice "expert". The bias is kept and not read: an expert's choice does not depend on it.
  schedule: str = "static"  # how many experts a token has, by the noise level of its pool
  per_token_range: tuple[int, int] | None = None  # least and most of a schedule
  sigma: float = 0.2  # width of the Gaussian bells
  gate_scales: tuple[float, ...] = ()  # in place of `match_shared`: by choosers, 0 to `experts`

  z_loss: float = 0.0  # coefficients of what is added to the loss in training
  balance_loss: float = 0.0

  def __post_init__(self):
    for name, least in LOWEST.items():
      if getattr(self, name) < least:
        raise ValueError(f"MoeConfig: {name}={getattr(self, name)} must be at least {least}")
    known = {
      "score": SCORES,
      "choice": CHOICES,
      "bias_to": BIASED,
      "schedule": ("static", *SCHEDULES),
    }
    for name, choices in known.items():
      if getattr(self, name) not in choices:
        raise ValueError(
          f"MoeConfig: {name}={getattr(self, name)!r} must be one of {', '.join(choices)}"
        )
    for name in ("scale", "sigma"):
      if getattr(self, name) <= 0:
        raise ValueError(f"MoeConfig: {name}={getattr(self, name)} must be positive")
    for name in ("bias_in_weight", "bias_rate"):
      if getattr(self, name) and not self.bias:
        raise ValueError(f"MoeConfig: {name}={getattr(self, name)} needs bias=True")
    if self.match_shared and (self.shared < self.mlp or self.shared % self.mlp):
      raise ValueError(
        f"MoeConfig: match_shared=True needs shared={self.shared} to be a multiple of "
        f"mlp={self.mlp}"
      )
    self._check_groups()
    if self.choice == "token":
      self._only_of("expert", schedule="static", per_token_range=None, gate_scales=())
      self._check_admitted()
      if self.renormalise and self.per_token == 1 < self.experts:
        raise ValueError(
          "MoeConfig: renormalise=True with per_token=1 makes every weight 1, and nothing teaches "
          "the router"
        )
    else:
      self._only_of(
        "token", bias_to="score", bias_in_weight=False, bias_rate=0, top_groups=self.groups,
        capacity_factor=0, admitted=0,
      )  # fmt: skip
      self._check_expert_choice()

  def _only_of(self, choice: str, **plain: object) -> None:
    for name, value in plain.items():
      if getattr(self, name) != value:
        raise ValueError(
          f"MoeConfig: {name}={getattr(self, name)!r} goes with choice={choice!r}; with "
          f"choice={self.choice!r} it must be {value!r}"
        )

  def _check_groups(self) -> None:
    if self.experts % self.groups:
      raise ValueError(
        f"MoeConfig: experts={self.experts} must be a multiple of groups={self.groups}"
      )
    if self.groups > 1 and self.experts == self.groups:
      raise ValueError(f"MoeConfig: groups={self.groups} must hold at least two experts each")
    if not 1 <= self.top_groups <= self.groups:
      raise ValueError(
        f"MoeConfig: top_groups={self.top_groups} must lie in 1..groups={self.groups}"
      )
    eligible = self.experts // self.groups * self.top_groups
    if self.per_token > eligible:
      raise ValueError(
        f"MoeConfig: per_token={self.per_token} exceeds the {eligible} experts of the best groups"
      )

  def _check_admitted(self) -> None:
    if self.pool and not self.admitted:
      raise ValueError(f"MoeConfig: pool={self.pool} with choice='token' needs admitted")
    if self.admitted and not self.per_token <= self.admitted <= self.experts:
      raise ValueError(
        f"MoeConfig: admitted={self.admitted} must lie in per_token={self.per_token}..experts="
        f"{self.experts} (0: off)"
      )
    if self.admitted and self.top_groups != self.groups:
      raise ValueError(
        f"MoeConfig: admitted={self.admitted} takes the place of groups: top_groups="
        f"{self.top_groups} must be groups={self.groups}"
      )

  def _check_expert_choice(self) -> None:
    ends = self.per_token_range
    if (self.schedule == "static") != (ends is None):
      raise ValueError(
        f"MoeConfig: per_token_range={ends} with schedule={self.schedule!r}: 'static' takes no "
        "range, and every other schedule needs one"
      )
    if ends is not None and not (len(ends) == 2 and 1 <= ends[0] <= ends[1] <= self.experts):
      raise ValueError(
        f"MoeConfig: per_token_range={ends} must be (least, most) in 1..experts={self.experts}"
      )
    least = self.per_token if ends is None else ends[0]
    if self.pool and self.pool * least < self.experts:
      raise ValueError(
        f"MoeConfig: pool={self.pool} slots with {least} experts a token are too few for "
        f"experts={self.experts}: each takes at least one token"
      )
    if self.gate_scales and len(self.gate_scales) != self.experts + 1:
      raise ValueError(
        f"MoeConfig: gate_scales has {len(self.gate_scales)} entries and needs experts + 1 = "
        f"{self.experts + 1}"
      )
    if self.gate_scales and self.match_shared:
      raise ValueError("MoeConfig: gate_scales takes the place of match_shared=True; set one")
    if (self.gate_scales or self.match_shared) and not self.renormalise:
      raise ValueError(
        "MoeConfig: match_shared and gate_scales need renormalise=True: weights that sum to 1"
      )

  @property
  def reads_noise(self) -> bool:
    """Whether the layer must be told each slot's noise level."""
    return self.schedule != "static"

  @property
  def pooled(self) -> bool:
    """Whether a token's experts depend on the other tokens of its pool."""
    return self.choice == "expert" or self.admitted > 0

  def mean_per_token(self) -> float:
    """Experts a token passes on average: over levels ~ U(0, 1), before rounding to whole ones."""
    if not self.reads_noise:
      return self.per_token
    least, most = self.per_token_range
    return least + SCHEDULES[self.schedule].mean(self.sigma) * (most - least)
