"""Weights of a run: where they come from, which of them are trained, adapters beside them."""
