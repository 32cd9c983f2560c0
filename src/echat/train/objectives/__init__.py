"""What can be learnt. Each module has ``Settings`` and ``build(recipe)``: see ``echat.train.objective``."""
