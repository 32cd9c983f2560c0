"""The messages of the Realtime protocol, each a model: what may come in, what goes out, and the old names."""
