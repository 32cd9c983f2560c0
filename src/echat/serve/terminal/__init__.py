"""Talking in a terminal: one session without a socket, between a microphone and a loudspeaker."""
