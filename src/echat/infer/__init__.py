"""The inference engine: a conversation in, a stream of events (thought, text, speech ids, audio) out."""
