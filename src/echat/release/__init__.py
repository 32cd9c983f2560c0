"""Released weights: download from a hub, name maps, conversion to a model folder."""
