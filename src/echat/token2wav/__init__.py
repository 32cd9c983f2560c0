"""Speech out: speech ids (25 a second) and the voice of a prompt become a waveform."""
