"""Experiment tracking: metrics, curves and samples of a run, and the provenance of its data and code."""
