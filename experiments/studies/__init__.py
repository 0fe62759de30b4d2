"""Experiments that train or compare several models or methods and tell what came out."""
