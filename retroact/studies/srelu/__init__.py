"""Borji 2020, Sloped ReLU: figures 1 to 10."""
