"""Arithmetic whose results do not depend on the machine: exact sums and products, elementary functions, and PyTorch's operations on them."""

NUMERICS = ("reproducible", "fp32", "fast")
"""How nets compute; see `caffe.set_numerics`."""
