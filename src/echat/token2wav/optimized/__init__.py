"""Optimized."""
