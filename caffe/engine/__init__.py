"""Nets: blobs, layers, their execution."""
