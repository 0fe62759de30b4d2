"""A training config: what may be set, and the defaults of all that it leaves out."""

import dataclasses
from typing import get_args

from dlm.build.sampling import SamplingConfig
from dlm.build.tables import Config, Named, Partial, one_of
from dlm.checkpoint import Retention
from dlm.data import MixturePart
from dlm.models.config import ModelConfig
from dlm.objectives import Objective
from dlm.optimizer import OptimizerConfig
from dlm.parallel import Driver, MeshConfig
from dlm.rewards.judge import RewardConfig
from dlm.sampling.policies import POLICIES
from dlm.sampling.policy import Policy
from dlm.seeds import check_seed
from dlm.tools import OF_CORPUS

ONE_BY_ONE = Named("fixed", POLICIES["fixed"], {"k": 1})
MOST = 2**31 - 1  # of updates and rows: they are counted in int32


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The `data` table: text as rows. What is not said here, `dlm.data.rows` says.

  Args:
    sources: each (name, weight) or (name, weight, ((option, value), ...)).
    length: tokens a row.
    tokenizer: empty: that of `init_from`, or bytes.
    mode, pad, per_row, document_mask, too_long: of sources whose options say nothing of them.
  """

  sources: tuple[tuple, ...]
  length: int
  tokenizer: str = ""
  mode: str = MixturePart.mode
  pad: str = MixturePart.pad
  per_row: int = MixturePart.per_row
  document_mask: bool = MixturePart.document_mask
  too_long: str = MixturePart.too_long


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """The `eval` table: every `every` updates (0: never), `batches` batches of held-out text."""

  every: int = 0
  batches: int = 8

  def __post_init__(self):
    if self.every < 0:
      raise ValueError(f"eval.every={self.every} must not be negative")
    if self.batches < 1:
      raise ValueError(f"eval.batches={self.batches} must be at least 1")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """The `sample` table: every `every` updates (0: never), texts that the model makes of `prompts`.

  Args:
    config: the file of a sampling config.
  """

  every: int = 0
  config: str = "configs/sample/default.py"
  prompts: tuple[str, ...] = ("",)

  def __post_init__(self):
    if self.every < 0:
      raise ValueError(f"sample.every={self.every} must not be negative")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Retention):
  """The `checkpoint` table: saved every `every` updates, 0: at the end only; and what is kept."""

  every: int = 0

  def __post_init__(self):
    super().__post_init__()
    if self.every < 0:
      raise ValueError(f"checkpoint.every={self.every} must be a number of updates, 0 or more")


@dataclasses.dataclass(frozen=True)
class ToolConfig:
  """The `tools` table: roll-outs are trajectories in which these are called, see `dlm.episodes`.

  `rollout` says how a turn is written, in at most `rollout.max_new_tokens`; its policy forces the
  tokens that frame a call. The answer is written alike, but by the policy `answer`.

  Args:
    of: names, see `dlm.tools.open_tools`. Functions are called from several threads at once.
    corpus: a JSONL file of documents for "search" and "open"; empty: these are not there.
    hits: documents that a search finds.
    seconds: a call may take.
    turns: with a call, at most.
    frame: text before and after a response; special tokens may be spelled.
    response_tokens: of a response; the rest is cut off.
    answer: one of `dlm.sampling.policies`; a region's forced tokens frame the answer.
    answer_tokens: of an answer.
  """

  answer_tokens: int
  response_tokens: int
  of: tuple[str, ...] = OF_CORPUS
  corpus: str = ""
  hits: int = 3
  seconds: float = 20.0
  turns: int = 1
  frame: tuple[str, str] = ("\n", "\n")
  answer: Named[Policy] = ONE_BY_ONE

  def __post_init__(self):
    for field in ("answer_tokens", "response_tokens", "turns"):
      if getattr(self, field) < 1:
        raise ValueError(f"tools.{field}={getattr(self, field)} must be at least 1")


@dataclasses.dataclass(frozen=True)
class RunConfig(Config):
  """A training config.

  Args:
    steps: updates.
    batch: rows an update, of all devices together. With `rewards` they are answers: there are
      batch / rewards.group prompts.
    objective: one of `dlm.objectives`; `shift` and `anneal` besides: `dlm.build.choices.Reading`.
    model: fields of `ModelConfig`, or a `preset` and what differs from it; `vocab` is the
      tokenizer's where it is not said. With `init_from` all is that model's; a drafter (objective
      dflash) has its teacher's sizes.
    microbatches: parts of the batch that are computed one after the other, for memory.
    parallel: shard_map or pmap.
    overlap: on TPUs devices exchange beside products, see `dlm.parallel.OVERLAP`.
    init_from: a checkpoint folder or Hugging Face directory whose parameters the run starts from;
      empty: from random ones.
    teacher: a checkpoint whose model tells an objective like opdlm what to predict, or a drafter
      what it makes of the text; empty: that of init_from, as it is there.
    rollout: how the model writes the rows it learns from, after the prompts of the data's rows: see
      `dlm.rollout`. None: it learns from the data's.
    rewards: what those rows are worth, for an objective like policy_gradient.
    tools: what the model may call while it writes those rows; None: nothing.
  """

  steps: int
  batch: int
  objective: Named[Objective]
  data: DataConfig
  optimizer: OptimizerConfig
  model: Partial[ModelConfig] = dataclasses.field(default_factory=lambda: Partial(ModelConfig))
  seed: int = 0
  microbatches: int = 1
  parallel: str = "shard_map"
  overlap: bool = True
  log_every: int = 10
  init_from: str = ""
  teacher: str = ""
  rollout: SamplingConfig | None = None
  rewards: RewardConfig | None = None
  tools: ToolConfig | None = None
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  eval: EvalConfig = EvalConfig()
  sample: SampleConfig = SampleConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()

  def __post_init__(self):
    for field in ("steps", "batch", "microbatches", "log_every"):
      if getattr(self, field) < 1:
        raise ValueError(f"{field}={getattr(self, field)} must be at least 1")
      if getattr(self, field) > MOST:
        raise ValueError(f"{field}={getattr(self, field)} must be at most 2^31 - 1")
    check_seed(self.seed)
    one_of("parallel", self.parallel, get_args(Driver))
    if self.checkpoint.keep_best and not self.eval.every:
      raise ValueError("checkpoint.keep_best needs eval.every: nothing else tells the best")
    for field in ("anneal", "curriculum"):
      value = self.objective.fields.get(field, 0)
      if value > self.steps:
        raise ValueError(f"objective.{field}={value} must end within steps={self.steps}")


@dataclasses.dataclass(frozen=True)
class ModelRecord(Config):
  """What config.json says of every checkpoint: of a run's, and of imported weights."""

  model: Partial[ModelConfig]
  objective: Named[Objective]
