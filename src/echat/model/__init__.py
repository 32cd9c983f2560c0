"""The speech language model: mel to encoder, subsampler, adapter, language model and its two heads."""
