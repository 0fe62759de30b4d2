"""What the `decoding` suite compares with: LLaDA's sampler, and one of blocks behind a cache, as
one writes them in PyTorch.

A LLaMA-style encoder, a float32 softmax over all logits, top-k positions of the block, repeat: over
the whole canvas (arXiv 2502.09992, 2.4), or over a block behind the keys and values of those before
it (arXiv 2510.06303, SDAR). Weights are a `dlm` model's, in the type that it computes in, and laid
out as `torch.nn.Linear` has them.
"""

import numpy as np
import torch
import torch.nn.functional as F

from dlm.models import ModelConfig
from dlm.types import Array, Params

Past = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values [B, K, S, H] of each layer


class Llada:
  def __init__(self, config: ModelConfig, params: Params):
    self.config, self.dtype = config, getattr(torch, config.dtype)
    layers = params["layers"]
    # Inputs come first in ours, and have one axis but where heads go in.
    self.kernels = {
      name: [self._linear(layer, 2 if name == "out" else 1) for layer in leaf["kernel"]]
      for name, leaf in (layers["attention"] | layers["mlp"]).items()
    }
    self.scales = {
      name: self._tensor(layers[f"{name}_norm"]["scale"]) for name in ("attention", "mlp")
    }
    self.final = self._tensor(params["final_norm"]["scale"])
    self.embed = self._tensor(params["embed"])
    self.unembed = self._tensor(params.get("unembed", params["embed"]))
    power = torch.arange(0, config.head_dim, 2) / config.head_dim
    self.rate = config.rope_base**-power

  def _tensor(self, leaf: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(leaf, np.float32, order="C")).to(self.dtype)

  def _linear(self, kernel: Array, inputs: int) -> torch.Tensor:
    """[out, in]."""
    fan_in = int(np.prod(kernel.shape[:inputs]))
    return self._tensor(np.asarray(kernel).reshape(fan_in, -1).T)

  def hidden(
    self, tokens_BxW: torch.Tensor, past: Past | None = None, mask_WxS: torch.Tensor | None = None
  ) -> tuple[torch.Tensor, Past]:
    """[B, W, D] of tokens behind what is cached, and the cache with theirs."""
    first = past[0][0].shape[2] if past else 0
    angle = (first + torch.arange(tokens_BxW.shape[1]))[:, None] * self.rate
    angle = torch.cat([angle, angle], -1)
    turn = angle.cos().to(self.dtype), angle.sin().to(self.dtype)
    x, seen = self.embed[tokens_BxW], []
    for layer in range(self.config.layers):
      h = self._norm(x, self.scales["attention"][layer])
      out, kept = self._attention(h, layer, turn, past[layer] if past else None, mask_WxS)
      x = x + out
      seen.append(kept)
      h = self._norm(x, self.scales["mlp"][layer])
      gate, up = (F.linear(h, self.kernels[name][layer]) for name in ("gate", "up"))
      x = x + F.linear(F.silu(gate) * up, self.kernels["down"][layer])
    return self._norm(x, self.final), seen

  def _norm(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.config.norm_eps)
    return y.to(x.dtype) * scale

  def _attention(self, x: torch.Tensor, layer: int, turn, past, mask_WxS):
    def heads(name: str) -> torch.Tensor:
      y = F.linear(x, self.kernels[name][layer])
      return y.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)

    def rotate(y: torch.Tensor) -> torch.Tensor:
      a, b = y.chunk(2, -1)
      return y * turn[0] + torch.cat([-b, a], -1) * turn[1]

    q, k, v = rotate(heads("query")), rotate(heads("key")), heads("value")
    if past:
      k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_WxS, enable_gqa=True)
    return F.linear(out.transpose(1, 2).flatten(2), self.kernels["out"][layer]), (k, v)

  @torch.no_grad()
  def generate(
    self, tokens_BxP: np.ndarray, new: int, block: int, steps: int, mask_id: int
  ) -> np.ndarray:
    """[B, P + new] after `steps` forwards a block, each over the whole canvas."""
    x = _canvas(tokens_BxP, new, mask_id)
    for first in range(tokens_BxP.shape[1], x.shape[1], block):
      left = (x[:, first : first + block] == mask_id).sum(-1)
      for step in range(steps):
        masked = x == mask_id
        masked[:, first + block :] = False
        quota = left // steps + (step < left % steps)
        self._write(x, self.hidden(x)[0], masked, quota, mask_id)
    return x.numpy()

  @torch.no_grad()
  def generate_behind_cache(
    self, tokens_BxP: np.ndarray, new: int, block: int, steps: int, mask_id: int
  ) -> np.ndarray:
    """[B, P + new] where a block sees itself and those before it: `steps` forwards over each, and
    one more that keeps its keys and values. The prompt is whole blocks."""
    x, prompt = _canvas(tokens_BxP, new, mask_id), tokens_BxP.shape[1]
    block_P = torch.arange(prompt) // block
    _, past = self.hidden(x[:, :prompt], mask_WxS=block_P[:, None] >= block_P)
    for first in range(prompt, x.shape[1], block):
      own = x[:, first : first + block]  # a view
      left = torch.full((len(x),), block)
      for step in range(steps):
        quota = left // steps + (step < left % steps)
        self._write(own, self.hidden(own, past)[0], own == mask_id, quota, mask_id)
      if first + block < x.shape[1]:
        _, past = self.hidden(own, past)
    return x.numpy()

  def _write(
    self,
    x: torch.Tensor,
    hidden_BxWxD: torch.Tensor,
    masked: torch.Tensor,
    quota_B: torch.Tensor,
    mask_id: int,
  ):
    """The surest tokens of each row, so many as its quota, in place."""
    logits = F.linear(hidden_BxWxD, self.unembed).float()
    logits[..., mask_id] = -torch.inf
    token = logits.argmax(-1)
    sure = logits.softmax(-1).gather(-1, token[..., None])[..., 0]
    sure = torch.where(masked, sure, -torch.inf)
    for row, quota in enumerate(quota_B):
      best = sure[row].topk(int(quota)).indices
      x[row, best] = token[row, best]


def _canvas(tokens_BxP: np.ndarray, new: int, mask_id: int) -> torch.Tensor:
  return F.pad(torch.tensor(tokens_BxP, dtype=torch.long), (0, new), value=mask_id)
