"""Evaluation: the Benchmark protocol, batched inference, judges, reports, and one file per benchmark."""
