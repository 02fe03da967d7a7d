"""Solvers, snapshots, several processes."""
