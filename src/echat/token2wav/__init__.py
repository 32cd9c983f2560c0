"""Speech synthesis: speech ids (25 a second) and a voice prompt become a waveform."""
