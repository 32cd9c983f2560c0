"""Speech synthesis for corpora: TTS engines, prosody, sound events and acoustic environments."""
