"""How well a model listens and how fittingly it answers: metrics, judges, reports, and one file per
benchmark.
"""
