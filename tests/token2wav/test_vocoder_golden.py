"""The vocoder against the arrays of the released code."""

import torch


def test_pitch(vocoder, golden, close):
    g = golden("hift")
    close(vocoder.f0_predictor(g["mel"]), g["f0"], 1e-3)


def test_source(vocoder, golden, close):
    g = golden("hift")
    source = vocoder.m_source
    zero_phase, zero_noise = torch.zeros_like(g["phase"]), torch.zeros_like(g["noise"])
    close(source(g["f0"], g["phase"], g["noise"]), g["source"], 1e-4)
    close(source(g["f0"], zero_phase, zero_noise), g["source_zero_noise"], 1e-4)
    close(source(g["f0_given"], g["phase"], g["noise"]), g["source_f0_given"], 1e-4)
    voiced = (g["f0_given"] > vocoder.config.nsf_voiced_threshold).float()
    expected = g["uv_f0_given"].squeeze(-1)
    close(voiced, expected[:, : voiced.shape[1]], 0)


def test_decoder(vocoder, golden, close):
    g = golden("hift")
    close(vocoder.source_spectrum(g["source"]), g["s_stft"], 1e-5)
    close(vocoder.spectrum(g["mel"], g["source"]), g["conv_post_out"], 2e-4)
    close(vocoder.decode(g["mel"], g["source"]), g["wav"], 5e-5)
    close(vocoder.decode(g["mel"], g["source_zero_noise"]), g["wav_zero_noise"], 1e-3)
    close(vocoder.decode(g["mel"], torch.zeros_like(g["source"])), g["wav_zero_source"], 5e-5)


def test_cached_source(vocoder, golden, close):
    g = golden("hift")
    zero_phase, zero_noise = torch.zeros_like(g["phase"]), torch.zeros_like(g["noise"])
    waveform, source = vocoder(g["mel"], g["cache_source"], zero_phase, zero_noise)
    close(source, g["source_cached"], 1e-4)
    close(waveform, g["wav_cached"], 1e-3)
    uncached, _ = vocoder(g["mel"], None, zero_phase, zero_noise)
    close(uncached, g["wav_zero_noise"], 1e-3)


def test_limits_of_loud_output(vocoder, golden, close):
    g = golden("hift")
    bias, shift = vocoder.conv_post.bias, float(g["loud_bias_shift"])
    bias[:9] += shift
    try:
        close(vocoder.decode(g["mel"], g["source_zero_noise"]), g["wav_loud"], 1e-3)
    finally:
        bias[:9] -= shift
