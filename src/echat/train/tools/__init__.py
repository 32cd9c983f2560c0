"""Tools around training: fine-tuning, weight averaging, assembly of a model folder, the report of a run."""
