"""Corpus building: synthetic empathetic dialogues as text and speech, recordings of people as manifests."""
