"""LLaDA's sampler as one writes it in PyTorch: the baseline of the `decoding` suite.

A LLaMA-style encoder over the whole canvas, all logits of it, a float32 softmax, top-k positions
of the block, repeat (arXiv 2502.09992, 2.4). Weights are those of a `dlm` model.
"""

import jax
import numpy as np
import torch
import torch.nn.functional as F

from dlm.models import ModelConfig
from dlm.types import Params


class Llada:
  def __init__(self, config: ModelConfig, params: Params):
    self.config = config
    self.weights = {
      "/".join(key.key for key in path): torch.from_numpy(np.array(leaf, np.float32))
      for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    power = torch.arange(0, config.head_dim, 2) / config.head_dim
    self.rate = config.rope_base**-power

  def logits(self, tokens_BxL: torch.Tensor) -> torch.Tensor:
    """[B, L, V]."""
    w = self.weights
    angle = torch.arange(tokens_BxL.shape[1])[:, None] * self.rate
    angle = torch.cat([angle, angle], -1)
    cos, sin = angle.cos(), angle.sin()
    x = w["embed"][tokens_BxL]
    for layer in range(self.config.layers):
      x = x + self._attention(
        self._norm(x, w["layers/attention_norm/scale"][layer]), layer, cos, sin
      )
      h = self._norm(x, w["layers/mlp_norm/scale"][layer])
      gate, up = (h @ w[f"layers/mlp/{name}/kernel"][layer] for name in ("gate", "up"))
      x = x + (F.silu(gate) * up) @ w["layers/mlp/down/kernel"][layer]
    return self._norm(x, w["final_norm/scale"]) @ w.get("unembed", w["embed"]).T

  def _norm(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.norm_eps) * scale

  def _attention(self, x, layer: int, cos, sin) -> torch.Tensor:
    w = self.weights

    def heads(name: str) -> torch.Tensor:
      return torch.einsum("bld,dnh->bnlh", x, w[f"layers/attention/{name}/kernel"][layer])

    def rotate(y: torch.Tensor) -> torch.Tensor:
      a, b = y.chunk(2, -1)
      return y * cos + torch.cat([-b, a], -1) * sin

    q, k, v = rotate(heads("query")), rotate(heads("key")), heads("value")
    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return torch.einsum("bnlh,nhd->bld", out, w["layers/attention/out/kernel"][layer])

  @torch.no_grad()
  def generate(
    self, tokens_BxP: np.ndarray, new: int, block: int, steps: int, mask_id: int
  ) -> np.ndarray:
    """[B, P + new] after `steps` forwards a block."""
    prompt = torch.tensor(tokens_BxP, dtype=torch.long)
    x = F.pad(prompt, (0, new), value=mask_id)
    for first in range(prompt.shape[1], x.shape[1], block):
      left = (x[:, first : first + block] == mask_id).sum(-1)
      quota = left // steps
      for step in range(steps):
        logits = self.logits(x)
        logits[..., mask_id] = -torch.inf
        token = logits.argmax(-1)
        sure = logits.softmax(-1).gather(-1, token[..., None])[..., 0]
        masked = x == mask_id
        masked[:, first + block :] = False
        sure = torch.where(masked, sure, -torch.inf)
        for row in range(len(x)):
          n = int(quota[row] + (step < left[row] % steps))
          best = sure[row].topk(n).indices
          x[row, best] = token[row, best]
    return x.numpy()
