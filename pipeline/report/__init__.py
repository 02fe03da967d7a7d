"""Plots, pictures and tables of the report, and the manifest of results."""
