"""Hift."""
