"""Checkpoints: sharded tensors with hashes, integrity checks, and resuming a run from them."""
