"""Conversations, tasks, labels, thoughts and their prompt layout. Pure Python: no torch, no tokenizer."""
