"""What can be learnt; each module offers ``Settings`` and ``build(recipe)``, see ``echat.train.objective``."""
