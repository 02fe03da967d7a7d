"""Plots, pictures and tables of the report; the manifest of results."""
