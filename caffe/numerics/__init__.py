"""Arithmetic whose results do not depend on the machine: random numbers, sums, products, elementary functions."""

NUMERICS = ("reproducible", "fp32", "fast")
"""How nets compute; see `caffe.set_numerics`."""
