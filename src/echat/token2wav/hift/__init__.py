"""HiFT vocoder (neural source filter and inverse STFT): network, streaming, Griffin-Lim, training losses."""
