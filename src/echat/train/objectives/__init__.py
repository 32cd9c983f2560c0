"""Training objectives. Each module has ``Settings`` and ``build(recipe)``: see ``echat.train.objective``."""
