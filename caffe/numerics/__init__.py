"""Arithmetic whose results do not depend on the machine: exact sums and products, elementary functions, and PyTorch's operations on them."""
