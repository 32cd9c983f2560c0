"""Talking in real time: sockets, turns, and one model for many people."""
