"""Voice chat in a terminal: one session without a socket, with microphone and loudspeaker."""
