r"""P-ReAct (DLLM-Searcher, arXiv 2602.07035): the tool call first, the thoughts before it after.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/p_react.py --prompt="..."
(with tools that run: experiments/agent.py)

The authors' settings, for their SDAR model: a block of 128 tokens, `<tool_call>` and `</tool_call>`
(ids 151657 and 151658) at offsets 63 and 126, confidences from 63 on raised by 0.5, one token a
forward. Their answers, :answer, are framed by 151648 and 151649. Other tokenizers have other ids:
--config.policy.forced="((63, 7), (126, 8))"
"""

from ml_collections import ConfigDict

FRAMES = {"call": (151657, 151658), "answer": (151648, 151649)}


def get_config(frame: str = "call") -> ConfigDict:
  before, after = FRAMES[frame]
  return ConfigDict(
    dict(
      policy=dict(
        name="region",
        first=63,
        last=127,
        bias=0.5,
        forced=((63, before), (126, after)),
        inner=dict(name="fixed", k=1, order="confidence"),
      ),
      block=128,
      max_new_tokens=128,
      temperature=1.0,
    )
  )
