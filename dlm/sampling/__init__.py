"""Denoising: one loop, policies that say which tokens to write, plans that say what to cache."""
