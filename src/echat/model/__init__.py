"""Understanding and thinking: mel to encoder, subsampler, adapter, language model and its two heads."""
