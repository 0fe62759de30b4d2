"""A drafter that reads the target's own layers; the target verifies."""

import dataclasses

from dlm.sampling.policies.deer import Deer

DRAFTS = ("best", "coupled")


@dataclasses.dataclass(frozen=True)
class DFlash(Deer):
  """DFlash (2602.06036): a drafter that reads the target's layers fills a block, the target checks.

  As DEER otherwise: of the drafts the leading run stays that equals what the target draws itself,
  and one token more; the text is the target's own, at any temperature. The authors' drafts are the
  drafter's likeliest tokens ("best"). "coupled" draws them with the noise that the target will draw
  with: at a temperature more of them are right.

  Args:
    length: drafts a forward, one less than the block that the drafter was trained on (16).
  """

  length: int = 15
  draft: str = "best"

  def __post_init__(self):
    super().__post_init__()
    if self.draft not in DRAFTS:
      raise ValueError(f"dflash: draft={self.draft!r} is not one of {', '.join(DRAFTS)}")

  @property
  def best_drafts(self) -> bool:
    return self.draft == "best"
