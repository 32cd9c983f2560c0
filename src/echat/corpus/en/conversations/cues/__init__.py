"""Cues."""
