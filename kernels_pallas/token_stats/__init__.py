"""Statistics of softmax(hidden @ unembed.T) per row, in passes over vocabulary tiles."""

from kernels_pallas.token_stats.spec import StatSpec, TokenStats

__all__ = ["StatSpec", "TokenStats"]
